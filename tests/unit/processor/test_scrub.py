"""Damage of what is stored: found, quarantined exactly, healed by the source, never offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation.world import DISKS, ITEM, SECTOR, Source, World, drain

from leeward.core.errors import ChainBroken, LeewardError
from leeward.mobility.upload import Uploader
from leeward.model.recovery import Consistency
from leeward.processor import item as item_module
from leeward.processor import scrub as scrub_module
from leeward.processor.item import ItemProcessor
from leeward.processor.scrub import Findings
from leeward.processor.seal import seal_catalog
from leeward.replica.segment import decode_table

CUTS = 5


def flip(data: bytes) -> bytes:
    """Return a segment with every frame damaged."""
    start = int(decode_table(data).frame_offsets[0])
    return data[:start] + bytes(byte ^ 1 for byte in data[start:])


def flip_table(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


def objects(world: World, kind: str) -> list[tuple[str, str]]:
    """Return (url, name) of every stored segment or map of the item's disks."""
    return [
        (url, name)
        for url, store in world.stores.items()
        for name in store.list(f"items/{ITEM}/disks/")
        if f"/{kind}/" in name
    ]


def damage(world: World, at: tuple[str, str], change: Callable[[bytes], bytes] | None) -> bytes:
    """Change the object, or with None remove it; return what it was."""
    store, name = world.stores[at[0]], at[1]
    before = store.get(name)
    store.delete(name)
    if change:
        store.create(name, change(before))
    return before


def unreadable(world: World) -> set[str]:
    """Return the points that cannot be read whole: the oracle."""
    found = set()
    for point in world.points():
        try:
            world.contents(point)
        except LeewardError:
            found.add(point.id)
    return found


def upload(uploader: Uploader, processor: ItemProcessor, source: Source, count: int) -> None:
    for _ in range(count):
        uploader.upload(source.next_cut())
    drain(processor)


@pytest.mark.parametrize("change", [flip, flip_table, None], ids=["frame", "table", "missing"])
def test_any_damage_quarantines_exactly_the_points_it_touches(
    change: Callable[[bytes], bytes] | None,
) -> None:
    world, source = World(), Source(3)
    with world.uploader() as uploader, world.processor() as processor:
        upload(uploader, processor, source, CUTS)
        assert processor.scrub().damaged == ()
        for at in objects(world, "segments"):
            before = damage(world, at, change)
            expected = unreadable(world)
            report = processor.scrub(dry_run=True)
            assert set(report.quarantined) == expected
            assert bool(report.damaged) >= bool(expected)
            assert not world.catalog().quarantined, "a dry run changes nothing"
            world.stores[at[0]]._objects[at[1]] = before


@pytest.mark.parametrize("change", [flip, flip_table], ids=["frame", "table"])
def test_a_damaged_newest_state_is_sent_anew_and_old_points_stay_quarantined(
    change: Callable[[bytes], bytes],
) -> None:
    world, source = World(), Source(4)
    with world.uploader() as uploader, world.processor() as processor:
        upload(uploader, processor, source, CUTS)
        uploader.upload(source.whole_cut())
        upload(uploader, processor, source, 2)
        for disk in DISKS:
            url = {"system": "memory://first", "data": "memory://second"}[disk.name]
            mine = [at for at in objects(world, "segments") if at[0] == url]
            damage(world, max(mine, key=lambda at: world.stores[at[0]].size(at[1])), change)
        report = processor.scrub()
        assert report.heals
        assert report.quarantined
        assert world.catalog().quarantined == unreadable(world) == set(report.quarantined)

        applied = processor.applied_sequence
        uploader.upload(source.next_cut())
        processor.step()
        assert processor.applied_sequence == applied, "nothing follows a damaged state"
        with pytest.raises(ChainBroken):
            uploader.check_refused(uploader.applied_sequence())
        assert uploader.broken_after is not None
        assert uploader.broken_after.is_damaged
        uploader.restart()
        # Into blocks that are damaged: the rest of them is gone, until the sweep brings it.
        merged = [
            (index, offset, SECTOR)
            for index, disk in enumerate(DISKS)
            for offset in range(2 * SECTOR, disk.size_bytes, 8 * SECTOR)
        ]
        uploader.upload(source.next_cut(consistency=Consistency.NONE, ranges=merged))
        uploader.upload(source.whole_cut())
        settle(processor)
        upload(uploader, processor, source, 3)

        catalog = world.catalog()
        good = [point for point in catalog.points if point.id not in catalog.quarantined]
        assert len(good) >= 4
        assert all(world.contents(point) == source.contents[point.time_ns] for point in good)
        assert catalog.find_point("latest") == good[-1]
        assert processor.scrub().quarantined == tuple(sorted(catalog.quarantined))
        assert not processor.awaits_restart


def settle(processor: ItemProcessor) -> None:
    """The processor has looked for the cut that begins anew, whatever its clock says."""
    processor._arrivals.look_at_once()
    processor.step()
    drain(processor)


def test_what_is_whole_again_is_released() -> None:
    world, source = World(), Source(5)
    with world.uploader() as uploader, world.processor() as processor:
        upload(uploader, processor, source, CUTS)
        at = objects(world, "segments")[-1]
        before = damage(world, at, flip)
        report = processor.scrub()
        assert report.heals
        assert processor.awaits_restart
        assert world.catalog().find_point("latest").id not in report.quarantined
        assert world.catalog().find_point(report.quarantined[-1]).is_quarantined
        world.stores[at[0]]._objects[at[1]] = before
        assert processor.scrub().quarantined == ()
        assert not processor.awaits_restart
        upload(uploader, processor, source, 2)
        world.check(source)


def test_a_failover_never_ends_at_a_damaged_point() -> None:
    world, source = World(), Source(6)
    with world.uploader() as uploader, world.processor() as processor:
        upload(uploader, processor, source, CUTS)
        damage(world, objects(world, "segments")[-1], lambda data: data[:-1] + b"?")
        quarantined = processor.scrub().quarantined
        assert world.points()[-1].id in quarantined
        sealed = seal_catalog(world.catalog(), epoch=1, new_epoch=2)
        assert sealed.id not in quarantined


def test_points_that_came_while_the_scrub_read_are_quarantined_though_its_newest_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scrub of a big replica outlasts the points it knew."""
    world, source = World(), Source(7)
    with world.uploader() as uploader, world.processor() as processor:
        uploader.upload(source.whole_cut())
        upload(uploader, processor, source, CUTS)
        oldest, newest = world.points()[0].id, world.points()[-1].id
        for at in objects(world, "segments"):
            damage(world, at, flip)

        def read_slowly(*arguments: Any, **more: Any) -> Findings:
            found = scrub_module.read_everything(*arguments, **more)
            for _ in range(2):  # whole blocks: nothing old is merged into them
                uploader.upload(source.next_cut(ranges=[(0, 0, 8 * SECTOR)]))
            drain(processor)
            processor.drop_points(lambda points: [oldest, newest])
            return found

        monkeypatch.setattr(item_module, "read_everything", read_slowly)
        assert processor.scrub().heals
        assert processor.awaits_restart
        assert unreadable(world) <= world.catalog().quarantined
        assert newest not in {point.id for point in world.points()}
