"""The agent's hand on tap and watchdog: start them, find them again, ask them, end them.

Owns: their files, pids and control sockets. Must not know: QEMU, cuts, stores. Both processes
outlive the agent; every method may be called again by the next agent.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, SegmentCorrupt, Unavailable
from leeward.core.units import MIB
from leeward.fabric.processes import ProcessIdentity, end, find, is_alive, spawn
from leeward.mobility import link
from leeward.mobility.journal import JournalReader
from leeward.mobility.watchdog_client import (
    ANSWER_SECONDS,
    ask,
    ask_watchdog,
    ensure_watchdog,
    locked,
    stop_watchdog,
    wait_answer,
    watchdog_socket,
)

__all__ = [
    "Mark",
    "Tap",
    "TapConfig",
    "TapStatus",
    "drop_journal",
    "ensure_watchdog",
    "stop_watchdog",
    "unreleased_journals",
]

DISKS_MAX = 255


@dataclass(frozen=True, slots=True)
class TapConfig:
    """What a tap is started with. `disks` in journal order; export name = disk name."""

    item_id: str
    disks: tuple[tuple[str, int], ...]
    run_dir: Path
    shm_dir: Path
    data_dir: Path
    buffer_bytes: int = 8 * MIB
    buffer_count: int = 32

    @property
    def tap_dir(self) -> Path:
        """Where the tap's sockets, pid file and configuration are."""
        return self.run_dir / "tap" / self.item_id

    @property
    def journals_dir(self) -> Path:
        """Where the journals of this item's taps are, one directory per instance."""
        return self.shm_dir / self.item_id


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the stream: the mark is record `position`; what counts lies below it."""

    position: int
    time_ns: int
    mark_id: int


@dataclass(frozen=True, slots=True)
class TapStatus:
    """What a tap says of itself.

    `connected`: disks whose connection takes writes. `breaks` counts how often the connections
    were broken, so that a break between two looks is seen. `detached_reason` is "" unless the tap
    refuses connections at the moment (out of buffers). `guarded`: it has a watchdog.
    """

    position: int
    released: int
    connected: frozenset[str]
    free_buffers: int
    breaks: int
    last_break: str
    detached_reason: str
    guarded: bool


class Tap:
    """One VM's tap process. Thread-safe."""

    def __init__(self, config: TapConfig, process: ProcessIdentity, instance: int) -> None:
        self.config = config
        self.instance = instance
        self.socket = nbd_socket(config)
        self.journal = JournalReader(_journal_dir(config, instance))
        self._process = process
        self._control: socket.socket | None = None
        self._asking = threading.Lock()

    @classmethod
    def start_or_adopt(cls, config: TapConfig) -> Tap:
        """Have a tap for `config` running, guarded by the host's watchdog, and return it.

        A running tap with the same disks is adopted; one that does not answer, or serves other
        disks or sizes, is ended first (its journal remains).
        Raises: InvalidRequest, Unavailable.
        """
        _check(config)
        ensure_watchdog(config.run_dir, config.data_dir)
        with locked(_lock_file(config.run_dir, config.item_id)):
            tap = _adopt(config) or _start(config)
            try:
                _open_listener(config)
            except LeewardError:
                tap.close()
                raise
            return tap

    def is_alive(self) -> bool:
        """Say whether the process runs (perhaps stopped)."""
        return is_alive(self._process)

    @property
    def pid(self) -> int:
        """The tap's process id."""
        return self._process.pid

    def mark(self) -> Mark:
        """Append a mark at the present end of the stream and return it. Raises: Unavailable."""
        return _mark(self._ask({"op": "mark"}))

    def hold(self) -> Mark:
        """Append a mark, as `mark` does, and have nothing acknowledged from there on until
        `end_hold`, for at most the 300 ms that the tap itself allows. Raises: Unavailable."""
        return _mark(self._ask({"op": "hold"}))

    def end_hold(self, mark: Mark) -> bool:
        """End the hold that began with `mark`; say whether it has lasted until now.
        Raises: Unavailable."""
        return bool(self._ask({"op": "end_hold", "mark_id": mark.mark_id})["is_held"])

    def status(self) -> TapStatus:
        """Return what the tap says of itself. Raises: Unavailable."""
        got = self._ask({"op": "status"})
        return TapStatus(
            position=int(got["position"]),
            released=int(got["released"]),
            connected=frozenset(got["connected"]),
            free_buffers=int(got["free_buffers"]),
            breaks=int(got["breaks"]),
            last_break=str(got["last_break"]),
            detached_reason=str(got["detached_reason"]),
            guarded=bool(got["guarded"]),
        )

    def release(self, position: int) -> None:
        """Let the tap reuse everything below `position`; works and returns at once even when the
        tap is stopped, since it is one store into shared memory."""
        self.journal.release(position)

    def stop(self) -> None:
        """Make the tap not run and its socket not exist; its connections are shut down, its
        journal remains. Idempotent. Detach the mirror jobs first."""
        with suppress(Unavailable):
            ask_watchdog(self.config.run_dir, {"op": "close", "item": self.config.item_id})
        with suppress(Unavailable):
            self._ask({"op": "shutdown"})
        end(self._process)
        self.close()
        shutil.rmtree(self.config.tap_dir, ignore_errors=True)

    def close(self) -> None:
        """Let go of the tap without ending it. Idempotent."""
        with self._asking:
            self._hang_up()
        self.journal.close()

    def _ask(self, request: link.Message) -> dict[str, Any]:
        with self._asking:
            try:
                if self._control is None:
                    path = control_socket(self.config)
                    self._control = link.connect(path, timeout_seconds=ANSWER_SECONDS)
                return ask(self._control, request)
            except (OSError, link.LinkClosed) as error:
                self._hang_up()
                raise Unavailable(
                    f"the tap of {self.config.item_id} does not answer",
                    hint=f"its output is in {_log_file(self.config)}",
                ) from error

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None


def nbd_socket(config: TapConfig) -> Path:
    """Return the path that QEMU connects to."""
    return config.tap_dir / "nbd.sock"


def control_socket(config: TapConfig) -> Path:
    """Return the path at which the tap answers the agent."""
    return config.tap_dir / "control.sock"


def end_left(config: TapConfig) -> None:
    """Make no tap of the item run, whoever started it and whatever it serves, and its sockets not
    exist; journals remain. Idempotent. Nothing may be connected to it."""
    with locked(_lock_file(config.run_dir, config.item_id)):
        with suppress(Unavailable):
            ask_watchdog(config.run_dir, {"op": "close", "item": config.item_id})
        living = _living(config)
        if living is not None:
            end(living[0])
        shutil.rmtree(config.tap_dir, ignore_errors=True)


def unreleased_journals(config: TapConfig) -> list[JournalReader]:
    """Return the journals that earlier instances of this item's tap left, oldest first.

    Each holds a valid prefix of what its tap was sent. The living tap's own is not among them.
    """
    living = _living(config)
    found: list[JournalReader] = []
    for directory in _journal_dirs(config):
        if living is not None and int(directory.name) == living[1]:
            continue
        try:
            found.append(JournalReader(directory))
        except SegmentCorrupt:  # cut short by a crash of the machine: nothing of it can be used
            shutil.rmtree(directory, ignore_errors=True)
    return found


def drop_journal(journal: JournalReader) -> None:
    """Make the journal's files not exist and its memory free. Idempotent."""
    journal.close()
    with suppress(FileNotFoundError):
        gone = journal.directory.with_name(f".gone-{journal.directory.name}")
        journal.directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _mark(got: dict[str, Any]) -> Mark:
    return Mark(int(got["position"]), int(got["time_ns"]), int(got["mark_id"]))


def forget_taps(item_id: str, *, run_dir: Path, data_dir: Path) -> None:
    """Make nothing tell of the item's taps, so that later ones are numbered anew. Idempotent.

    None may run, no journal be there, and nobody have noted any.
    """
    lock = _lock_file(run_dir, item_id)
    with locked(lock):
        _counter(data_dir, item_id).unlink(missing_ok=True)
        lock.unlink()


def _lock_file(run_dir: Path, item_id: str) -> Path:
    return run_dir / "tap" / f"{item_id}.lock"


def _counter(data_dir: Path, item_id: str) -> Path:
    """Return where the number of the item's last tap is kept."""
    return data_dir / "tap" / f"{item_id}.instance"


def _check(config: TapConfig) -> None:
    names = [name for name, _ in config.disks]
    if not 1 <= len(names) <= DISKS_MAX or len(set(names)) != len(names):
        raise InvalidRequest(f"a tap serves 1 to {DISKS_MAX} different disks, not {names}")
    if any(size <= 0 for _, size in config.disks):
        raise InvalidRequest("a disk of a tap has no size", field="disks")
    if config.buffer_bytes < MIB or config.buffer_bytes % _page_bytes():
        raise InvalidRequest("buffer_bytes: at least 1 MiB, in pages", field="buffer_bytes")
    if config.buffer_bytes >= 1 << 32 or config.buffer_count < 2 * len(names):
        raise InvalidRequest("buffer_count: at least two buffers per disk", field="buffer_count")
    if len(str(nbd_socket(config))) > 100:
        raise InvalidRequest(f"run_dir is too long for sockets: {config.run_dir}", field="run_dir")


def _page_bytes() -> int:
    """Return the size of a page."""
    return os.sysconf("SC_PAGE_SIZE")


def _adopt(config: TapConfig) -> Tap | None:
    living = _living(config)
    if living is None:
        return None
    process, instance, disks = living
    try:
        if disks != config.disks:
            raise Conflict("the running tap serves other disks")
        tap = Tap(config, process, instance)
        try:
            tap.status()
        except LeewardError:
            tap.close()
            raise
    except LeewardError:
        end(process, grace_seconds=0)  # its connections break, which the guest does not notice
        return None
    return tap


def _start(config: TapConfig) -> Tap:
    instance = _next_instance(config)
    log_file = _log_file(config)
    config.tap_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.journals_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = config.tap_dir / "tap.json"
    configuration.write_text(
        json.dumps(
            {
                "item": config.item_id,
                "instance": instance,
                "disks": config.disks,
                "nbd": str(nbd_socket(config)),
                "control": str(control_socket(config)),
                "watchdog": str(watchdog_socket(config.run_dir)),
                "journal": str(_journal_dir(config, instance)),
                "buffer_bytes": config.buffer_bytes,
                "buffer_count": config.buffer_count,
            }
        )
    )
    with suppress(FileNotFoundError):
        control_socket(config).unlink()  # a predecessor's: connecting to it would only be refused
    process = spawn(
        [sys.executable, "-m", "leeward.mobility.tap", str(configuration)],
        pid_file=config.tap_dir / "tap.pid",
        log_file=log_file,
    )
    try:
        wait_answer(process, control_socket(config), log_file, ready="guarded")
    except LeewardError:
        end(process, grace_seconds=0)
        raise
    return Tap(config, process, instance)


def _living(
    config: TapConfig,
) -> tuple[ProcessIdentity, int, tuple[tuple[str, int], ...]] | None:
    """Return process, instance and disks of the item's running tap, also of one whose starter was
    killed before it could note it: two taps of one item would take the connections in turns."""
    process = find(config.tap_dir / "tap.pid")
    if process is None:
        return None
    try:
        saved = json.loads((config.tap_dir / "tap.json").read_text())
    except FileNotFoundError:  # its directory was taken away: nobody can say what it serves
        end(process, grace_seconds=0)
        return None
    return process, int(saved["instance"]), tuple((str(n), int(s)) for n, s in saved["disks"])


def _next_instance(config: TapConfig) -> int:
    """Return an instance number never used before, also if all journals have been dropped."""
    counter = _counter(config.data_dir, config.item_id)
    counter.parent.mkdir(parents=True, exist_ok=True)
    used = [int(directory.name) for directory in _journal_dirs(config)]
    with suppress(FileNotFoundError, ValueError):
        used.append(int(counter.read_text()))
    instance = max(used, default=0) + 1
    new = counter.with_name(counter.name + ".new")
    new.write_text(str(instance))
    new.replace(counter)
    return instance


def _open_listener(config: TapConfig) -> None:
    ask_watchdog(
        config.run_dir, {"op": "open", "item": config.item_id, "path": str(nbd_socket(config))}
    )


def _journal_dir(config: TapConfig, instance: int) -> Path:
    return config.journals_dir / f"{instance:08d}"


def _journal_dirs(config: TapConfig) -> list[Path]:
    if not config.journals_dir.is_dir():
        return []
    return sorted(path for path in config.journals_dir.iterdir() if path.name.isdigit())


def _log_file(config: TapConfig) -> Path:
    return config.data_dir / "logs" / f"tap-{config.item_id}.log"
