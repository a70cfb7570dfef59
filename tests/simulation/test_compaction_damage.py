"""Compaction of a log part of which was damaged, and sent anew by the source.

Whatever was damaged, whatever becomes whole again later: every point that is not quarantined stays
byte for byte what it was, and what was damaged does not keep space for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.simulation.test_compaction import short_distances  # noqa: F401
from tests.simulation.world import DISKS, ITEM, URLS, HandClock, Source, World, drain

from leeward.core.errors import ChainBroken
from leeward.core.units import CHUNK
from leeward.mobility.cut import SweepRead, build_cut
from leeward.mobility.journal import RECORD_DTYPE
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import Consistency
from leeward.processor.garbage import GRACE_SECONDS
from leeward.processor.item import ItemProcessor
from leeward.replica.layout import segment_name

SYSTEM = DISKS[0]


def flip_table(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


@dataclass
class Healed:
    """An item one of whose segments was damaged and whose source has sent what differed."""

    uploader: Uploader
    processor: ItemProcessor
    world: World
    clock: HandClock
    source: Source = field(default_factory=lambda: Source(11))

    def __post_init__(self) -> None:
        self.store = self.world.stores[URLS[SYSTEM.name]]
        for _ in range(2):
            self.send(self.source.whole_cut())
        for _ in range(5):
            self.send(self.source.next_cut())

    def send(self, cut: Cut) -> None:
        self.uploader.upload(cut)
        drain(self.processor)

    def damage(self) -> None:
        """Damage the table of the system disk's newest segment, so that its map cannot be made."""
        while not (log := self.world.catalog().newest_disk_log(SYSTEM.name)[1]):
            self.send(self.source.next_cut())
        self.name = segment_name(ITEM, SYSTEM.name, log[-1])
        self.whole = self.store.get(self.name)
        self.store._objects[self.name] = flip_table(self.whole)
        assert self.processor.scrub().heals

    def mend(self) -> None:
        self.store._objects[self.name] = self.whole

    def heal(self) -> None:
        """The source has discarded its first chunk, and sends what differs from a disk of which
        the target says that it has nothing."""
        self.processor.step()
        with pytest.raises(ChainBroken):
            self.uploader.check_refused(self.uploader.applied_sequence())
        self.uploader.restart()
        self.source._images[0][:CHUNK] = bytes(CHUNK)
        self.uploader.upload(self.swept_cut())
        self.processor._arrivals.look_at_once()
        self.processor.step()
        drain(self.processor)
        assert not self.processor.awaits_restart

    def swept_cut(self) -> Cut:
        whole = self.source.whole_cut(is_swept=False)
        images = self.source.contents[whole.time_ns]
        reads = [
            SweepRead(index, at, len(part), 0, part)
            for index, image in enumerate(images)
            for at in range(0, len(image), CHUNK)
            if any(part := image[at : at + CHUNK])
        ]
        changes = build_cut(
            np.array([], dtype=RECORD_DTYPE),
            first_position=0,
            buffer_of=lambda _: b"",
            sweep=reads,
            disks=DISKS,
        )
        return Cut(
            disks=changes,
            time_ns=whole.time_ns,
            consistency=Consistency.CRASH,
            vm_config=whole.vm_config,
        )

    def settle(self) -> None:
        self.processor.reclaim(is_thorough=True)
        self.clock.now += GRACE_SECONDS
        self.processor.reclaim(is_thorough=True)

    def check(self) -> None:
        catalog = self.world.catalog()
        for point in catalog.points:
            if point.id not in catalog.quarantined:
                assert self.world.contents(point) == self.source.contents[point.time_ns], point

    def drop_all_but(self, count: int) -> None:
        self.processor.drop_points(lambda points: [p.id for p in points[:-count]])


@pytest.fixture
def item():  # type: ignore[no-untyped-def]
    world, clock = World(), HandClock()
    with world.uploader() as uploader, world.processor(clock=clock) as processor:
        yield Healed(uploader, processor, world, clock)


def test_what_the_source_did_not_send_stays_zeros_when_the_damaged_is_whole_again(item) -> None:  # type: ignore[no-untyped-def]
    item.damage()
    item.heal()
    item.send(item.source.next_cut(ranges=[(0, 0, CHUNK)]))
    for _ in range(3):
        item.send(item.source.next_cut())
    item.check()
    item.mend()
    item.processor.scrub()
    item.drop_all_but(5)
    item.check()
    item.settle()
    item.check()
    assert set(item.world.replica_objects()) == item.world.needed_objects()


def test_what_is_damaged_for_ever_is_reclaimed_once_no_point_needs_it(item) -> None:  # type: ignore[no-untyped-def]
    item.damage()
    item.heal()
    for _ in range(3):
        item.send(item.source.next_cut())
    item.drop_all_but(3)
    item.settle()
    item.check()
    assert item.name not in item.store.list("")
    assert item.processor.reclaim(is_thorough=True, dry_run=True).dead_bytes == 0


def test_a_compaction_that_began_before_the_damage_does_not_end_after_it_was_healed(item) -> None:  # type: ignore[no-untyped-def]
    item.drop_all_but(3)
    owner, compact = item.processor, item.processor.compact
    done: list[object] = []

    def late(made) -> bool:  # type: ignore[no-untyped-def]
        if not done and made.disk == SYSTEM.name:
            done.append(made)
            item.damage()
            item.heal()
            item.send(item.source.next_cut())
            item.check()
        return bool(compact(made))

    owner.compact = late
    owner.reclaim(is_thorough=True)
    assert done
    item.check()
    assert item.world.catalog().points[-1].id not in item.world.catalog().quarantined
