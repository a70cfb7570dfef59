"""A point that something was booted from outlives its tier, its reader's process and its pin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from tests.simulation.faults import Fault, FaultPlan
from tests.simulation.readers import FullStore
from tests.simulation.world import DISKS, ITEM, URLS, HandClock, Source, World, drain

from leeward.core.errors import NotFound, Unavailable
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.processor import compaction as compaction_module
from leeward.processor.garbage import GRACE_SECONDS
from leeward.processor.item import ItemProcessor
from leeward.replica import holds as holds_module
from leeward.replica.disk import open_point
from leeward.replica.holds import EXPIRY_SECONDS, Hold, HoldWatch, release_holds
from leeward.replica.pins import EXPIRY_SECONDS as PIN_EXPIRY_SECONDS

HOLDER = "export test-web"


def all_but_newest(points: Sequence[RecoveryPoint]) -> list[str]:
    return [point.id for point in points[:-1]]


@dataclass
class Booted:
    """An item of whose first point a reader was killed, and a policy that keeps nothing."""

    world: World = field(default_factory=World)
    clock: HandClock = field(default_factory=HandClock)
    source: Source = field(default_factory=lambda: Source(3))

    def __post_init__(self) -> None:
        with self.world.uploader() as uploader, self.world.processor() as processor:
            for _ in range(6):
                uploader.upload(self.source.next_cut())
                drain(processor)
        self.point = self.world.points()[1]

    def boot(self, store: ObjectStore | None = None) -> None:
        """Read the point, and be killed: nothing is closed, nothing renewed any more."""
        stores = {disk.name: self.world.stores[URLS[disk.name]] for disk in DISKS}
        before = set(self.world.catalog_store.list(f"items/{ITEM}/pins/"))
        disks = open_point(
            store or self.world.catalog_store, stores, ITEM, self.point.id, holder=HOLDER
        )
        pins = set(self.world.catalog_store.list(f"items/{ITEM}/pins/")) - before
        kept = {name: self.world.catalog_store.get(name) for name in pins}
        for disk, content in zip(DISKS, self.source.contents[self.point.time_ns], strict=True):
            assert disks[disk.name].read(0, disk.size_bytes) == content
            disks[disk.name].close()
        for name, data in kept.items():
            self.world.catalog_store.create(name, data)

    def age(self, processor: ItemProcessor) -> None:
        """Points are dropped, pins expire, everything that nobody needs is deleted."""
        for seconds in (0.0, PIN_EXPIRY_SECONDS, GRACE_SECONDS, GRACE_SECONDS):
            self.clock.now += seconds
            processor.retire_points(all_but_newest)
            processor.reclaim(is_thorough=True)

    @property
    def ids(self) -> list[str]:
        return [point.id for point in self.world.points()]

    @property
    def holds(self) -> list[str]:
        return self.world.catalog_store.list(f"items/{ITEM}/holds/")


@pytest.fixture
def item(monkeypatch: pytest.MonkeyPatch) -> Booted:
    monkeypatch.setattr(compaction_module, "DEAD_SHARE_MAX", 0.01)
    monkeypatch.setattr(compaction_module, "DEAD_SHARE_AFTER", 0.0)
    return Booted()


def test_who_starts_again_finds_the_point_and_its_data(item: Booted) -> None:
    item.boot()
    newest = item.ids[-1]
    with item.world.processor(clock=item.clock) as processor:
        item.age(processor)
        assert item.ids == [item.point.id, newest]
        assert item.world.catalog_store.list(f"items/{ITEM}/pins/") == [], "no pin helps it"
        item.boot()
        item.world.check(item.source)
        release_holds(item.world.catalog_store, ITEM, HOLDER)
        assert item.holds == []
        item.age(processor)
        assert item.ids == [newest]
        with pytest.raises(NotFound):
            item.boot()
        assert set(item.world.replica_objects()) == item.world.needed_objects()


def test_a_new_worker_and_a_new_owner_keep_it_as_well(item: Booted) -> None:
    item.boot()
    for _ in range(3):
        with item.world.processor(clock=item.clock) as processor:
            item.age(processor)
    assert item.point.id in item.ids


def test_each_holder_holds_for_itself(item: Booted) -> None:
    item.boot()
    other = Hold(item.world.catalog_store, ITEM, item.point.id, "export other")
    release_holds(item.world.catalog_store, ITEM, HOLDER)
    with item.world.processor(clock=item.clock) as processor:
        item.age(processor)
        assert item.point.id in item.ids
        other.stop()
        release_holds(item.world.catalog_store, ITEM, "export other")
        item.age(processor)
    assert item.point.id not in item.ids


def test_a_holder_that_reads_another_point_lets_the_first_go(item: Booted) -> None:
    store = item.world.catalog_store
    Hold(store, ITEM, item.ids[1], HOLDER).stop()
    Hold(store, ITEM, item.ids[3], HOLDER).stop()
    assert HoldWatch(store, ITEM, lambda: 0.0).points() == {item.ids[3]}


def test_a_holder_that_never_comes_back_holds_nothing_for_ever(item: Booted) -> None:
    item.boot()
    with item.world.processor(clock=item.clock) as processor:
        item.age(processor)
        item.clock.now += EXPIRY_SECONDS / 2
        item.age(processor)
        assert item.point.id in item.ids
        Hold(item.world.catalog_store, ITEM, item.point.id, HOLDER).stop()  # it was there again
        item.clock.now += EXPIRY_SECONDS / 2
        item.age(processor)
        assert item.point.id in item.ids
        item.clock.now += EXPIRY_SECONDS
        item.age(processor)
        assert item.point.id not in item.ids
    assert item.holds == []


def test_nothing_is_dropped_while_it_cannot_be_told_what_is_held(item: Booted) -> None:
    item.boot()
    before = item.ids
    for at in range(1, 10):  # every operation of the drop fails once
        plan = FaultPlan({at: Fault.LOST_REPLY if at % 2 else Fault.LOST_REQUEST})
        with item.world.processor(plan, clock=item.clock) as processor:
            try:
                processor.retire_points(all_but_newest)
            except Unavailable:  # asked again, as the loop does
                processor.retire_points(all_but_newest)
        assert item.point.id in item.ids
        assert item.ids[-1] == before[-1]


def test_an_idle_item_asks_for_no_holds(item: Booted) -> None:
    with item.world.processor(clock=item.clock) as processor:
        processor.retire_points(all_but_newest)
        plan = FaultPlan()
        with item.world.processor(plan, clock=item.clock) as other:
            other.take_over()
            count = plan.count
            assert other.retire_points(all_but_newest) == ()
            assert plan.count == count


def test_a_store_that_was_full_has_the_hold_as_soon_as_it_can(
    item: Booted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds_module, "AGAIN_SECONDS", 0.01)
    full = FullStore(item.world.catalog_store)
    hold = Hold(full, ITEM, item.point.id, HOLDER)
    assert item.holds == []
    full.is_full = False
    wait_until_held(item)
    hold.stop()


def test_a_hold_stays_until_the_next_but_one_is_there(item: Booted) -> None:
    hold = Hold(item.world.catalog_store, ITEM, item.point.id, HOLDER)
    first = item.holds
    for _ in range(5):
        hold.renew()
        assert len(item.holds) == 2
    assert first[0] not in item.holds
    hold.stop()


def wait_until_held(item: Booted) -> None:
    for _ in range(60_000):
        if item.holds:
            return
        time.sleep(0.001)
    raise AssertionError("it does not come")
