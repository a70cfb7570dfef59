"""Replication of a storage daemon into a file store, and what a target would make of its cuts.

Owns: directories, start and end of everything, replaying manifests. Must not know: what a test
wants to show.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.storage_daemon import LoggedWriters, StorageDaemon, wait_until

from leeward.core.errors import LeewardError, NotFound, Unavailable
from leeward.core.units import MIB
from leeward.fabric.processes import end, read_pid_file
from leeward.mobility.replicator import Places, Replicator, Tuning
from leeward.mobility.tap_client import stop_watchdog
from leeward.model.recovery import Consistency, ReplicationState
from leeward.object_store.file import create_file_store
from leeward.object_store.store import Buffer, ObjectStore
from leeward.protocol.fabric import ReplicationSpec
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    applied_name,
    cut_name,
    decode_manifest,
    encode_applied,
    manifest_sha256,
)
from leeward.replica.segment import ZEROES, decode_segment

ITEM = "item-1"
DISKS = {"sys": 32 * MIB, "data": 24 * MIB}


class FaultyStore:
    """A store that can be made to refuse."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.refusal = ""

    @property
    def url(self) -> str:
        return self._store.url

    def _check(self) -> None:
        if self.refusal:
            raise Unavailable(self.refusal)

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._check()
        self._store.create(name, data)

    def get(self, name: str) -> bytes:
        self._check()
        return self._store.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._check()
        return self._store.get_range(name, offset, length)

    def size(self, name: str) -> int:
        self._check()
        return self._store.size(name)

    def list(self, prefix: str) -> list[str]:
        self._check()
        return self._store.list(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        self._check()
        return self._store.sizes(prefix)

    def delete(self, name: str) -> None:
        self._check()
        self._store.delete(name)


@dataclass
class Target:
    """Applies an item's cuts in order, as the worker of the target region would."""

    store: ObjectStore
    disks: Mapping[str, int]
    epoch: int = 1
    sequence: int = 0
    parent: str = ""
    images: dict[str, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = {disk: bytearray(size) for disk, size in self.disks.items()}

    def apply_next(self) -> CutManifest | None:
        """Apply the next cut and return it; None when there is none yet."""
        try:
            data = self.store.get(cut_name(ITEM, self.epoch, self.sequence + 1))
        except NotFound:
            return None
        cut = decode_manifest(data)
        assert (cut.sequence, cut.parent_sha256) == (self.sequence + 1, self.parent)
        for disk in cut.disks:
            for ref in disk.segments:
                self._apply(disk.disk, self.store.get(ref.name), ref.sha256)
        self.sequence, self.parent = cut.sequence, manifest_sha256(data)
        return cut

    def _apply(self, disk: str, data: bytes, sha256: str) -> None:
        segment = decode_segment(data, sha256=sha256)
        unit, content = segment.header.unit, segment.data()
        image = self.images[disk]
        for extent in segment.extents:
            start, length = int(extent["start"]) * unit, int(extent["count"]) * unit
            if int(extent["position"]) == ZEROES:
                image[start : start + length] = bytes(length)
            else:
                at = int(extent["position"]) * unit
                image[start : start + length] = content[at : at + length]

    def acknowledge(self) -> None:
        """Say in the cache that all applied so far is durable."""
        marker = AppliedMarker(sequence=self.sequence, manifest_sha256=self.parent)
        name = applied_name(ITEM, self.epoch, self.sequence)
        self.store.create(name, encode_applied(self.epoch, marker))


class Rig:
    """A storage daemon under replication."""

    def __init__(
        self,
        root: Path,
        shm: Path,
        *,
        disks: Mapping[str, int] = DISKS,
        tuning: Tuning | None = None,
        iops: int = 0,
        format: str = "raw",
    ) -> None:
        self.daemon = StorageDaemon(root, disks, iops=iops, format=format)
        self.store = FaultyStore(create_file_store(root / "cache"))
        self.tuning = tuning or Tuning(
            buffer_bytes=MIB,
            buffer_count=16,
            idle_cut_seconds=0.5,
            rotate_seconds=0.5,
            applied_seconds=0.1,
            digests_seconds=0.5,
        )
        self.places = Places(
            run_dir=root / "run",
            shm_dir=shm,
            data_dir=root / "data",
            nbd_socket=self.daemon.nbd_socket,
        )
        self.spec = ReplicationSpec(
            item_id=ITEM,
            epoch=1,
            vm_id="vm-1",
            disks=tuple(disks),
            cache_url=self.store.url,
            cut_interval_seconds=0.2,
            vm_config={"name": "vm"},
        )
        self.replicator: Replicator | None = None
        self.writers: list[LoggedWriters] = []

    def start(self) -> Replicator:
        """Have a replicator running, as a fresh agent would."""
        self.replicator = Replicator(
            self.spec,
            open_session=self.daemon.session,
            open_store=lambda _url: self.store,
            places=self.places,
            tuning=self.tuning,
        )
        self.replicator.start()
        return self.replicator

    def drop_agent(self) -> None:
        """Have no replicator and no QMP session; tap and watchdog go on."""
        if self.replicator is not None:
            self.replicator.stop(detach=False)
            self.replicator = None
        self.daemon.hang_up()

    @property
    def tap_pid(self) -> int:
        """The running tap's process id, 0 while there is none."""
        process = read_pid_file(self.places.run_dir / "tap" / ITEM / "tap.pid")
        return process.pid if process is not None else 0

    def signal_tap(self, number: signal.Signals) -> int:
        """Send the tap a signal; return the process id it had."""
        wait_until(lambda: self.tap_pid != 0, "a tap")
        pid = self.tap_pid
        os.kill(pid, number)
        return pid

    def lose_tap(self) -> None:
        """Make neither tap nor watchdog run nor any journal exist, as after a reboot."""
        process = read_pid_file(self.places.run_dir / "tap" / ITEM / "tap.pid")
        if process is not None:
            end(process, grace_seconds=0)
        stop_watchdog(self.places.run_dir)
        for path in self.places.shm_dir.iterdir():
            shutil.rmtree(path)

    def wait_state(self, state: ReplicationState, *, seconds: float = 120.0) -> None:
        assert self.replicator is not None
        replicator = self.replicator
        wait_until(
            lambda: replicator.status().state is state, f"state {state.value}", seconds=seconds
        )

    def wait_point(self, *, seconds: float = 120.0) -> int:
        """Return the sequence of a consistent cut whose mark is later than this call."""
        called = time.time_ns()
        first = self.last_sequence() + 1

        def later() -> list[int]:
            return [
                cut.sequence
                for cut in self.cuts(first)
                if cut.consistency is not Consistency.NONE and cut.time_ns >= called
            ]

        wait_until(lambda: bool(later()), f"a consistent cut after {first}", seconds=seconds)
        return later()[0]

    def last_sequence(self) -> int:
        names = self.store._store.list(f"items/{ITEM}/cuts/")
        return max((int(name.rpartition("-")[2]) for name in names), default=0)

    def cuts(self, first: int) -> Iterator[CutManifest]:
        for sequence in range(first, self.last_sequence() + 1):
            yield decode_manifest(self.store._store.get(cut_name(ITEM, 1, sequence)))

    def target(self) -> Target:
        return Target(self.store._store, self.daemon.disks)

    def close(self) -> None:
        """End everything this rig has started."""
        self.store.refusal = ""
        with suppress(LeewardError):
            self.drop_agent()
        for writers in self.writers:
            writers.stop()
        self.daemon.kill()
        process = read_pid_file(self.places.run_dir / "tap" / ITEM / "tap.pid")
        if process is not None:
            end(process, grace_seconds=0)
        stop_watchdog(self.places.run_dir)


@contextmanager
def replication_rig(
    *,
    disks: Mapping[str, int] = DISKS,
    tuning: Tuning | None = None,
    iops: int = 0,
    format: str = "raw",
) -> Iterator[Rig]:
    """Give a rig whose daemon runs and whose replicator does not yet."""
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    shm = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="lw"))
    rig = Rig(root, shm, disks=disks, tuning=tuning, iops=iops, format=format)
    try:
        rig.daemon.start()
        yield rig
    finally:
        rig.close()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(shm, ignore_errors=True)
