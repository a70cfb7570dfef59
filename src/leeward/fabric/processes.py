"""Processes that outlive the daemon that started them, and are found again by the next one.

Owns: starting detached, remembering (pid, start time) in a file, telling a living process from a
reused pid, ending one. Must not know: what the process does. Used by fabric, mobility and export.

A process carries the path of its pid file in its environment, so that one whose starter was killed
before it could write that file is found all the same. It inherits a lock on that file, which was
emptied before: so one is waited for that is only just becoming what it is to be.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import InvalidRequest, Unavailable

_MARK = "LEEWARD_PID_FILE"
_START_SECONDS = 10.0
"""How long a program may take to become another one, on a machine that has much to do."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid made unambiguous by the kernel's start time (clock ticks since boot)."""

    pid: int
    start_ticks: int


def _start_ticks(pid: int) -> int | None:
    """Return the process's start time, or None if it is gone or a zombie.

    One that is killed shows as a zombie as soon as its first thread has ended; until the others
    have, it holds its files and their locks.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command name may hold spaces and brackets
    has_ended = fields[0] in ("Z", "X") and int(fields[17]) <= 1  # threads
    return None if has_ended else int(fields[19])


def runs_as(process: ProcessIdentity, argv: Sequence[str]) -> bool:
    """Say whether the process runs with those arguments, or is about to through a wrapper's."""
    try:
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:  # gone meanwhile
        return False
    return line.decode(errors="replace").split("\0")[:-1][-len(argv) :] == list(argv)


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a living process, else None."""
    ticks = _start_ticks(pid)
    return None if ticks is None else ProcessIdentity(pid, ticks)


def is_alive(process: ProcessIdentity) -> bool:
    """Say whether that very process still runs (a stopped one does; a zombie does not)."""
    return _start_ticks(process.pid) == process.start_ticks


def read_pid_file(path: Path) -> ProcessIdentity | None:
    """Return the living process a pid file names, else None."""
    try:
        saved = json.loads(path.read_text())
        process = ProcessIdentity(int(saved["pid"]), int(saved["start_ticks"]))
    except (FileNotFoundError, ValueError, KeyError):
        return None  # a torn file means the writer died before anybody could rely on it
    return process if is_alive(process) else None


def find(pid_file: Path) -> ProcessIdentity | None:
    """Return the living process started with that pid file, even if the file was never written."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        is_being_started = _is_being_started(pid_file)  # before it is looked for
        found = read_pid_file(pid_file) or _find_marked(f"{_MARK}={pid_file}".encode())
        if found is not None or not is_being_started or time.monotonic() > deadline:
            return found
        time.sleep(0.005)


def _find_marked(mark: bytes) -> ProcessIdentity | None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_marked(entry, mark):
            return identify(int(entry.name))
    return None


def _is_being_started(pid_file: Path) -> bool:
    """Say whether a starter, or what it has forked, is alive and has not written the file yet."""
    try:
        with pid_file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        with suppress(FileNotFoundError):
            return pid_file.stat().st_size == 0
        return False
    except FileNotFoundError:
        return False


def _is_marked(entry: Path, mark: bytes) -> bool:
    """Say whether that process was spawned with the mark, rather than inherited it."""
    try:
        marked = mark in (entry / "environ").read_bytes().split(b"\0")
        return marked and os.getsid(int(entry.name)) == int(entry.name)
    except OSError:  # gone meanwhile, or another user's
        return False


def spawn(
    argv: Sequence[str],
    *,
    pid_file: Path,
    log_file: Path,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start `argv` in a session of its own, with output appended to `log_file`.

    Of our descriptors it inherits `pass_fds` and the locked pid file. `environment` is added to
    ours. Raises: InvalidRequest, Unavailable when the program cannot be started; then nothing runs.
    """
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log, pid_file.open("ab", buffering=0) as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        held.truncate(0)
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(*pass_fds, held.fileno()),
                env={**os.environ, **(environment or {}), _MARK: str(pid_file)},
            )
        except FileNotFoundError as error:
            pid_file.unlink()
            raise InvalidRequest(
                f"{argv[0]} is not installed", hint="`make demo` and `make test` install it"
            ) from error
        except OSError as error:
            pid_file.unlink()
            raise Unavailable(f"cannot start {argv[0]}: {error.strerror}") from error
        process = identify(child.pid)
        if process is None:
            child.wait()
            pid_file.unlink()
            raise Unavailable(f"{argv[0]} ended at once", hint=f"its output is in {log_file}")
        _children[child.pid] = child
        _wait_for_environment(process)
        said = {"pid": process.pid, "start_ticks": process.start_ticks}
        try:
            held.write(json.dumps(said).encode())
        except OSError as error:
            end(process, grace_seconds=0)
            raise Unavailable(f"cannot write {pid_file}: {error.strerror}") from error
    return process


def _wait_for_environment(process: ProcessIdentity) -> None:
    """Return once the mark of a process just started can be read, or the process is gone.

    `Popen` returns when the kernel has closed the descriptors of the old image, which it does a
    moment before it says where the environment of the new one lies; until then it reads as empty.
    """
    environ = Path(f"/proc/{process.pid}/environ")
    deadline = time.monotonic() + 5.0
    with suppress(OSError):
        while not environ.read_bytes() and is_alive(process) and time.monotonic() < deadline:
            time.sleep(0.0005)


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Children of this very process, kept to be reaped; those of an earlier daemon are init's."""


def reap() -> None:
    """Collect children that have ended, so that none stays a zombie. Call it now and then."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


def end(process: ProcessIdentity, *, grace_seconds: float = 3.0) -> None:
    """Make that process not run: SIGTERM, after `grace_seconds` SIGKILL. Idempotent.

    Raises: Unavailable if even SIGKILL leaves it there for 5 s (stuck in the kernel).
    """
    if grace_seconds > 0:
        _signal(process, signal.SIGTERM)
        if _wait_gone(process, grace_seconds):
            return
    _signal(process, signal.SIGKILL)
    if not _wait_gone(process, 5.0):
        raise Unavailable(f"process {process.pid} does not end")


def _signal(process: ProcessIdentity, number: signal.Signals) -> None:
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _wait_gone(process: ProcessIdentity, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
        reap()
    reap()
    return True
