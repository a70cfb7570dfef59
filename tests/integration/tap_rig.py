"""A tap in temporary directories, a qemu-storage-daemon to feed it, writers of known records.

Owns: starting and ending all of them. Must not know: what a test wants to show.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.integration.sockets import open_monitor

from leeward.core.errors import HypervisorRefused, LeewardError
from leeward.core.units import MIB
from leeward.mobility.journal import KIND_WRITE, KIND_ZEROES, JournalReader
from leeward.mobility.tap_client import Tap, TapConfig, stop_watchdog
from leeward.nbd.client import NbdClient
from leeward.qemu import mirror

DISKS = (("sys", 16 * MIB), ("data", 16 * MIB))
STALL_GUARD_SECONDS = 10.0
RECORD = struct.Struct("<II")
_OWN_AREA = 8 * MIB
_SLOTS = 64


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    """Return when `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


@contextmanager
def tap_config(**changes: object) -> Iterator[TapConfig]:
    """Give a configuration in fresh directories; end whatever runs in them afterwards."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="lw") as root,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lw") as shm,
    ):
        settings: dict[str, object] = {
            "item_id": "item-1",
            "disks": DISKS,
            "run_dir": Path(root) / "run",
            "shm_dir": Path(shm),
            "data_dir": Path(root) / "data",
        }
        config = TapConfig(**(settings | changes))  # type: ignore[arg-type]
        try:
            yield config
        except BaseException:
            for log in sorted((config.data_dir / "logs").glob("*.log")):
                print(f"-- {log.name}\n{log.read_text()}")
            raise
        finally:
            Tap.start_or_adopt(config).stop()
            stop_watchdog(config.run_dir)


@contextmanager
def running_tap(**changes: object) -> Iterator[Tap]:
    """Give a running tap."""
    with tap_config(**changes) as config:
        tap = Tap.start_or_adopt(config)
        try:
            yield tap
        finally:
            if tap.is_alive():
                os.kill(tap.pid, signal.SIGCONT)
            tap.close()


class StorageDaemon:
    """A qemu-storage-daemon whose disks can be written over NBD and mirrored to a tap."""

    def __init__(self, root: Path, disks: Iterable[tuple[str, int]], *, latency_ms: int = 0):
        self.root = root
        self.disks = dict(disks)
        self.nbd_socket = root / "nbd.sock"
        command = ["qemu-storage-daemon"]
        for disk, size in self.disks.items():
            command += ["--blockdev", self._lowest_node(disk, size, latency_ms)]
            command += ["--blockdev", f"driver=raw,node-name=disk-{disk},file=file-{disk}"]
        command += ["--nbd-server", f"addr.type=unix,addr.path={self.nbd_socket},max-connections=0"]
        for disk in self.disks:
            export = f"type=nbd,id=export-{disk},node-name=disk-{disk},name={disk},writable=on"
            command += ["--export", export]
        chardev = f"socket,path={root}/qmp.sock,server=on,wait=off,id=qmp"
        command += ["--chardev", chardev, "--monitor", "chardev=qmp"]
        self.process = subprocess.Popen(command)
        try:
            self.session = open_monitor(root / "qmp.sock")
        except BaseException:
            self._end()
            raise

    def _lowest_node(self, disk: str, size: int, latency_ms: int) -> str:
        if latency_ms:
            latency = latency_ms * 1_000_000
            return f"driver=null-co,node-name=file-{disk},size={size},latency-ns={latency}"
        with (self.root / disk).open("wb") as image:
            image.truncate(size)
        return f"driver=file,node-name=file-{disk},filename={self.root / disk}"

    def attach(self, tap: Tap) -> None:
        for disk in self.disks:
            self.attach_path(disk, tap.socket)

    def attach_path(self, disk: str, tap_socket: Path) -> None:
        mirror.attach(self.session, disk, tap_socket)

    def detach(self) -> None:
        """Detach every disk from its live tap. A tap that got no processor time for so long that
        its watchdog let the guest go needs what the refusal asks for: to be resumed first."""
        for disk in self.disks:
            wait_until(partial(self._is_detached, disk), f"{disk} is detached")

    def _is_detached(self, disk: str) -> bool:
        try:
            mirror.detach(self.session, disk)
        except HypervisorRefused:
            with suppress(HypervisorRefused):  # it has come to its end after all
                mirror.resume(self.session, disk)
            return False
        return True

    def is_clean(self) -> bool:
        return all(state.is_clean for state in mirror.inspect(self.session, list(self.disks)))

    def converge(self) -> None:
        """Resume the jobs until QEMU has nothing left that the tap has missed."""

        def resumed() -> bool:
            if self.is_clean():
                return True
            for disk in self.disks:
                mirror.resume(self.session, disk)
            return False

        wait_until(resumed, "mirrors are clean again")

    def content(self, disk: str) -> bytes:
        return (self.root / disk).read_bytes()

    def close(self) -> None:
        self.session.close()
        self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def storage_daemon(
    disks: Iterable[tuple[str, int]] = DISKS, *, latency_ms: int = 0
) -> Iterator[StorageDaemon]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lw") as root:
        daemon = StorageDaemon(Path(root), disks, latency_ms=latency_ms)
        try:
            yield daemon
        finally:
            daemon.close()


class Writers:
    """Threads that write dependent records in turn to all disks, and overlapping noise.

    Writer k writes record n to its own slot of disk n mod disks, only after n - 1 was
    acknowledged. `acknowledged[k]` is the newest such n.
    """

    def __init__(
        self,
        daemon: StorageDaemon,
        *,
        count: int = 6,
        pause_seconds: float = 0.0,
        noise_lengths: tuple[int, ...] = (512, 1536, 4096, 16384, 131072),
    ):
        self.acknowledged = [0] * count
        self.max_stall_seconds = 0.0
        self.errors: list[str] = []
        self._daemon = daemon
        self._pause = pause_seconds
        self._noise_lengths = noise_lengths
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(count)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: min(self.acknowledged) > 3, "writers write")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []

    def progress(self) -> None:
        """Return when every writer has had two more writes acknowledged."""
        before = list(self.acknowledged)
        wait_until(
            lambda: all(now > was + 2 for now, was in zip(self.acknowledged, before, strict=True)),
            "writers go on",
        )

    def _run(self, writer: int) -> None:
        chance = random.Random(writer)
        names = list(self._daemon.disks)
        clients = [NbdClient.connect(self._daemon.nbd_socket, name) for name in names]
        number = 0
        try:
            while not self._stop.wait(self._pause):
                number += 1
                disk = clients[number % len(clients)]
                started = time.monotonic()
                record = RECORD.pack(writer, number) * 64
                disk.write(_OWN_AREA + (writer * _SLOTS + number % _SLOTS) * 512, record)
                self.max_stall_seconds = max(self.max_stall_seconds, time.monotonic() - started)
                self.acknowledged[writer] = number
                self._noise(disk, chance)
        except (LeewardError, OSError) as error:
            self.errors.append(f"writer {writer}, record {number}: {error!r}")
        finally:
            for client in clients:
                client.close()

    def _noise(self, disk: NbdClient, chance: random.Random) -> None:
        offset = chance.randrange(0, 2048) * 512
        length = chance.choice(self._noise_lengths)
        if chance.random() < 0.1:
            disk.write_zeroes(offset, length)
        else:
            disk.write(offset, chance.randbytes(length))


class Replay:
    """Disk images made from nothing but journals."""

    def __init__(self, disks: Iterable[tuple[str, int]] = DISKS) -> None:
        self.names = [name for name, _ in disks]
        self.images = [bytearray(size) for _, size in disks]
        self.newest: dict[int, int] = {}
        self.out_of_order: list[tuple[int, int, int]] = []

    def apply(self, journal: JournalReader, start: int, stop: int) -> None:
        for record in journal.records(start, stop):
            image, offset = self.images[record["disk"]], int(record["offset"])
            if record["kind"] == KIND_WRITE:
                payload = journal.payload(record)
                image[offset : offset + len(payload)] = payload
                if offset >= _OWN_AREA and len(payload) == 512:
                    self._check_order(*RECORD.unpack_from(payload))
            elif record["kind"] == KIND_ZEROES:
                length = int(record["length"])
                image[offset : offset + length] = bytes(length)

    def apply_all(self, *journals: JournalReader) -> None:
        for journal in journals:
            self.apply(journal, journal.released(), journal.position())

    def by_name(self) -> Mapping[str, bytes]:
        return dict(zip(self.names, map(bytes, self.images), strict=True))

    def _check_order(self, writer: int, number: int) -> None:
        if number != self.newest.get(writer, 0) + 1:
            self.out_of_order.append((writer, self.newest.get(writer, 0), number))
        self.newest[writer] = number


def assert_replay_equals(daemon: StorageDaemon, replay: Replay) -> None:
    for disk, image in replay.by_name().items():
        assert image == daemon.content(disk), f"journal and disk {disk} differ"


def freeze(pid: int) -> None:
    """Stop a process, and return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")


def kill(tap: Tap) -> None:
    """End the tap as a crash would."""
    os.kill(tap.pid, signal.SIGKILL)
    wait_until(lambda: not tap.is_alive(), "tap is gone")
    tap.close()
