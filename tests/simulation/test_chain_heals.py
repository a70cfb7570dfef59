"""Cuts that are lost or damaged in the cache: the target says so, and a new chain makes up for it.

Whatever dies meanwhile: every listed point is what the source had written, nothing that never
reached the target is said to be applied, and the last state arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.simulation.faults import Fault, FaultPlan, FaultyStore, Killed
from tests.simulation.world import EPOCH, ITEM, Source, World, drain

from leeward.core.errors import ChainBroken, Unavailable
from leeward.mobility.chain import ChainNote
from leeward.mobility.upload import Uploader
from leeward.processor import arrivals as arrivals_module
from leeward.processor.item import ItemProcessor
from leeward.replica.manifest import (
    applied_prefix,
    cache_segments_prefix,
    cut_name,
    cuts_prefix,
    decode_manifest,
    parse_sequence,
    refused_prefix,
)

TRIES_MAX = 60


@pytest.fixture(autouse=True)
def look_for_gaps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "GAP_SECONDS", 0.0)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def source() -> Source:
    return Source(1)


@pytest.fixture
def note(tmp_path: Path) -> ChainNote:
    return ChainNote(tmp_path / "replication" / "web-1.sequence", EPOCH)


@contextmanager
def uploading(
    world: World, note: ChainNote | None = None, plan: FaultPlan | None = None
) -> Iterator[Uploader]:
    store = FaultyStore(world.cache, plan or FaultPlan(), "cache")
    uploader = Uploader(store, ITEM, EPOCH, workers=1, note=note)
    try:
        yield uploader
    finally:
        uploader.close()


def damage(world: World, sequence: int) -> None:
    """Flip a bit in one of the cut's segments."""
    cut = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, sequence)))
    name = next(ref.name for disk in cut.disks for ref in disk.segments)
    data = bytearray(world.cache.get(name))
    data[-1] ^= 1
    world.cache.delete(name)
    world.cache.create(name, bytes(data))


def wipe(world: World) -> None:
    for name in world.cache.list(""):
        world.cache.delete(name)


def refuse(processor: ItemProcessor) -> None:
    """Step until the worker has asked for a new chain."""
    for _ in range(2):
        with pytest.raises(ChainBroken):
            drain(processor)


def restarted(uploader: Uploader, source: Source) -> int:
    """Do what a replicator does: begin a sweep, restart the chain; return its first sequence."""
    uploader.restart()
    return uploader.upload(source.whole_cut()).sequence


def assert_healed(world: World, source: Source, processor: ItemProcessor) -> None:
    drain(processor)
    world.check(source)
    newest = world.points()[-1]
    assert world.contents(newest) == source.contents[max(source.contents)]
    processor.step()
    assert world.cache.list(cuts_prefix(ITEM)) == []
    assert world.cache.list(cache_segments_prefix(ITEM)) == []
    assert world.cache.list(refused_prefix(ITEM)) == []


def test_a_damaged_cut_is_refused_and_replaced(world: World, source: Source) -> None:
    with uploading(world) as uploader, world.processor() as processor:
        for _ in range(4):
            uploader.upload(source.next_cut())
        damage(world, 2)
        refuse(processor)
        assert processor.applied_sequence == 1
        with pytest.raises(ChainBroken):
            uploader.check_refused(1)
        with pytest.raises(ChainBroken):
            uploader.upload(source.next_cut())
        assert restarted(uploader, source) > 4
        uploader.upload(source.next_cut())
        assert_healed(world, source, processor)
        assert len(world.points()) == 3


def test_what_was_only_read_wrong_once_is_not_refused(world: World, source: Source) -> None:
    with uploading(world) as uploader, world.processor() as processor:
        uploader.upload(source.next_cut())
        name = cut_name(ITEM, EPOCH, 1)
        data = world.cache.get(name)
        world.cache.delete(name)
        world.cache.create(name, data[:-1])
        with pytest.raises(ChainBroken):
            processor.step()
        world.cache.delete(name)
        world.cache.create(name, data)
        drain(processor)
        assert world.cache.list(refused_prefix(ITEM)) == []
        assert len(world.points()) == 1


def test_a_cache_wiped_under_a_running_uploader(world: World, source: Source) -> None:
    with uploading(world) as uploader, world.processor() as processor:
        uploader.upload(source.next_cut())
        drain(processor)
        uploader.upload(source.next_cut())
        wipe(world)
        uploader.upload(source.next_cut())
        refuse(processor)
        with pytest.raises(ChainBroken):
            uploader.check_refused(0)
        restarted(uploader, source)
        assert_healed(world, source, processor)


@pytest.mark.parametrize("is_told", [False, True], ids=["silent", "marked again"])
def test_a_cache_wiped_while_the_agent_was_away(
    world: World, source: Source, note: ChainNote, tmp_path: Path, is_told: bool
) -> None:
    """Its numbers must not begin anew: the old applied marker would cover cuts never applied."""
    with uploading(world, note) as uploader, world.processor() as processor:
        for _ in range(2):
            uploader.upload(source.next_cut())
        drain(processor)
        uploader.upload(source.next_cut())
    wipe(world)
    found = ChainNote(tmp_path / "replication" / "web-1.sequence", EPOCH)
    assert found.sequence == 3
    with uploading(world, found) as uploader, world.processor() as processor:
        if is_told:
            processor.step()  # a new worker marks again what is applied
        with pytest.raises(ChainBroken):
            uploader.upload(source.next_cut())
        assert restarted(uploader, source) > 4
        if not is_told:
            refuse(processor)
            with pytest.raises(ChainBroken):
                uploader.check_refused(0)
            restarted(uploader, source)
        assert_healed(world, source, processor)


def test_a_target_that_has_nothing_yet_gets_a_chain_from_the_start(
    world: World, source: Source
) -> None:
    with uploading(world) as uploader, world.processor() as processor:
        uploader.upload(source.next_cut())
        damage(world, 1)
        refuse(processor)
        with pytest.raises(ChainBroken):
            uploader.check_refused(0)
        restarted(uploader, source)
        assert_healed(world, source, processor)


def test_a_refusal_that_a_cut_has_followed_is_void(world: World, source: Source) -> None:
    with uploading(world) as uploader, world.processor() as processor:
        uploader.upload(source.next_cut())
        drain(processor)
        uploader.upload(source.next_cut())
        damage(world, 2)
        refuse(processor)
        uploader.check_refused(2)  # the marker of cut 2 is there by now


def test_a_note_of_another_epoch_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "web-1.sequence"
    ChainNote(path, 1).save(7)
    assert ChainNote(path, 1).sequence == 7
    assert ChainNote(path, 2).sequence == 0
    path.write_text("torn")
    assert ChainNote(path, 1).sequence == 0
    ChainNote(path, 1).delete()
    ChainNote(path, 1).delete()


class Healing:
    """A damaged cut, found and replaced, by processes that die at given operations."""

    def __init__(self, uploads: Mapping[int, Fault], steps: Mapping[int, Fault]) -> None:
        self.world = World()
        self.source = Source(5)
        self.note = ChainNote(None, EPOCH)
        with uploading(self.world, self.note) as uploader:
            for _ in range(3):
                uploader.upload(self.source.next_cut())
        damage(self.world, 2)
        self.upload_plan = FaultPlan(uploads)
        self.process_plan = FaultPlan(steps)
        self._is_sweep_due = False

    def run(self) -> None:
        for _ in range(TRIES_MAX):
            self._attempt(self._process)
            self._attempt(self._upload)
            self._check()
            if not self._is_sweep_due and len(self.world.points()) >= 3:
                return
        raise AssertionError("it does not heal")

    def _attempt(self, live: Callable[[], None]) -> None:
        with suppress(Killed, Unavailable, ChainBroken):
            live()

    def _process(self) -> None:
        plan, self.process_plan = self.process_plan, FaultPlan()
        with self.world.processor(plan) as processor:
            for _ in range(3):
                with suppress(ChainBroken, Unavailable):
                    processor.step()

    def _upload(self) -> None:
        plan, self.upload_plan = self.upload_plan, FaultPlan()
        with uploading(self.world, self.note, plan) as uploader:
            for _ in range(3):
                try:
                    uploader.check_refused(uploader.applied_sequence())
                    uploader.upload(self.source.whole_cut(is_swept=self._is_sweep_due))
                    self._is_sweep_due = False
                    return
                except ChainBroken:
                    self._is_sweep_due = True  # written down before the chain goes on
                    uploader.restart()
                except Unavailable:
                    uploader.abandon()

    def _check(self) -> None:
        self.world.check(self.source)
        applied = {(cut.epoch, cut.sequence) for cut in self.world.catalog()._state.cuts}
        for name in self.world.cache.list(applied_prefix(ITEM)):
            assert parse_sequence(name) in applied


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_healing_survives_a_fault_at_every_operation(fault: Fault) -> None:
    calm = Healing({}, {})
    uploads, steps = calm.upload_plan, calm.process_plan
    calm.run()
    assert uploads.count + steps.count > 0
    for at in range(1, 40):
        Healing({at: fault}, {}).run()
    for at in range(1, 40):
        Healing({}, {at: fault}).run()
