"""One item whose parts are all real: a storage daemon, its writers, tap, agent, worker, stores.

Owns: starting, killing and ending its processes, and the question whether its recovery points are
moments of the writers' history. Must not know: which fault comes when.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.integration.storage_daemon import (
    LoggedWriters,
    PrefixChecker,
    StorageDaemon,
    wait_until,
)
from tests.simulation.real_sides import CACHE_FAILS, ITEM, SideConfig

from leeward.core.errors import NotFound
from leeward.core.units import MIB
from leeward.fabric.processes import ProcessIdentity, end, read_pid_file
from leeward.mobility.watchdog_client import stop_watchdog
from leeward.model.recovery import Consistency, point_id
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut
from leeward.replica.disk import PointDisk, open_map
from leeward.replica.layout import segment_name
from leeward.replica.manifest import applied_prefix, parse_sequence
from leeward.replica.segment import ZEROES, decode_segment

DISKS = (("sys", MIB), ("data", 640 << 10))
"""Small: a point is read from dozens of segments, not from hundreds."""
WRITERS = 3
AREA_BYTES = 128 << 10
WRITE_PAUSE_SECONDS = 0.006
STALL_SECONDS_MAX = 10.0
"""A hang guard, not a bar: a guest's write that takes longer has not been freed by anybody."""
OPENED_EVERY = 25
_REPOSITORY = Path(__file__).parents[2]


class RealItem:
    """Used by one thread. `problems`: what contradicts the promise."""

    def __init__(
        self, *, seed: int, format: str, bytes_per_second: int = 0, mutant: str = ""
    ) -> None:
        self.root = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
        self.shm = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="lw"))
        self.format = format
        self.problems: list[str] = []
        self.points_checked = 0
        self._store = create_file_store(self.root / "target")
        self._cache = create_file_store(self.root / "cache")
        self._config = SideConfig(
            root=str(self.root), shm=str(self.shm), disks=DISKS, mutant=mutant
        )
        self._config.save(self.root / "sides.json")
        self._sides: dict[str, subprocess.Popen[bytes]] = {}
        self.daemon = StorageDaemon(
            self.root, dict(DISKS), format=format, bytes_per_second=bytes_per_second
        )
        self._catalog: Catalog | None = None
        self._replayed_to = (0, 0)
        self._images = {disk: bytearray(size) for disk, size in DISKS}
        self.daemon.start()
        self.daemon.fill("sys", 512 << 10, 512 << 10, seed=seed)
        self.writers = LoggedWriters(
            self.daemon,
            count=WRITERS,
            area_bytes=AREA_BYTES,
            seed=seed,
            pause_seconds=WRITE_PAUSE_SECONDS,
        )
        self._checker = PrefixChecker(self.writers, self.daemon.content())
        self.writers.start()
        self.start("agent")
        self.start("worker")

    # --- processes

    def start(self, side: str) -> None:
        """Have that side running."""
        with (self.root / f"{side}.log").open("ab") as log:
            self._sides[side] = subprocess.Popen(
                [sys.executable, "-m", "tests.simulation.real_sides", side, self._sides_file],
                cwd=_REPOSITORY,
                stdout=log,
                stderr=log,
            )

    @property
    def _sides_file(self) -> str:
        return str(self.root / "sides.json")

    def signal(self, side: str, number: signal.Signals) -> None:
        """Send the side a signal; SIGKILL is waited for."""
        process = self._sides[side]
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait()

    def tap(self) -> ProcessIdentity | None:
        """Return the living tap, if there is one."""
        return read_pid_file(self.root / "run" / "tap" / ITEM / "tap.pid")

    def watchdog(self) -> ProcessIdentity | None:
        return read_pid_file(self.root / "run" / "tap" / "watchdog.pid")

    def set_cache_failing(self, is_failing: bool) -> None:
        switch = self.root / CACHE_FAILS
        if is_failing:
            switch.touch()
        else:
            switch.unlink(missing_ok=True)

    def lose_journals(self) -> None:
        """Make no journal exist, as after a reboot; the tap is dead already."""
        shutil.rmtree(self.shm / ITEM, ignore_errors=True)

    def restart_daemon(self, *, cleanly: bool) -> None:
        """End the storage daemon under load and start it anew. What was in flight is written again,
        as a journalling guest would, before anybody else sees the disks."""
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGTERM if cleanly else signal.SIGKILL)
        self.daemon.process.wait(60)
        self.writers.stop()
        self.writers.errors.clear()
        qmp = self.daemon.qmp_socket
        qmp.unlink(missing_ok=True)
        self.daemon.qmp_socket = qmp.with_name("guest-qmp.new")
        self.daemon.start()
        self._write_again()
        self.daemon.qmp_socket.rename(qmp)
        self.daemon.qmp_socket = qmp
        self.writers.start()

    def _write_again(self) -> None:
        for log in self.writers.logs:
            if not log or log[-1].acknowledged:
                continue
            write = log[-1]
            with NbdClient.connect(self.daemon.nbd_socket, write.disk) as client:
                client.write(write.offset, write.data)
            write.acknowledged = time.monotonic()

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for process in self._sides.values():
            process.kill()
            process.wait()
        for running in (self.tap(), self.watchdog()):
            if running is not None:
                with suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGCONT)
                end(running, grace_seconds=0)
        self.daemon.kill()
        with suppress(AssertionError):
            self.writers.stop()
        stop_watchdog(self.root / "run")
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.shm, ignore_errors=True)

    # --- what must hold

    def check(self) -> int:
        """Check the recovery points listed since the last call; return how many there were.

        Each is made of the one before and the segments that its cut added; now and then one is
        opened as a failover would, from its checkpoint.
        """
        try:
            if self._catalog is None:
                self._catalog = Catalog.open(self._store, ITEM)
            self._catalog.refresh()
        except NotFound:
            return 0
        self._check_acknowledged(self._catalog)
        before = self.points_checked
        fresh = [cut for cut in self._catalog._state.cuts if cut.position > self._replayed_to]
        for cut in fresh:
            self._replay(cut)
            self._replayed_to = cut.position
            if cut.consistency is not Consistency.NONE and not self.problems:
                self._check_point(self._catalog, cut)
        self._forget_what_was_checked()
        return self.points_checked - before

    def _replay(self, cut: AppliedCut) -> None:
        for entry in cut.disks:
            image = self._images[entry.disk]
            for segment_id in entry.segments:
                data = self._store.get(segment_name(ITEM, entry.disk, segment_id))
                segment = decode_segment(data)
                unit, content = segment.header.unit, segment.data()
                for extent in segment.extents:
                    start, length = int(extent["start"]) * unit, int(extent["count"]) * unit
                    at = int(extent["position"])
                    is_zero = at == ZEROES
                    new = bytes(length) if is_zero else content[at * unit : at * unit + length]
                    image[start : min(start + length, len(image))] = new[: len(image) - start]

    def _check_point(self, catalog: Catalog, cut: AppliedCut) -> None:
        self.points_checked += 1
        is_doubted = bool(self._checker.check(self._images))
        if is_doubted or self.points_checked % OPENED_EVERY == 0:
            # what counts is how it opens: logs are compacted beneath the replay
            self._images = self._opened(catalog, point_id(*cut.position))
            if problems := self._checker.check(self._images):
                self.problems.append(f"cut {cut.sequence}: {problems[0]}")

    def _opened(self, catalog: Catalog, point: str) -> dict[str, bytearray]:
        """Return the point's disks as a failover would have them."""
        images = {}
        for disk, size in DISKS:
            block_map = open_map(self._store, catalog, disk, point)
            with PointDisk(self._store, block_map, size) as opened:
                images[disk] = bytearray(opened.read(0, size))
        return images

    def _check_acknowledged(self, catalog: Catalog) -> None:
        newest = catalog.newest_cut.position if catalog.newest_cut is not None else (0, 0)
        for name in self._cache.list(applied_prefix(ITEM)):
            if parse_sequence(name) > newest:
                catalog.refresh()
                assert catalog.newest_cut is not None
                if parse_sequence(name) > catalog.newest_cut.position:
                    self.problems.append(f"{name} is not in the catalog")

    def _forget_what_was_checked(self) -> None:
        for log, reached in zip(self.writers.logs, self._checker.reached, strict=True):
            for write in reversed(log[:reached]):
                if not write.data:
                    break
                write.data = b""

    def finish(self, *, seconds: float) -> None:
        """With the writers at rest, the next recovery point holds exactly what the disks hold."""
        self.writers.stop()
        if self.writers.errors:
            self.problems.append(f"the guest got an error: {self.writers.errors[0]}")
        is_slow = bool(self.daemon.bytes_per_second)  # then it is the disk that is waited for
        if self.writers.longest_seconds > STALL_SECONDS_MAX and not is_slow:
            self.problems.append(f"a write took {self.writers.longest_seconds:.1f} s")
        rested_ns, wanted = time.time_ns(), self.daemon.content()
        try:
            wait_until(lambda: self._has_point_since(rested_ns), "a last point", seconds=seconds)
        except AssertionError as error:
            self.problems.append(str(error))
            return
        self.check()
        assert self._catalog is not None
        if not self.problems:
            opened = self._opened(self._catalog, self._catalog.points[-1].id)
            for disk in wanted:
                if opened[disk] != wanted[disk]:
                    self.problems.append(f"the last point's disk {disk} is not what was written")

    def _has_point_since(self, time_ns: int) -> bool:
        self.check()
        return bool(
            self.problems
            or (
                self._catalog is not None
                and self._catalog.points
                and self._catalog.points[-1].time_ns >= time_ns
            )
        )
