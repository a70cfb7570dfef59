"""A host that lost everything but its disks sends only what the target has not: digests tell."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.replication_rig import ITEM, Rig, replication_rig
from tests.integration.storage_daemon import LoggedWriters, PrefixChecker, wait_until

from leeward.core.clock import SystemClock
from leeward.core.units import MIB
from leeward.model.recovery import ReplicationState
from leeward.object_store.file import create_file_store
from leeward.object_store.store import ObjectStore
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.replica.digests import digests_prefix
from leeward.replica.disk import open_point

SILENCE_SECONDS = 30.0
pytestmark = pytest.mark.integration


class Worker:
    """The item's worker: a real processor, stepped by a thread until `stop`."""

    def __init__(self, rig: Rig, target: ObjectStore, *, epoch: int = 1) -> None:
        self.target = target
        stores = {rig.store.url: rig.store, target.url: target}
        spec = ProcessingSpec(
            item_id=ITEM,
            epoch=epoch,
            cache_url=rig.store.url,
            catalog_url=target.url,
            replicas=tuple(
                ReplicaDisk(disk=disk, size_bytes=size, target_url=target.url)
                for disk, size in rig.daemon.disks.items()
            ),
        )
        self.processor = ItemProcessor(spec, stores.__getitem__, SystemClock())
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            if self.processor.step().idle:
                self._ending.wait(0.02)

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(60)
        self.processor.close()

    def wait_applied(self, sequence: int) -> None:
        wait_until(lambda: self.processor.applied_sequence >= sequence, f"cut {sequence} applied")

    def contents(self, point_id: str = "latest") -> dict[str, bytes]:
        """Return every disk as it was at a point."""
        stores = dict.fromkeys(self.processor._stores, self.target)
        found = {}
        for disk, opened in open_point(self.target, stores, ITEM, point_id).items():
            with opened:
                found[disk] = opened.read(0, opened.size_bytes)
        return found


@contextmanager
def replicated() -> Iterator[tuple[Rig, Worker]]:
    """A rig whose disks hold 20 MiB, all of it in the target."""
    with replication_rig() as rig:
        rig.tuning = replace(rig.tuning, digests_seconds=SILENCE_SECONDS)
        rig.daemon.fill("sys", 8 * MIB, 12 * MIB)
        rig.daemon.fill("data", 10 * MIB, 8 * MIB, seed=2)
        worker = Worker(rig, create_file_store(rig.places.data_dir / "target"))
        try:
            rig.start()
            wait_point(rig, worker)
            yield rig, worker
        finally:
            worker.stop()


def wait_point(rig: Rig, worker: Worker) -> None:
    """Return when a point made after this call is listed."""
    known = worker.processor.points[-1].sequence if worker.processor.points else 0
    rig.wait_state(ReplicationState.STREAMING)
    wait_until(
        lambda: bool(worker.processor.points) and worker.processor.points[-1].sequence > known + 1,
        "a new point is listed",
    )


def lose_host(rig: Rig) -> None:
    """The host dies: guest, agent, tap and everything in memory; only disks and files are left."""
    rig.drop_agent()
    rig.daemon.kill()
    rig.lose_tap()


def change(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def punch_hole(image: Path, offset: int, length: int) -> None:
    where = ["--offset", str(offset), "--length", str(length)]
    subprocess.run(["fallocate", "--punch-hole", *where, str(image)], check=True)


def test_a_lost_host_sends_only_what_differs() -> None:
    with replicated() as (rig, worker):
        assert rig.replicator is not None
        first = rig.replicator.status().bytes_shipped
        assert first > 19 * MIB
        lose_host(rig)
        # what reached the target and was lost with the host's cache, and the other way round
        change(rig.daemon.image("sys"), 9 * MIB + 5, b"only here")
        change(rig.daemon.image("data"), 10 * MIB, bytes(64 << 10))
        change(rig.daemon.image("data"), 23 * MIB, b"where the target has nothing")
        punch_hole(rig.daemon.image("data"), 12 * MIB, 128 << 10)
        rig.daemon.start()
        rig.start()
        wait_point(rig, worker)
        assert rig.replicator is not None
        assert rig.replicator.status().bytes_shipped < MIB
        assert worker.contents() == rig.daemon.content()
        assert rig.store.list(digests_prefix(ITEM)) == []


def test_points_are_whole_though_writers_go_on_during_the_comparison() -> None:
    with replicated() as (rig, worker):
        writers = LoggedWriters(rig.daemon, area_offset=2 * MIB)
        rig.writers.append(writers)
        lose_host(rig)
        change(rig.daemon.image("sys"), 15 * MIB, b"changed while nobody looked")
        rig.daemon.start()
        checker = PrefixChecker(writers, rig.daemon.content())
        known = {point.id for point in worker.processor.points}
        writers.start()
        rig.start()
        wait_point(rig, worker)
        rig.signal_tap(signal.SIGKILL)
        wait_point(rig, worker)
        fresh = [point.id for point in worker.processor.points if point.id not in known]
        assert len(fresh) >= 2
        writers.stop()
        # a slow machine makes many; in their order, for the checker goes on from one to the next
        for point_id in dict.fromkeys([*fresh[:4], fresh[len(fresh) // 2], *fresh[-4:]]):
            assert checker.check(worker.contents(point_id)) == []
        wait_point(rig, worker)
        assert worker.contents() == rig.daemon.content()


def test_a_target_that_does_not_answer_gets_everything() -> None:
    with replicated() as (rig, worker):
        lose_host(rig)
        worker.stop()
        rig.tuning = replace(rig.tuning, digests_seconds=0.5)
        rig.daemon.start()
        replicator = rig.start()
        rig.wait_state(ReplicationState.STREAMING)
        wait_until(lambda: replicator.status().bytes_shipped > 19 * MIB, "everything was sent")
