"""Compaction and deleting, with their process killed and its stores failing at every operation.

What is checked whatever happens: every listed point is byte for byte what had been written, and in
the end nothing is stored that nobody needs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from tests.simulation.faults import Fault, FaultPlan, Killed
from tests.simulation.readers import FullStore
from tests.simulation.world import DISKS, ITEM, URLS, HandClock, Source, World, drain

from leeward.core.errors import Conflict, Fenced, ObjectMissing, Unavailable
from leeward.model.recovery import Consistency
from leeward.processor import apply as apply_module
from leeward.processor import compaction as compaction_module
from leeward.processor.apply import Numbers
from leeward.processor.garbage import GRACE_SECONDS, Stand
from leeward.processor.item import ItemProcessor
from leeward.replica import pins as pins_module
from leeward.replica.catalog_state import State
from leeward.replica.disk import open_point
from leeward.replica.layout import make_segment_id, parse_pin, segment_name
from leeward.replica.pins import EXPIRY_SECONDS, Pin, PinWatch
from leeward.replica.segment import read_table
from leeward.replica.synthetic import write_full_item

CUTS = 12
SYSTEM = DISKS[0].name
KEPT = (3, 7, 8)
"""Indexes of the points that retention leaves, beside the newest."""
TRIES_MAX = 20
EVERY = pytest.mark.parametrize(
    "every", [48, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
"""Operations at which something happens."""


@pytest.fixture(autouse=True)
def short_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps come often enough for short logs, and little dead is worth a compaction."""
    monkeypatch.setattr(apply_module, "CHECKPOINT_SEGMENTS", 5)
    monkeypatch.setattr(compaction_module, "DEAD_SHARE_MAX", 0.01)
    monkeypatch.setattr(compaction_module, "DEAD_SHARE_AFTER", 0.0)


@dataclass
class Thinned:
    """An item most of whose points have been dropped."""

    seed: int
    world: World = field(default_factory=World)
    clock: HandClock = field(default_factory=HandClock)

    def __post_init__(self) -> None:
        self.source = Source(self.seed)
        with self.world.uploader() as uploader, self.world.processor() as processor:
            for number in range(CUTS):
                kind = Consistency.NONE if number % 5 == 1 else Consistency.CRASH
                uploader.upload(self.source.next_cut(consistency=kind))
                drain(processor)
            ids = [point.id for point in self.world.points()]
            kept = {ids[index] for index in KEPT} | {ids[-1]}
            processor.drop_points(lambda points: [p.id for p in points if p.id not in kept])

    def settle(self, processor: ItemProcessor) -> None:
        """Everything that can be reclaimed is, however long it takes."""
        processor.reclaim(is_thorough=True)
        self.clock.now += GRACE_SECONDS
        processor.reclaim(is_thorough=True)

    def check(self) -> None:
        self.world.check(self.source)

    def check_nothing_is_left_over(self) -> None:
        assert set(self.world.replica_objects()) == self.world.needed_objects()


@pytest.mark.parametrize("seed", range(6))
def test_space_is_reclaimed_and_every_point_stays_what_it_was(seed: int) -> None:
    item = Thinned(seed)
    before = sum(item.world.replica_objects().values())
    with item.world.processor(clock=item.clock) as processor:
        points = item.world.points()
        report = processor.reclaim(is_thorough=True, dry_run=True)
        assert report.reclaimable_bytes > 0
        assert sum(item.world.replica_objects().values()) == before, "a dry run changes nothing"
        report = processor.reclaim()
        assert report.rewritten_bytes > 0
        assert report.freed_objects == 0, "somebody may be reading what has just become garbage"
        item.check()
        item.settle(processor)
        assert item.world.points() == points
        item.check()
        item.check_nothing_is_left_over()
        assert sum(item.world.replica_objects().values()) < before
        report = processor.reclaim(is_thorough=True, dry_run=True)
        assert report.garbage_bytes == report.reclaimable_bytes == 0

        with item.world.uploader() as uploader:  # and life goes on
            for _ in range(3):
                uploader.upload(item.source.next_cut())
                drain(processor)
                item.settle(processor)
                item.check()
        item.check_nothing_is_left_over()


@EVERY
def test_what_comes_while_a_compaction_runs_is_not_touched_by_it(every: int) -> None:
    """A cut is applied, a map stored and a point dropped between any two of its operations."""
    for at in range(every // 2 + 1, 500, every):
        item = Thinned(3)
        plan = Interrupting()
        with item.world.uploader() as uploader, item.world.processor(plan, clock=item.clock) as p:
            p.take_over()

            def interrupt(item=item, uploader=uploader, p=p, plan=plan) -> None:  # type: ignore[no-untyped-def]
                if not p._lock.acquire(blocking=False):
                    plan.at_count += 1  # within a commit: at the next operation
                    return
                p._lock.release()
                plan.interrupt = None
                for _ in range(3):
                    uploader.upload(item.source.next_cut())
                    drain(p)
                oldest = item.world.points()[0].id
                p.drop_points(lambda points: [oldest])

            plan.at_count, plan.interrupt = plan.count + at, interrupt
            p.reclaim()
            if plan.interrupt is not None:
                assert at > 20
                return
            item.check()
            item.settle(p)
            item.settle(p)
            item.check()
            item.check_nothing_is_left_over()


@dataclass
class Interrupting(FaultPlan):
    """Does something before an operation."""

    at_count: int = 1 << 60
    interrupt: Callable[[], None] | None = None

    def run(self, label: str, operation: Callable) -> object:  # type: ignore[override, type-arg]
        if self.interrupt and self.count + 1 >= self.at_count:
            self.interrupt()
        return super().run(label, operation)


@EVERY
@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_a_fault_at_every_operation_costs_no_point_and_leaves_nothing(
    fault: Fault, every: int
) -> None:
    made = Thinned(4)
    for at in range(1 + list(Fault).index(fault) * every // 4, 500, every):
        if not reclaim_with_faults(copy_of(made), {at: fault}):
            break
    assert 60 < at < 450


def copy_of(made: Thinned) -> Thinned:
    item = copy.copy(made)
    item.clock = HandClock()
    item.world = World()
    for url, store in made.world.stores.items():
        item.world.stores[url]._objects.update(store._objects)
    return item


def reclaim_with_faults(item: Thinned, faults: Mapping[int, Fault]) -> bool:
    """Reclaim all space, beginning anew after each death; say whether a fault was met."""
    plan = FaultPlan(faults)
    is_met = False
    for _ in range(TRIES_MAX):
        with item.world.processor(plan, clock=item.clock) as processor:
            for _ in range(3):
                try:
                    item.settle(processor)
                except Fenced:
                    raise
                except (Unavailable, Conflict):
                    pass
                except Killed:
                    break
                item.check()
        is_met = is_met or plan.count >= min(faults)
        item.check()
        if not plan.dead:
            item.check_nothing_is_left_over()
            return is_met
        plan = FaultPlan()
    raise AssertionError("it does not end")


# -------------------------------------------------------------------------- readers


def opened(item: Thinned, index: int) -> tuple[dict[str, object], tuple[bytes, ...]]:
    point = item.world.points()[index]
    stores = {disk.name: item.world.stores[URLS[disk.name]] for disk in DISKS}
    disks = open_point(item.world.catalog_store, stores, ITEM, point.id, cache_bytes=0)
    return dict(disks), item.source.contents[point.time_ns]


def test_a_reader_goes_on_reading_what_was_compacted_and_dropped() -> None:
    item = Thinned(5)
    with item.world.processor(clock=item.clock) as processor:
        disks, expected = opened(item, 1)
        dropped = item.world.points()[1].id
        processor.drop_points(lambda points: [dropped])
        item.settle(processor)
        report = processor.reclaim(is_thorough=True)
        assert report.pins == 1
        assert report.garbage_bytes > 0
        for disk, content in zip(DISKS, expected, strict=True):
            assert disks[disk.name].read(0, disk.size_bytes) == content  # type: ignore[attr-defined]
        for reader in disks.values():
            reader.close()  # type: ignore[attr-defined]
        processor.reclaim(is_thorough=True)
        item.check_nothing_is_left_over()
        item.check()


def test_a_reader_that_died_holds_nothing_for_ever() -> None:
    item = Thinned(6)
    with item.world.processor(clock=item.clock) as processor:
        catalog = item.world.catalog()
        pin = Pin(item.world.catalog_store, ITEM, catalog.version, "")
        (name,) = item.world.catalog_store.list(f"items/{ITEM}/pins/")
        kept = item.world.catalog_store.get(name)
        item.settle(processor)
        assert processor.reclaim(is_thorough=True).garbage_bytes > 0
        item.clock.now += EXPIRY_SECONDS / 2
        assert processor.reclaim(is_thorough=True).garbage_bytes > 0
        item.clock.now += EXPIRY_SECONDS / 2
        assert processor.reclaim(is_thorough=True).garbage_bytes == 0
        assert item.world.catalog_store.list(f"items/{ITEM}/pins/") == []
        pin.release()
        assert kept


def test_a_reader_without_a_pin_has_the_grace() -> None:
    item = Thinned(7)
    with item.world.processor(clock=item.clock) as processor:
        refused = FullStore(item.world.catalog_store)
        point = item.world.points()[1]
        stores = {disk.name: item.world.stores[URLS[disk.name]] for disk in DISKS}
        disks = open_point(refused, stores, ITEM, point.id, cache_bytes=0)
        processor.reclaim(is_thorough=True)
        item.clock.now += GRACE_SECONDS - 1
        processor.reclaim(is_thorough=True)
        for disk, content in zip(DISKS, item.source.contents[point.time_ns], strict=True):
            assert disks[disk.name].read(0, disk.size_bytes) == content
        item.clock.now += 1
        processor.reclaim(is_thorough=True)
        with pytest.raises(ObjectMissing):
            [disks[disk.name].read(0, disk.size_bytes) for disk in DISKS]
        for reader in disks.values():
            reader.close()


def test_a_reader_whose_store_was_full_pins_as_soon_as_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pins_module, "RENEW_SECONDS", 0.01)
    item = Thinned(7)
    with item.world.processor(clock=item.clock) as processor:
        store = item.world.catalog_store
        full = FullStore(store)
        disks = open_point(
            full, {SYSTEM: item.world.stores[URLS[SYSTEM]]}, ITEM, item.world.points()[1].id
        )
        assert not pins_of(item)
        full.is_full = False
        wait_until(lambda: bool(pins_of(item)))
        item.settle(processor)
        assert processor.reclaim(is_thorough=True).garbage_bytes > 0
        disks[SYSTEM].close()
        assert not pins_of(item)


def test_a_pin_stays_until_the_next_but_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins_module, "RENEW_SECONDS", 0.001)
    item = Thinned(7)
    pin = Pin(item.world.catalog_store, ITEM, 5, "")
    watch = PinWatch(item.world.catalog_store, ITEM, lambda: 0.0)
    wait_until(lambda: any(parsed and parsed[2] > 9 for parsed in map(parse_pin, pins_of(item))))
    assert len(pins_of(item)) in (2, 3)
    assert watch.versions() == [5]
    pin.release()
    assert not pins_of(item)


def pins_of(item: Thinned) -> list[str]:
    return item.world.catalog_store.list(f"items/{ITEM}/pins/")


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_so():
            return
        time.sleep(0.001)
    raise AssertionError("it does not come")


# -------------------------------------------------------------------------- owners


def test_an_owner_that_was_replaced_deletes_nothing() -> None:
    item = Thinned(8)
    with (
        item.world.processor(clock=item.clock) as old,
        item.world.processor(clock=item.clock) as new,
    ):
        old.reclaim(is_thorough=True)
        item.clock.now += GRACE_SECONDS
        new.take_over()
        before = item.world.replica_objects()
        with suppress(Fenced):
            old.reclaim(is_thorough=True)
        assert item.world.replica_objects() == before
        item.settle(new)
        item.check()
        item.check_nothing_is_left_over()


def test_what_a_step_has_stored_and_not_listed_yet_is_no_garbage() -> None:
    item = Thinned(9)
    plan = FaultPlan()
    with item.world.uploader() as uploader, item.world.processor(plan, clock=item.clock) as p:
        item.settle(p)
        uploader.upload(item.source.next_cut())
        uploader.upload(item.source.next_cut())
        # The catalog cannot be written: what was copied waits for the next try.
        catalog = item.world.catalog_store
        create = catalog.create
        catalog.create = refusing_records(create)  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            p.step()
        catalog.create = create  # type: ignore[method-assign]
        assert set(item.world.replica_objects()) > item.world.needed_objects()
        item.settle(p)
        drain(p)
        item.check()
        item.settle(p)
        item.check_nothing_is_left_over()


def test_what_a_late_copy_stored_under_an_older_claim_is_no_garbage_while_it_may_be_used() -> None:
    late, lost = make_segment_id(2, 7), make_segment_id(2, 8)
    stand = Stand(State(item_id=ITEM), Numbers(3), settled=4, copied=frozenset((late,)))
    assert stand.may_become_named(late)
    assert not stand.may_become_named(lost)
    assert not stand.may_become_named(make_segment_id(3, 4))
    assert stand.may_become_named(make_segment_id(3, 5))
    assert stand.may_become_named(make_segment_id(4, 1))


def refusing_records(create: Callable[..., None]) -> Callable[..., None]:
    def refuse(name: str, data: object) -> None:
        if "/catalog/" in name:
            raise Unavailable("the store is full")
        create(name, data)

    return refuse


def test_what_a_map_refers_to_stays_even_if_no_cut_lists_it() -> None:
    """A log that lists less than its map needs, as none that the worker writes does."""
    world, clock = World(), HandClock()
    stores = {disk.name: world.stores[URLS[disk.name]] for disk in DISKS}
    sizes = {disk.name: disk.size_bytes for disk in DISKS}
    point = write_full_item(world.catalog_store, stores, ITEM, sizes, segment_count=1)
    before = world.contents(point)
    with world.processor(clock=clock) as processor:
        processor.reclaim(is_thorough=True)
        clock.now += GRACE_SECONDS
        processor.reclaim(is_thorough=True)
    assert world.contents(point) == before


def test_damage_met_on_the_way_costs_nothing_but_the_space() -> None:
    item = Thinned(10)
    with item.world.processor(clock=item.clock) as processor:
        store = item.world.stores[URLS["system"]]
        name = max(
            (n for n in store.list("") if "/segments/" in n), key=lambda name: store.size(name)
        )
        whole = store.get(name)
        store._objects[name] = whole[:-1] + bytes([whole[-1] ^ 1])
        item.settle(processor)
        store._objects[name] = whole
        item.check()


def test_a_log_is_compacted_window_by_window_whatever_it_has_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not all its tables are in memory at once, and the outcome is the same."""
    reports = []
    for extents_max in (1 << 24, 26):
        monkeypatch.setattr(compaction_module, "EXTENTS_MAX", extents_max)
        item = Thinned(4)
        with item.world.processor(clock=item.clock) as processor:
            reports.append(processor.reclaim(is_thorough=True))
            assert reports[-1].rewritten_bytes > 0
            item.settle(processor)
            item.check()
            item.check_nothing_is_left_over()
    assert reports[0] == reports[1]
    world = Thinned(4).world
    tables = [
        len(read_table(world.stores[url], name).extents)
        for url, name in world.replica_objects()
        if "/segments/" in name and url == URLS[SYSTEM]
    ]
    assert sum(tables) > 26


def test_a_window_too_long_to_be_compacted_keeps_no_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction_module, "EXTENTS_MAX", 0)
    item = Thinned(4)
    orphan = segment_name(ITEM, SYSTEM, make_segment_id(1, 1 << 20))
    item.world.stores[URLS[SYSTEM]].create(orphan, b"of an owner that died")
    with item.world.processor(clock=item.clock) as processor:
        item.settle(processor)
        assert orphan not in item.world.stores[URLS[SYSTEM]].list("")
        assert processor.reclaim(is_thorough=True).rewritten_bytes == 0
        item.check()
