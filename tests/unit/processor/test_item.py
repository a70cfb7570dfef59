"""What a worker lists is what the source wrote; what is wrong is never listed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.simulation.world import EPOCH, ITEM, URLS, Source, World, drain

from leeward.core.clock import SystemClock
from leeward.core.errors import ChainBroken, DataIntegrity, Fenced, NotFound, Unavailable
from leeward.model.recovery import Consistency, SharedMark
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.processor import apply as apply_module
from leeward.processor import item as item_module
from leeward.processor import trimming as trimming_module
from leeward.processor.item import ItemProcessor
from leeward.replica import snapshots as snapshots_module
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    applied_name,
    applied_prefix,
    cache_segments_prefix,
    cut_name,
    cuts_prefix,
    decode_applied,
    decode_manifest,
    encode_applied,
    encode_manifest,
    manifest_sha256,
)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def source() -> Source:
    return Source(1)


def upload(world: World, source: Source, count: int, epoch: int = EPOCH) -> None:
    with world.uploader(epoch=epoch) as uploader:
        for _ in range(count):
            uploader.upload(source.next_cut())


def replace_object(store: MemoryStore, name: str, change: Callable[[bytes], bytes]) -> None:
    data = change(store.get(name))
    store.delete(name)
    store.create(name, data)


@pytest.mark.parametrize("seed", range(6))
def test_every_point_equals_the_model_on_disks_in_different_stores(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "CHECKPOINT_SEGMENTS", 7)
    source = Source(seed)
    with world.uploader() as uploader:
        for _ in range(4):
            with world.processor() as processor:  # each time a new worker
                for _ in range(3):
                    uploader.upload(source.next_cut())
                    uploader.upload(source.next_cut())
                    drain(processor)
    points = world.points()
    assert [point.time_ns for point in points] == list(source.contents)
    world.check(source)
    assert world.catalog().vm_config(points[4]) == {"name": ITEM, "cut": 5}
    maps = [name for name in world.stores[URLS["data"]].list("") if "/maps/" in name]
    assert maps


def test_waiting_cuts_are_listed_by_one_record(world: World, source: Source) -> None:
    upload(world, source, 5)
    with world.processor() as processor:
        processor.take_over()
        before = world.catalog().version
        result = processor.step()
        assert (result.cuts_applied, len(result.points), result.idle) == (5, 5, False)
        assert result.bytes > 0
        assert world.catalog().version == before + 1
        assert processor.step().idle


def test_cuts_without_consistency_are_applied_and_not_listed(world: World, source: Source) -> None:
    with world.uploader() as uploader, world.processor() as processor:
        uploader.upload(source.next_cut(consistency=Consistency.NONE))
        assert processor.step().points == ()
        uploader.upload(source.next_cut())
        (point,) = processor.step().points
    assert world.points() == (point,)
    world.check(source)


def test_a_disk_that_was_away_comes_back_as_it_was(world: World, source: Source) -> None:
    """Whoever processes it then, and whatever its sweep passes over as known to the target."""
    with world.uploader() as uploader:
        with world.processor() as processor:
            uploader.upload(source.next_cut(ranges=[(0, 0, 8192), (1, 0, 65536)]))
            away = source.next_cut(ranges=[(0, 4096, 4096)])
            uploader.upload(replace(away, disks=away.disks[:1]))
            drain(processor)
        with world.processor() as processor:
            uploader.upload(source.next_cut(ranges=[(1, 1024, 512)]))
            drain(processor)
    back = world.points()[-1]
    assert world.contents(back) == source.contents[back.time_ns]


def test_a_shared_point_is_listed_as_such(world: World, source: Source) -> None:
    mark = SharedMark(id="sp-1", group="cg-1", members=(ITEM, "other"), time_ns=7)
    with world.uploader() as uploader, world.processor() as processor:
        uploader.upload(replace(source.next_cut(), shared=mark))
        uploader.upload(source.next_cut())
        drain(processor)
    assert [point.shared for point in world.points()] == [mark, None]
    world.check(source)


def test_the_cache_holds_only_two_markers_once_all_is_applied(world: World, source: Source) -> None:
    with world.uploader() as uploader, world.processor() as processor:
        for sequence in range(1, 6):
            uploader.upload(source.next_cut())
            drain(processor)
            assert uploader.applied_sequence() == sequence
    assert world.cache.list("") == [applied_name(ITEM, EPOCH, n) for n in (4, 5)]
    _, marker = decode_applied(world.cache.get(applied_name(ITEM, EPOCH, 5)))
    newest = world.catalog().newest_cut
    assert newest is not None
    assert marker == AppliedMarker(sequence=5, manifest_sha256=newest.manifest_sha256)


def test_segments_of_an_uploader_that_died_are_removed(world: World, source: Source) -> None:
    orphan = f"{cache_segments_prefix(ITEM)}{EPOCH:08d}-{1:012d}-data-0-dead"
    early = f"{cache_segments_prefix(ITEM)}{EPOCH:08d}-{3:012d}-data-0-fresh"
    world.cache.create(orphan, b"never named by a manifest")
    world.cache.create(early, b"of a cut still to come")
    upload(world, source, 2)
    with world.processor() as processor:
        drain(processor)
    with world.processor() as processor:
        drain(processor)
    assert world.cache.list(cache_segments_prefix(ITEM)) == [early]


@pytest.mark.parametrize("folder", ["cuts", "applied", "refused"])
def test_what_is_none_of_ours_in_a_cache_stops_nobody(
    world: World, source: Source, folder: str
) -> None:
    """A file that NFS has renamed, or a copying program's."""
    strange = f"items/{ITEM}/{folder}/.nfs00000000012c0b4d00000001"
    world.cache.create(strange, b"?")
    with world.uploader() as uploader, world.processor() as processor:
        uploader.upload(source.next_cut())
        drain(processor)
        assert uploader.applied_sequence() == 1
        world.cache.delete(cut_name(ITEM, EPOCH, uploader.upload(source.next_cut()).sequence))
        uploader.upload(source.next_cut())
        processor._arrivals.look_at_once()
        for _ in range(2):
            with pytest.raises(ChainBroken):
                processor.step()
        with pytest.raises(ChainBroken):
            uploader.check_refused(uploader.applied_sequence())
        uploader.restart()
        uploader.upload(source.whole_cut())
        drain(processor)
        processor._arrivals.look_at_once()
        drain(processor)
    assert world.contents(world.points()[-1]) == source.contents[world.points()[-1].time_ns]
    assert len(world.points()) == 2
    assert strange in world.cache.list("")


def test_an_uploader_finds_its_place_in_a_cache_that_was_emptied(
    world: World, source: Source
) -> None:
    upload(world, source, 3)
    with world.processor() as processor:
        drain(processor)
    for name in world.cache.list(""):
        world.cache.delete(name)
    with world.processor() as processor, world.uploader() as uploader:
        processor.step()
        assert uploader.upload(source.next_cut()).sequence == 4
        drain(processor)
    world.check(source)
    assert len(world.points()) == 4


# ------------------------------------------------------------------------------ one writer


def test_a_stale_processor_cannot_publish(world: World, source: Source) -> None:
    upload(world, source, 1)
    with world.processor() as old, world.processor() as new:
        drain(old)
        new.take_over()
        upload(world, source, 1)
        with pytest.raises(Fenced):
            old.step()
        assert len(world.points()) == 1
        drain(new)
        with pytest.raises(Fenced):
            old.step()
        with pytest.raises(Fenced):
            old.take_over()
    assert len(world.points()) == 2
    world.check(source)


def test_a_stale_processor_is_told_so_when_its_segments_are_gone(
    world: World, source: Source
) -> None:
    """What the new owner has applied and removed must not look like damage to the old one."""
    upload(world, source, 1)
    with world.processor() as old, world.processor() as new:
        drain(old)
        with world.uploader() as uploader:
            uploader.upload(source.next_cut())
            manifest = world.cache.get(cut_name(ITEM, EPOCH, 2))
            drain(new)
        world.cache.create(cut_name(ITEM, EPOCH, 2), manifest)
        with pytest.raises(Fenced):
            old.step()


def test_an_older_epoch_cannot_publish(world: World, source: Source) -> None:
    upload(world, source, 1)
    with world.processor() as old, world.processor(epoch=2) as new:
        drain(old)
        new.take_over()
        upload(world, source, 1)
        with pytest.raises(Fenced):
            old.step()
    with world.processor() as late, pytest.raises(Fenced, match="newer"):
        late.take_over()
    assert len(world.points()) == 1


def test_a_new_epoch_begins_its_own_chain(world: World, source: Source) -> None:
    upload(world, source, 2)
    with world.processor() as processor:
        drain(processor)
    upload(world, source, 2, epoch=2)
    with world.processor(epoch=2) as processor:
        drain(processor)
        assert processor.applied_sequence == 2
    assert [(p.epoch, p.sequence) for p in world.points()] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    world.check(source)


# ------------------------------------------------------------------------------ wrong data


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: data + b"x"])
def test_a_damaged_segment_is_never_listed(
    world: World, source: Source, damage: Callable[[bytes], bytes]
) -> None:
    upload(world, source, 3)
    cut = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 2)))
    last = cut.disks[-1].segments[-1]
    replace_object(world.cache, last.name, damage)
    with world.processor() as processor:
        assert processor.step().cuts_applied == 1
        for _ in range(3):
            with pytest.raises(DataIntegrity, match="segment"):
                processor.step()
            objects = world.objects()
        with pytest.raises(DataIntegrity):
            processor.step()
        assert world.objects() == objects, "trying again fills the target"
        replace_object(world.cache, last.name, damage if damage is flip else lambda d: d)
        if damage is flip:
            drain(processor)
    assert len(world.points()) == (3 if damage is flip else 1)
    world.check(source)


def test_a_missing_segment_is_reported(world: World, source: Source) -> None:
    upload(world, source, 1)
    cut = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 1)))
    world.cache.delete(cut.disks[0].segments[0].name)
    with world.processor() as processor, pytest.raises(DataIntegrity, match="not there"):
        processor.step()
    assert world.points() == ()


def rewrite_manifest(world: World, sequence: int, **changes: object) -> None:
    def change(data: bytes) -> bytes:
        manifest = decode_manifest(data)
        fields = {name: getattr(manifest, name) for name in manifest.__slots__}
        return encode_manifest(CutManifest(**{**fields, **changes}))

    replace_object(world.cache, cut_name(ITEM, EPOCH, sequence), change)


def test_a_cut_of_another_chain_is_never_listed(world: World, source: Source) -> None:
    upload(world, source, 3)
    rewrite_manifest(world, 2, parent_sha256=manifest_sha256(b"another"))
    with world.processor() as processor:
        assert processor.step().cuts_applied == 1
        with pytest.raises(DataIntegrity, match="does not follow"):
            processor.step()
    assert len(world.points()) == 1


def test_a_cut_with_swapped_disks_is_never_listed(world: World, source: Source) -> None:
    upload(world, source, 1)
    manifest = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 1)))
    one, two = manifest.disks
    swapped = (
        type(one)(disk=one.disk, size_bytes=one.size_bytes, segments=two.segments),
        type(two)(disk=two.disk, size_bytes=two.size_bytes, segments=one.segments),
    )
    rewrite_manifest(world, 1, disks=swapped)
    with world.processor() as processor, pytest.raises(DataIntegrity, match="belongs elsewhere"):
        processor.step()
    assert world.points() == ()


def test_a_cut_with_a_disk_that_the_target_does_not_have_is_never_listed(
    world: World, source: Source
) -> None:
    upload(world, source, 1)
    manifest = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 1)))
    first = manifest.disks[0]
    ghost = type(first)(disk="ghost", size_bytes=first.size_bytes, segments=())
    rewrite_manifest(world, 1, disks=(*manifest.disks, ghost))
    with world.processor() as processor, pytest.raises(DataIntegrity, match="ghost"):
        processor.step()
    assert world.points() == ()


def test_a_segment_beyond_the_disk_is_never_listed(world: World, source: Source) -> None:
    upload(world, source, 1)
    manifest = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 1)))
    small = tuple(
        type(disk)(disk=disk.disk, size_bytes=512, segments=disk.segments)
        for disk in manifest.disks
    )
    rewrite_manifest(world, 1, disks=small)
    with world.processor() as processor, pytest.raises(DataIntegrity, match="beyond the end"):
        processor.step()
    assert world.points() == ()


def test_a_missing_cut_is_reported_not_waited_for(world: World, source: Source) -> None:
    upload(world, source, 3)
    world.cache.delete(cut_name(ITEM, EPOCH, 1))
    with world.processor() as processor, pytest.raises(DataIntegrity, match="cut 1 is missing"):
        processor.step()


# ------------------------------------------------------------------------------ stores away


class Gate(MemoryStore):
    """A store that can be away, full, or hang."""

    def __init__(self) -> None:
        super().__init__("gate")
        self.is_away = self.is_full = False
        self.opened = threading.Event()
        self.opened.set()

    def _pass(self) -> None:
        self.opened.wait()
        if self.is_away:
            raise Unavailable("the store is gone")

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._pass()
        if self.is_full:
            raise Unavailable("the store is full")
        super().create(name, data)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._pass()
        return super().get_range(name, offset, length)

    def list(self, prefix: str) -> list[str]:
        self._pass()
        return super().list(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        self._pass()
        return super().sizes(prefix)

    def delete(self, name: str) -> None:
        self._pass()
        super().delete(name)


@pytest.fixture
def gate(world: World) -> Gate:
    gate = Gate()
    world.stores[URLS["cache"]] = gate
    return gate


def test_a_cache_that_is_away_is_waited_for(world: World, source: Source, gate: Gate) -> None:
    with world.processor() as processor:
        upload(world, source, 1)
        drain(processor)
        upload(world, source, 1)
        gate.is_away = True
        for _ in range(3):
            with pytest.raises(Unavailable):
                processor.step()
        gate.is_away = False
        drain(processor)
    assert len(world.points()) == 2
    world.check(source)


def test_a_full_cache_is_emptied_before_it_is_written_to(
    world: World, source: Source, gate: Gate
) -> None:
    with world.processor() as processor:
        drain(processor)
        upload(world, source, 3)
        gate.is_full = True
        drain(processor)
    assert len(world.points()) == 3
    assert gate.list(applied_prefix(ITEM)) == []
    with world.processor() as processor:
        drain(processor)
        assert gate.list(cache_segments_prefix(ITEM)) == []
        assert len(gate.list(cuts_prefix(ITEM))) == 3, "the uploader's place must stay known"
    gate.is_full = False
    with world.processor() as processor:
        drain(processor)
    assert gate.list("") == [applied_name(ITEM, EPOCH, 3)]


class Refusing(MemoryStore):
    """A store that refuses the creates it is told to."""

    def __init__(self) -> None:
        super().__init__("refusing")
        self.refused = ""

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.refused and self.refused in name:
            raise Unavailable("the store is full")
        super().create(name, data)


def test_cuts_merged_in_vain_leave_nothing_behind(world: World, source: Source) -> None:
    """Two cuts change different sectors of one block: when both are merged again, the first must
    not see what the second had put there."""
    store = world.stores[URLS["system"]] = Refusing()
    with world.processor() as processor, world.uploader() as uploader:
        uploader.upload(source.next_cut(ranges=[(0, 0, 8192), (1, 0, 8192)]))
        drain(processor)
        for offset in (512, 1024):
            uploader.upload(source.next_cut(ranges=[(0, offset, 512), (1, offset, 512)]))
        store.refused = "/catalog/"
        for _ in range(2):
            with pytest.raises(Unavailable):
                processor.step()
        assert len(world.points()) == 1
        store.refused = ""
        assert processor.step().cuts_applied == 2
    world.check(source)


class Silent(Refusing):
    """A store that does what it refuses, and does not say so; nor can it be read then."""

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.refused and self.refused in name:
            MemoryStore.create(self, name, data)
        super().create(name, data)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if self.refused and self.refused in name:
            raise Unavailable("the store is gone")
        return super().get_range(name, offset, length)


def test_segments_of_an_append_that_nobody_confirmed_can_become_garbage(
    world: World, source: Source
) -> None:
    """The cuts are in the log though the worker was told nothing: once it knows, their segments are
    protected by the log alone, so that they are deleted when it no longer names them."""
    store = world.stores[URLS["system"]] = Silent()
    with world.processor() as processor, world.uploader() as uploader:
        processor.take_over()
        uploader.upload(source.next_cut(ranges=[(0, 0, 8192), (1, 0, 8192)]))
        store.refused = "/catalog/"
        with pytest.raises(Unavailable):
            processor.step()
        store.refused = ""
        stand = processor.stand()
        assert [cut.sequence for cut in stand.state.cuts] == [1]
        assert stand.copied == frozenset()
        drain(processor)
        assert processor.stand().copied == frozenset()
    world.check(source)


def test_old_records_of_the_catalog_are_deleted_and_what_is_left_is_told(
    world: World, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_VERSIONS", 2)
    monkeypatch.setattr(trimming_module, "FLOOR_VERSIONS", 5)
    store, trimmed = world.catalog_store, 0
    with world.uploader() as uploader, world.processor() as processor:
        for _ in range(30):
            uploader.upload(source.next_cut())
            drain(processor)
            assert processor.is_space_due
            trimmed += processor.reclaim().trimmed_records
        before = store.list("")
        told = processor.reclaim(is_thorough=True, dry_run=True)
        assert store.list("") == before
    kinds = ("catalog", "snapshots", "floors")
    sizes = [store.sizes(f"items/{ITEM}/{kind}/") for kind in kinds]
    assert told.catalog_bytes == sum(sum(each.values()) for each in sizes) > 0
    assert trimmed == world.catalog().version - len(sizes[0]) > 0
    world.check(source)


# ------------------------------------------------------------------------------ sealing


def test_seal_drains_and_refuses_the_old_epoch(world: World, source: Source) -> None:
    with world.processor() as processor:
        upload(world, source, 1)
        drain(processor)
        upload(world, source, 3)
        point = processor.seal(2, 5.0)
        assert point.sequence == 4
        assert processor.points[-1] == point
        upload(world, source, 1)
        with pytest.raises(Fenced, match="sealed"):
            processor.step()
        assert processor.seal(2, 5.0) == point
        with pytest.raises(Fenced):
            processor.seal(1, 5.0)
    with world.processor() as late:
        assert late.seal(2, 5.0) == point, "a worker that was restarted answers the same"
        with pytest.raises(Fenced):
            late.step()
    assert world.catalog().epoch == 2
    assert len(world.points()) == 4
    world.check(source)


def test_a_failover_tried_again_is_sealed_by_a_worker_restarted_since(
    world: World, source: Source
) -> None:
    upload(world, source, 2)
    with world.processor() as processor:
        point = processor.seal(2, 5.0)
    with world.processor() as restarted:
        assert restarted.seal(3, 5.0) == point


def test_seal_without_any_point_seals_nothing(world: World, source: Source) -> None:
    with world.processor() as processor, world.uploader() as uploader:
        uploader.upload(source.next_cut(consistency=Consistency.NONE))
        with pytest.raises(NotFound, match="no recovery point yet"):
            processor.seal(2, 5.0)
        assert world.catalog().epoch == 1
        uploader.upload(source.next_cut())
        drain(processor)
    assert len(world.points()) == 1


def test_seal_with_the_cache_gone_takes_the_newest_point(
    world: World, source: Source, gate: Gate
) -> None:
    with world.processor() as processor:
        upload(world, source, 2)
        drain(processor)
        upload(world, source, 1)
        gate.is_away = True
        assert processor.seal(2, 5.0).sequence == 2


def test_seal_does_not_wait_for_a_cache_that_hangs(
    world: World, source: Source, gate: Gate
) -> None:
    with world.processor() as processor:
        upload(world, source, 2)
        drain(processor)
        upload(world, source, 1)
        gate.opened.clear()
        began = time.monotonic()
        try:
            point = processor.seal(2, 0.2)
            assert time.monotonic() - began < 60
        finally:
            gate.opened.set()
        assert point.sequence == 2
        with pytest.raises(Fenced):
            drain(processor)
    assert [p.sequence for p in world.points()] == [1, 2]


def test_seal_does_not_wait_for_another_step_that_hangs(
    world: World, source: Source, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's own, begun when draining had just ended."""
    with world.processor() as processor, ThreadPoolExecutor(2) as threads:
        upload(world, source, 2)
        drain(processor)

        def drained_then_hung(*arguments: Any, **more: Any) -> bool:
            gate.opened.clear()
            threads.submit(processor.step)
            while not processor._lock.locked():
                time.sleep(0.001)
            return True

        monkeypatch.setattr(item_module, "drain_aside", drained_then_hung)
        try:
            assert threads.submit(processor.seal, 2, 0.2).result(60).sequence == 2
        finally:
            gate.opened.set()
        with pytest.raises(Fenced):
            processor.step()


def test_seal_stops_before_damage(world: World, source: Source) -> None:
    upload(world, source, 3)
    cut = decode_manifest(world.cache.get(cut_name(ITEM, EPOCH, 3)))
    replace_object(world.cache, cut.disks[0].segments[0].name, flip)
    with world.processor() as processor:
        assert processor.seal(2, 5.0).sequence == 2
    world.check(source)


# ------------------------------------------------------------------------------ retention


def test_dropped_points_are_gone_and_the_others_stay_right(world: World, source: Source) -> None:
    upload(world, source, 6)
    with world.processor() as processor:
        drain(processor)
        ids = [point.id for point in processor.points]
        assert processor.drop_points(lambda points: ids[1:4]) == tuple(ids[1:4])
        assert [point.id for point in processor.points] == [ids[0], *ids[4:]]
        upload(world, source, 1)
        drain(processor)
    assert len(world.points()) == 4
    world.check(source)


def test_a_marker_of_a_newer_epoch_is_left_alone(world: World, source: Source) -> None:
    newer = applied_name(ITEM, 7, 1)
    world.cache.create(newer, encode_applied(7, AppliedMarker(sequence=1, manifest_sha256="")))
    with world.processor() as processor:
        processor.step()
    assert world.cache.list("") == [newer]


def test_a_damaged_marker_is_written_anew(world: World, source: Source) -> None:
    upload(world, source, 2)
    with world.processor() as processor:
        drain(processor)
    name = applied_name(ITEM, EPOCH, 2)
    good = world.cache.get(name)
    replace_object(world.cache, name, lambda data: b"damaged")
    with world.processor() as processor:
        drain(processor)
    assert world.cache.get(name) == good


def test_who_resumes_leaves_the_item_to_whom_it_was_given_meanwhile(
    world: World, source: Source
) -> None:
    upload(world, source, 1)

    def worker(owner: str, *, is_resumed: bool) -> ItemProcessor:
        return ItemProcessor(
            world.spec(),
            world.stores.__getitem__,
            SystemClock(),
            owner=owner,
            is_resumed=is_resumed,
        )

    first, second = worker("first", is_resumed=False), worker("second", is_resumed=False)
    back, again = worker("first", is_resumed=True), worker("second", is_resumed=True)
    try:
        first.take_over()
        second.take_over()
        with pytest.raises(Fenced, match="given to second"):
            back.step()
        assert second.step().cuts_applied == 1, "who came back has changed nothing"
        upload(world, source, 1)
        assert again.step().cuts_applied == 1
    finally:
        for each in (first, second, back, again):
            each.close()
