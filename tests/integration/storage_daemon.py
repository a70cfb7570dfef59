"""A "VM" for tests: a qemu-storage-daemon with writable disks, and writers that log what they did.

Owns: the daemon's start and end, the writers' log, the question whether disk contents are a prefix
of that log. Must not know: taps, cuts, stores.
"""

from __future__ import annotations

import random
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.sockets import listens, open_monitor

from leeward.core.errors import Conflict, LeewardError
from leeward.nbd.client import NbdClient
from leeward.qemu.session import QmpSession

SECTOR = 512
STAMP = struct.Struct("<HHI")
"""What every 8 bytes of a record hold: a constant, the writer, the record's number."""
_TAG = 0x4C57
UNSEEN_MAX = 12
"""Records in a row that zeroes have hidden: more are not to be expected."""
Images = Mapping[str, bytearray | bytes]


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 120.0) -> None:
    """Return when `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class StorageDaemon:
    """Disks in `directory`, nodes file-<d> and disk-<d>, writable exports <d>, one QMP session.

    directory: short, for it holds unix sockets. `iops`, `bytes_per_second` throttle each disk.
    """

    def __init__(
        self,
        directory: Path,
        disks: Mapping[str, int],
        *,
        iops: int = 0,
        bytes_per_second: int = 0,
        format: str = "raw",
    ) -> None:
        self.directory = directory
        self.disks = dict(disks)
        self.format = format
        self.iops = iops
        self.bytes_per_second = bytes_per_second
        self.nbd_socket = directory / "guest-nbd.sock"
        self.qmp_socket = directory / "guest-qmp.sock"
        self._speed_socket = directory / "speed.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self._session: QmpSession | None = None
        self._lock = threading.Lock()
        for disk, size in self.disks.items():
            if not self.image(disk).exists():
                command = ["qemu-img", "create", "-q", "-f", format]
                subprocess.run([*command, str(self.image(disk)), str(size)], check=True)

    def image(self, disk: str) -> Path:
        return self.directory / f"{disk}.{self.format}"

    def start(self) -> None:
        """Have it running, with none of the nodes and bitmaps of an earlier run."""
        command = ["qemu-storage-daemon"]
        for disk in self.disks:
            below = f"file-{disk}"
            command += ["--blockdev", f"driver=file,node-name={below},filename={self.image(disk)}"]
            if self.iops or self.bytes_per_second:
                limits = f"x-iops-total={self.iops},x-bps-total={self.bytes_per_second}"
                group = f"throttle-group,id=group-{disk},{limits}"
                filter_ = f"driver=throttle,throttle-group=group-{disk},node-name=slow-{disk}"
                command += ["--object", group, "--blockdev", f"{filter_},file={below}"]
                below = f"slow-{disk}"
            node = f"driver={self.format},node-name=disk-{disk},file={below}"
            command += ["--blockdev", node]
        address = f"addr.type=unix,addr.path={self.nbd_socket},max-connections=0"
        command += ["--nbd-server", address]
        for disk in self.disks:
            export = f"type=nbd,id=guest-{disk},node-name=disk-{disk},name={disk},writable=on"
            command += ["--export", export]
        chardev = f"socket,path={self.qmp_socket},server=on,wait=off,id=qmp"
        command += ["--chardev", chardev, "--monitor", "chardev=qmp"]
        chardev = f"socket,path={self._speed_socket},server=on,wait=off,id=speed"
        command += ["--chardev", chardev, "--monitor", "chardev=speed"]
        self.qmp_socket.unlink(missing_ok=True)
        self._speed_socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(command)
        wait_until(lambda: listens(self.qmp_socket), "storage daemon is up")

    def set_speed(self, bytes_per_second: int) -> None:
        """Have each disk, throttled from the start, give so much from now on."""
        session = open_monitor(self._speed_socket)
        try:
            for disk in self.disks:
                session.execute(
                    "qom-set",
                    {
                        "path": f"/objects/group-{disk}",
                        "property": "limits",
                        "value": {"bps-total": bytes_per_second, "iops-total": self.iops},
                    },
                )
        finally:
            session.close()

    def session(self) -> QmpSession:
        """Return its one session, as a fabric driver does. Raises: Conflict when it is not up."""
        with self._lock:
            if self.process is None or self.process.poll() is not None:
                raise Conflict("the storage daemon does not run")
            if self._session is None or not self._session.is_connected:
                self._session = open_monitor(self.qmp_socket)
            return self._session

    def hang_up(self) -> None:
        """Close the session, as an agent does when it dies."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def quit(self) -> None:
        """Have it end in good order, as a guest's power-off ends QEMU."""
        assert self.process is not None
        self.session().execute("quit")
        self.process.wait(60)
        self.kill()

    def kill(self) -> None:
        """Make it not run, as by SIGKILL. Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.hang_up()

    def content(self) -> dict[str, bytearray]:
        """Return what the disks hold now."""
        images = {}
        for disk, size in self.disks.items():
            with NbdClient.connect(self.nbd_socket, disk) as client:
                images[disk] = client.read(0, size)
        return images

    def fill(self, disk: str, offset: int, length: int, *, seed: int = 1) -> None:
        """Write random data, in 1 MiB pieces."""
        rng = random.Random(seed)
        with NbdClient.connect(self.nbd_socket, disk) as client:
            for at in range(offset, offset + length, 1 << 20):
                client.write(at, rng.randbytes(min(1 << 20, offset + length - at)))


@dataclass(slots=True)
class LoggedWrite:
    """One write; times are of a clock common to all writers. acknowledged 0: not (yet)."""

    disk: str
    offset: int
    data: bytes
    is_zeroes: bool
    issued: float
    acknowledged: float = 0.0


class LoggedWriters:
    """Threads that each write overlapping records into an area of their own on every disk.

    A writer's record n+1 is issued after n was acknowledged, usually on the other disk, so that
    every consistent state of all disks holds exactly the first n records of each writer.
    """

    def __init__(
        self,
        daemon: StorageDaemon,
        *,
        count: int = 4,
        area_offset: int = 0,
        area_bytes: int = 1 << 20,
        seed: int = 0,
        pause_seconds: float = 0.0005,
    ) -> None:
        self.daemon = daemon
        self.area_offset = area_offset
        self.area_bytes = area_bytes
        self.logs: list[list[LoggedWrite]] = [[] for _ in range(count)]
        self.errors: list[str] = []
        self.longest_seconds = 0.0
        self._seed = seed
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Have the writers write; they go on where they stopped."""
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._write, args=(writer,), daemon=True)
            for writer in range(len(self.logs))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have every writer at rest, nothing in flight."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a guest write never ended"

    def area(self, writer: int) -> tuple[int, int]:
        start = self.area_offset + writer * self.area_bytes
        return start, start + self.area_bytes

    @property
    def write_count(self) -> int:
        return sum(len(log) for log in self.logs)

    def _write(self, writer: int) -> None:
        log, rng = self.logs[writer], random.Random(self._seed * 1000 + writer)
        names = list(self.daemon.disks)
        clients: dict[str, NbdClient] = {}
        try:
            for name in names:
                clients[name] = NbdClient.connect(self.daemon.nbd_socket, name)
            while not self._stopping.is_set():
                disk = names[(len(log) + (rng.random() < 0.1)) % len(names)]
                self._write_one(writer, clients[disk], disk, rng)
                time.sleep(self._pause_seconds * rng.random() * 2)
        except LeewardError as error:
            self.errors.append(str(error))
        finally:
            for client in clients.values():
                client.close()

    def _write_one(self, writer: int, client: NbdClient, disk: str, rng: random.Random) -> None:
        log, (start, end) = self.logs[writer], self.area(writer)
        length = rng.choice((512, 1024, 1536, 4096, 4096, 8192, 16384))
        reach = (end - start) if rng.random() < 0.5 else 128 << 10  # half of them collide often
        offset = start + rng.randrange(0, (reach - length) // SECTOR) * SECTOR
        number = len(log) + 1
        is_zeroes = rng.random() < 0.05
        data = bytes(length) if is_zeroes else STAMP.pack(_TAG, writer, number) * (length // 8)
        issued = time.monotonic()
        write = LoggedWrite(disk, offset, data, is_zeroes, issued)
        log.append(write)
        if is_zeroes:
            client.write_zeroes(offset, length)
        else:
            client.write(offset, data)
        write.acknowledged = time.monotonic()
        self.longest_seconds = max(self.longest_seconds, write.acknowledged - issued)


class PrefixChecker:
    """Says whether disk contents are a moment of the writers' history; moments only go forward."""

    def __init__(self, writers: LoggedWriters, base: Images) -> None:
        """base: the disks' content before the first logged write."""
        self._writers = writers
        self._base = {disk: bytes(image) for disk, image in base.items()}
        self._reached = [0] * len(writers.logs)
        self._states = [
            {disk: bytearray(image[slice(*writers.area(w))]) for disk, image in base.items()}
            for w in range(len(writers.logs))
        ]

    @property
    def reached(self) -> tuple[int, ...]:
        """How many records of each writer the state last checked has."""
        return tuple(self._reached)

    def check(self, images: Images) -> list[str]:
        """Return what contradicts `images` being the result of a prefix of what was written:
        per writer its first n records and nothing else, and no record without those that had been
        acknowledged before it was issued, whoever wrote them."""
        problems: list[str] = []
        for writer in range(len(self._writers.logs)):
            problems += self._check_writer(writer, images)
        if not problems:
            problems += self._check_order()
            problems += self._check_rest(images)
        return problems

    def _check_writer(self, writer: int, images: Images) -> list[str]:
        low, high = self._writers.area(writer)
        areas = {disk: bytes(image[low:high]) for disk, image in images.items()}
        newest = max(_newest_stamp(area, writer) for area in areas.values())
        log = self._writers.logs[writer]
        if newest > len(log):
            return [f"writer {writer}: record {newest} was never issued"]
        self._advance(writer, max(newest, self._reached[writer]))
        if self._equals(writer, areas) or self._advance_unseen(writer, areas):
            return []
        return [
            f"writer {writer}: not the first {self._reached[writer]} records (newest seen {newest})"
        ]

    def _advance_unseen(self, writer: int, areas: Mapping[str, bytes]) -> bool:
        """Say whether some of the next records are there, too: zeroes leave no stamp, nor does what
        they were written over. They are counted as reached then."""
        reached = self._reached[writer]
        before = {disk: bytearray(state) for disk, state in self._states[writer].items()}
        last = min(reached + UNSEEN_MAX, len(self._writers.logs[writer]))
        for number in range(reached + 1, last + 1):
            self._advance(writer, number)
            if self._equals(writer, areas):
                return True
        self._states[writer], self._reached[writer] = before, reached
        return False

    def _equals(self, writer: int, areas: Mapping[str, bytes]) -> bool:
        return all(self._states[writer][disk] == area for disk, area in areas.items())

    def _advance(self, writer: int, to: int) -> None:
        start, _ = self._writers.area(writer)
        for write in self._writers.logs[writer][self._reached[writer] : to]:
            at = write.offset - start
            self._states[writer][write.disk][at : at + len(write.data)] = write.data
        self._reached[writer] = to

    def _check_order(self) -> list[str]:
        included = [
            log[reached - 1].issued
            for log, reached in zip(self._writers.logs, self._reached, strict=True)
            if reached
        ]
        newest = max(included, default=0.0)
        problems = []
        for writer, log in enumerate(self._writers.logs):
            number = self._first_missing(writer)
            missing = log[number] if number < len(log) else None
            if missing is not None and 0 < missing.acknowledged < newest:
                problems.append(
                    f"writer {writer}: record {number + 1} is missing, though acknowledged "
                    f"{newest - missing.acknowledged:.6f} s before another that is there was issued"
                )
        return problems

    def _first_missing(self, writer: int) -> int:
        """Return the index of the first record that is certainly not in the state: zeroes written
        over zeros leave no trace, nor does what zeroes have hidden; they may be there."""
        log, first = self._writers.logs[writer], self._reached[writer]
        start, _ = self._writers.area(writer)
        ahead = {disk: bytearray(state) for disk, state in self._states[writer].items()}
        certain = first
        for number in range(first, min(first + UNSEEN_MAX, len(log))):
            write = log[number]
            at = write.offset - start
            ahead[write.disk][at : at + len(write.data)] = write.data
            if ahead == self._states[writer]:
                certain = number + 1
        return certain

    def _check_rest(self, images: Images) -> list[str]:
        """Everything outside the writers' areas is as it was."""
        low = self._writers.area(0)[0]
        high = self._writers.area(len(self._writers.logs) - 1)[1]
        return [
            f"disk {disk} changed outside the writers' areas"
            for disk, image in images.items()
            if bytes(image[:low]) != self._base[disk][:low]
            or bytes(image[high:]) != self._base[disk][high:]
        ]

    def lag(self) -> int:
        """Return how many records issued are not in the state last checked."""
        return self._writers.write_count - sum(self._reached)


def _newest_stamp(area: bytes, writer: int) -> int:
    import numpy as np

    words = np.frombuffer(area, dtype="<u8")
    ours = (words & 0xFFFFFFFF) == (_TAG | writer << 16)
    return int((words[ours] >> np.uint64(32)).max()) if ours.any() else 0
