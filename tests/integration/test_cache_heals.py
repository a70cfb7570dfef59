"""A cache that loses or damages cuts under a running replicator: source and worker heal it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from tests.integration.replication_rig import ITEM, Rig, replication_rig
from tests.integration.storage_daemon import LoggedWriters, wait_until

from leeward.core.clock import SystemClock
from leeward.core.errors import ChainBroken
from leeward.core.units import MIB
from leeward.mobility.baseline import Baseline
from leeward.mobility.due_sweep import DueSweep
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor import arrivals as arrivals_module
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.replica.disk import open_point

pytestmark = pytest.mark.integration


@pytest.fixture
def rig() -> Iterator[Rig]:
    with replication_rig() as made:
        yield made


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch) -> list[Baseline]:
    """Every sweep that is begun, as it is written down; gaps are looked for often."""
    monkeypatch.setattr(arrivals_module, "GAP_SECONDS", 0.2)
    seen: list[Baseline] = []
    write_down = DueSweep.write_down

    def noting(due: DueSweep, baseline: Baseline, added: Sequence[str] = ()) -> None:
        seen.append(baseline)
        write_down(due, baseline, added)

    monkeypatch.setattr(DueSweep, "write_down", noting)
    return seen


class Worker:
    """Applies the rig's cuts into memory, in a thread, but while somebody holds `turn`."""

    def __init__(self, rig: Rig) -> None:
        self.store = MemoryStore("target")
        self.turn = threading.Lock()
        self._cache: ObjectStore = rig.store._store
        self._disks = dict(rig.daemon.disks)
        spec = ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=rig.store.url,
            catalog_url=self.store.url,
            replicas=tuple(
                ReplicaDisk(disk=disk, size_bytes=size, target_url=self.store.url)
                for disk, size in self._disks.items()
            ),
        )
        self.processor = ItemProcessor(
            spec,
            lambda url: self._cache if url == spec.cache_url else self.store,
            SystemClock(),
        )

    def run(self, ending: threading.Event) -> None:
        while not ending.wait(0.05):
            with self.turn, suppress(ChainBroken):
                self.processor.step()

    def newest_ns(self) -> int:
        return self.processor.points[-1].time_ns if self.processor.points else 0

    def content(self) -> dict[str, bytearray]:
        """Return the disks at the newest point."""
        stores = dict.fromkeys(self._disks, self.store)
        disks = open_point(self.store, stores, ITEM, "latest")
        try:
            return {disk: bytearray(one.read(0, one.size_bytes)) for disk, one in disks.items()}
        finally:
            for one in disks.values():
                one.close()


@contextmanager
def working(rig: Rig) -> Iterator[Worker]:
    worker, ending = Worker(rig), threading.Event()
    thread = threading.Thread(target=worker.run, args=(ending,))
    thread.start()
    try:
        yield worker
    finally:
        ending.set()
        thread.join()
        worker.processor.close()


def assert_arrives(rig: Rig, worker: Worker, writers: LoggedWriters) -> None:
    """With the writers at rest, the next recovery point holds exactly what the disks hold."""
    writers.stop()
    stopped_ns = time.time_ns()
    wait_until(lambda: worker.newest_ns() > stopped_ns, "a point after the last write")
    assert worker.content() == rig.daemon.content()
    assert writers.errors == []


def started(rig: Rig, worker: Worker) -> LoggedWriters:
    """Have guests write and points arrive."""
    writers = LoggedWriters(rig.daemon, count=3)
    rig.writers.append(writers)
    writers.start()
    rig.start()
    wait_until(lambda: worker.newest_ns() > 0, "a first point")
    return writers


def objects(rig: Rig, kind: str) -> list[str]:
    return rig.store._store.list(f"items/{ITEM}/{kind}/")


def wipe(rig: Rig) -> None:
    for name in rig.store._store.list(""):
        rig.store._store.delete(name)


def test_a_damaged_cut_costs_a_sweep_of_what_changed(rig: Rig, baselines: list[Baseline]) -> None:
    with working(rig) as worker:
        writers = started(rig, worker)
        with worker.turn:
            wait_until(lambda: len(objects(rig, "cuts")) > 2, "cuts that wait")
            before = worker.processor.applied_sequence
            cut = next(each for each in rig.cuts(before + 1) if each.disks[0].segments)
            name = cut.disks[0].segments[0].name
            data = rig.store._store.get(name)
            rig.store._store.delete(name)
            rig.store._store.create(name, data[:-1] + bytes([data[-1] ^ 1]))
            before = cut.sequence
            baselines.clear()
        wait_until(lambda: worker.processor.applied_sequence > before, "a new chain")
        assert_arrives(rig, worker, writers)
        assert Baseline.CHANGED in baselines
        assert Baseline.FULL not in baselines


def test_a_cache_wiped_under_a_running_replicator_is_made_up_for(
    rig: Rig, baselines: list[Baseline]
) -> None:
    with working(rig) as worker:
        writers = started(rig, worker)
        with worker.turn:
            wait_until(lambda: len(objects(rig, "cuts")) > 2, "cuts that wait")
            wipe(rig)
            baselines.clear()
        wait_until(lambda: bool(baselines), "a sweep")
        assert_arrives(rig, worker, writers)
        assert Baseline.FULL not in baselines


def test_a_cache_wiped_while_the_agent_was_away_is_made_up_for(
    rig: Rig, baselines: list[Baseline]
) -> None:
    with working(rig) as worker:
        writers = started(rig, worker)
        with worker.turn:
            wait_until(lambda: len(objects(rig, "cuts")) > 2, "cuts that wait")
            rig.drop_agent()
            wipe(rig)
            baselines.clear()
        rig.start()
        wait_until(lambda: bool(baselines), "a sweep")
        assert_arrives(rig, worker, writers)


def rot(worker: Worker, name: str) -> None:
    """The object's last byte changes in the target."""
    data = worker.store.get(name)
    worker.store.delete(name)
    worker.store.create(name, data[:-1] + bytes([data[-1] ^ 1]))


def test_a_damaged_replica_is_sent_anew(rig: Rig, baselines: list[Baseline]) -> None:
    """A segment of the first sweep rots in the target: the scrub finds it, the source sweeps
    everything, guests writing all the while."""
    with working(rig) as worker:
        writers = started(rig, worker)
        names = worker.store.list(f"items/{ITEM}/disks/")
        name = max(names, key=worker.store.size)
        with worker.turn:
            rot(worker, name)
            baselines.clear()
        report = worker.processor.scrub()
        assert report.heals
        assert [each.split(":")[0] for each in report.damaged] == [name]
        newest = report.quarantined[-1]
        wait_until(
            lambda: worker.processor.points[-1].id not in worker.processor.quarantined,
            "a point that is whole",
        )
        assert baselines[0] is Baseline.FULL
        assert newest in worker.processor.quarantined
        assert_arrives(rig, worker, writers)
        assert worker.processor.scrub().heals is False


def test_healing_sends_what_was_damaged_and_no_more(rig: Rig) -> None:
    rig.tuning = replace(rig.tuning, digests_seconds=30.0)
    rig.daemon.fill("sys", 8 * MIB, 12 * MIB)
    rig.daemon.fill("data", 10 * MIB, 8 * MIB, seed=2)
    with working(rig) as worker:
        replicator = rig.start()
        wait_until(lambda: worker.newest_ns() > 0, "a first point")
        before = set(worker.store.list(f"items/{ITEM}/disks/data/segments/"))
        rig.daemon.fill("data", 2 * MIB, MIB, seed=3)
        written_ns = time.time_ns()
        wait_until(lambda: worker.newest_ns() > written_ns, "a point with it")
        first = replicator.status().bytes_shipped
        assert first > 20 * MIB
        with worker.turn:  # damaged, though all that is read of it is whole
            # one segment, or more where cuts were made while QEMU passed the write on
            for name in set(worker.store.list(f"items/{ITEM}/disks/data/segments/")) - before:
                worker.store._objects[name] = worker.store.get(name) + b"x"
        assert worker.processor.scrub().heals
        wait_until(
            lambda: worker.processor.points[-1].id not in worker.processor.quarantined,
            "a point that is whole",
        )
        assert MIB <= replicator.status().bytes_shipped - first < 2 * MIB
        assert worker.content() == rig.daemon.content()
        assert worker.processor.scrub().heals is False
