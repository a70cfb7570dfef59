"""The loop keeps up, says what it did until somebody has heard it, and ends when it must."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from tests.simulation.world import DISKS, EPOCH, ITEM, URLS, HandClock, Source, World, drain

from leeward.core.clock import SystemClock
from leeward.core.errors import DataIntegrity, Unavailable
from leeward.model.recovery import Consistency, RecoveryPoint
from leeward.processor import garbage, space
from leeward.processor import loop as loop_module
from leeward.processor.item import ItemProcessor, StepResult
from leeward.processor.loop import ItemLoop
from leeward.replica.disk import PointDisk, open_point
from leeward.replica.layout import pins_prefix
from leeward.replica.manifest import cut_name, decode_manifest, refused_prefix
from leeward.replica.pins import EXPIRY_SECONDS, Pin

WAIT_SECONDS = 60.0


class Running:
    """A started loop over a world's stores, and waiting for what it says."""

    def __init__(self, world: World, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]]):
        self._changed = threading.Condition()
        clock = SystemClock()
        self.loop = ItemLoop(
            world.spec(),
            ItemProcessor(world.spec(), world.stores.__getitem__, clock),
            plan,
            clock,
            on_change=self._note,
        )

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_true, WAIT_SECONDS)


@contextmanager
def running(
    world: World, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]] = lambda points: ()
) -> Iterator[Running]:
    runner = Running(world, plan)
    runner.loop.start()
    try:
        yield runner
    finally:
        runner.loop.stop()
        assert not runner.loop.is_alive


@pytest.fixture
def world() -> World:
    return World()


def upload(world: World, source: Source, count: int) -> None:
    with world.uploader() as uploader:
        for _ in range(count):
            uploader.upload(source.next_cut())


def test_the_status_says_all_points(world: World) -> None:
    upload(world, Source(1), 3)
    with running(world) as runner:
        runner.wait_for(lambda: len(runner.loop.status().points_added) == 3)
        status = runner.loop.status()
        assert (status.applied_sequence, status.problem) == (3, "")
        assert status.newest_point_time_ns == status.points_added[-1].time_ns
        assert status.bytes_applied > 0
        assert runner.loop.status().points_added == status.points_added == world.points()


def test_a_new_worker_tells_all_points(world: World) -> None:
    upload(world, Source(1), 2)
    for _ in range(2):
        with running(world) as runner:
            runner.wait_for(lambda: len(runner.loop.status().points_added) == 2)


def test_retention_removes_points_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "RETENTION_SECONDS", 0.0)
    wanted: list[str] = []
    upload(world, Source(1), 3)
    with running(world, lambda points: tuple(wanted)) as runner:
        runner.wait_for(lambda: len(runner.loop.status().points_added) == 3)
        status = runner.loop.status()
        wanted.append(status.points_added[0].id)
        runner.wait_for(lambda: len(runner.loop.status().points_added) == 2)
    assert [point.sequence for point in world.points()] == [2, 3]


def open_oldest(world: World) -> list[PointDisk]:
    stores = {disk.name: world.stores[URLS[disk.name]] for disk in DISKS}
    return list(open_point(world.catalog_store, stores, ITEM, world.points()[0].id).values())


def test_retention_leaves_a_point_that_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its export may have to start anew, a while after the first has died, and must find it."""
    monkeypatch.setattr(loop_module, "RETENTION_SECONDS", 0.0)
    upload(world, Source(1), 3)
    with world.processor() as processor:
        drain(processor)
    newest = world.points()[-1]
    disks = open_oldest(world)
    with running(world, lambda points: [point.id for point in points[:-1]]) as runner:
        runner.wait_for(lambda: len(runner.loop.status().points_added) == 2)
        for disk in disks:
            disk.close()
        runner.wait_for(lambda: len(runner.loop.status().points_added) == 1)
    assert world.points() == (newest,)


def test_a_reader_that_died_holds_its_point_until_its_pin_expires(world: World) -> None:
    upload(world, Source(1), 3)
    clock = HandClock()
    with world.processor(clock=clock) as processor:
        drain(processor)
        oldest = world.points()[0].id
        pin = Pin(world.catalog_store, ITEM, world.catalog().version, oldest)
        pin._released.set()  # nobody renews it
        assert processor.points_read() == {oldest}
        clock.now += EXPIRY_SECONDS - 1
        assert processor.points_read() == {oldest}
        clock.now += 2
        assert processor.points_read() == frozenset()
    assert world.catalog_store.list(pins_prefix(ITEM)) == []


def test_a_damaged_pin_holds_everything_until_it_is_renewed(world: World) -> None:
    upload(world, Source(1), 2)
    with world.processor() as processor:
        drain(processor)
        pin = Pin(world.catalog_store, ITEM, world.catalog().version, "rp-1")
        (name,) = world.catalog_store.list(pins_prefix(ITEM))
        damaged = bytearray(world.catalog_store.get(name))
        damaged[-1] ^= 1
        world.catalog_store.delete(name)
        world.catalog_store.create(name, damaged)
        with pytest.raises(Unavailable, match=f"{name} is damaged"):
            processor.points_read()
        pin.renew()
        assert processor.points_read() == {"rp-1"}
        pin.release()


def test_sealing_ends_the_loop_without_a_problem(world: World) -> None:
    upload(world, Source(1), 2)
    with running(world) as runner:
        assert runner.loop.seal(2, 5.0).sequence == 2
        assert runner.loop.status().problem == ""
        assert len(runner.loop.status().points_added) == 2
        assert runner.loop.seal(2, 5.0).sequence == 2


def test_a_loop_that_was_replaced_ends_and_says_so(world: World) -> None:
    upload(world, Source(1), 1)
    with running(world) as runner:
        runner.wait_for(lambda: bool(runner.loop.status().points_added))
        with world.processor() as other:
            other.take_over()
            upload(world, Source(2), 1)
            runner.wait_for(lambda: "taken over" in runner.loop.status().problem)


def test_damage_is_told(world: World) -> None:
    upload(world, Source(1), 2)
    manifest = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 2)))
    world.cache.delete(manifest.disks[0].segments[0].name)
    with running(world) as runner:
        runner.wait_for(lambda: "not there" in runner.loop.status().problem)
        assert len(runner.loop.status().points_added) == 1


# ------------------------------------------------------------------------------ when to look again


class Script:
    """A processor whose steps end as told."""

    applied_sequence = 0
    points: tuple[RecoveryPoint, ...] = ()
    quarantined: frozenset[str] = frozenset()
    awaits_restart = False

    def __init__(self) -> None:
        self.next: StepResult | Exception = StepResult()

    def step(self) -> StepResult:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def retire_points(self, plan: object) -> tuple[str, ...]:
        return ()


class Ticking(SystemClock):
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def waits(loop: ItemLoop, count: int) -> list[float]:
    found = []
    for _ in range(count):
        try:
            loop._turn()
        except (Unavailable, DataIntegrity) as error:
            loop._failed(error)
        found.append(loop._wait_seconds)
    return found


@pytest.mark.parametrize("is_cache_away", [False, True], ids=["cut-waits", "cache-away"])
def test_damage_that_a_step_meets_is_looked_for_and_healed_at_once(
    world: World, is_cache_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails each time; nothing else would have the source send what is lost."""
    source = Source(1)
    with world.uploader() as uploader:
        uploader.upload(source.whole_cut())
        uploader.upload(source.next_cut())
        with running(world) as runner:
            runner.wait_for(lambda: len(runner.loop.status().points_added) == 2)
        for disk in DISKS:
            store = world.stores[URLS[disk.name]]
            for name in store.list(f"items/{ITEM}/disks/"):
                store._objects[name] = store._objects[name][:-1] + b"?"
        if is_cache_away:
            monkeypatch.setattr(loop_module, "SCRUB_SECONDS", 0.5)  # the daily one
            monkeypatch.setattr(world.cache, "get_range", unavailable)
        else:
            uploader.upload(source.next_cut(ranges=[(0, 512, 512), (1, 512, 512)]))
        with running(world) as runner:
            runner.wait_for(lambda: len(runner.loop._processor.quarantined) == 2)
            runner.wait_for(lambda: bool(world.cache.list(refused_prefix(ITEM))))


def unavailable(*arguments: object) -> bytes:
    raise Unavailable("the cache is away")


def test_polling_is_quick_while_cuts_arrive_and_slow_when_idle(world: World) -> None:
    script, clock = Script(), Ticking()
    loop = ItemLoop(world.spec(), script, lambda points: (), clock)  # type: ignore[arg-type]
    point = RecoveryPoint(id="rp-1", epoch=1, sequence=1, time_ns=1, consistency=Consistency.CRASH)
    script.next = StepResult(1, 1, (point,), idle=False)
    assert waits(loop, 2) == [0.0, 0.0]
    script.next = StepResult()
    assert waits(loop, 5) == [0.05, 0.1, 0.2, 0.25, 0.25]
    clock.now = loop_module.IDLE_AFTER_SECONDS + 1
    assert waits(loop, 2) == [1.0, 1.0]
    script.next = StepResult(1, 0, (point,), idle=False)
    assert waits(loop, 1) == [0.0]
    script.next = StepResult()
    assert waits(loop, 2) == [1.0, 1.0], "a cut of an idle VM makes nobody look more often"
    script.next = Unavailable("gone")
    assert waits(loop, 7) == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert loop.status().problem == "gone"
    script.next = DataIntegrity("damaged")
    assert waits(loop, 1) == [loop_module.INTEGRITY_SECONDS]
    script.next = StepResult()
    waits(loop, 1)
    assert loop.status().problem == ""


def test_space_of_dropped_points_is_reclaimed_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "SPACE_SECONDS", 0.0)
    monkeypatch.setattr(loop_module, "RETENTION_SECONDS", 0.0)
    monkeypatch.setattr(garbage, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(space, "COLLECT_SECONDS", 0.0)
    source = Source(9)
    with world.uploader() as uploader, world.processor() as processor:
        for _ in range(6):
            uploader.upload(source.next_cut())
            drain(processor)
        assert len(world.replica_objects()) > 6
    with running(world, lambda points: [point.id for point in points[:-1]]):
        deadline = time.monotonic() + WAIT_SECONDS
        while set(world.replica_objects()) != world.needed_objects() or len(world.points()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    world.check(source)
