"""Readers of recovery points that go on reading while the log is compacted under them.

Owns: opening points with a pin and without, and what they must read. Must not know: who deletes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.simulation.world import DISKS, ITEM, URLS, HandClock, Source, World

from leeward.core.errors import Unavailable
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.processor.garbage import GRACE_SECONDS
from leeward.replica.disk import PointDisk, open_point
from leeward.replica.pins import EXPIRY_SECONDS, Pin

GRACE = GRACE_SECONDS
"""As promised to readers, whatever a planted defect makes of it."""


class FullStore(MemoryStore):
    """A store that takes nothing more while it `is_full`: nobody can pin there."""

    is_full = True

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store.url)
        self._objects = store._objects

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.is_full:
            raise Unavailable("the store is full")
        super().create(name, data)


@dataclass
class Reader:
    """One point held open. until: by the hand clock, when it is promised nothing any more."""

    disks: dict[str, PointDisk]
    expected: tuple[bytes, ...]
    pin: Pin | None
    until: float

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()
        if self.pin:
            self.pin.release()


@dataclass
class Readers:
    """Some readers of one item."""

    world: World
    source: Source
    clock: HandClock
    chance: random.Random
    open: list[Reader] = field(default_factory=list)

    def begin(self, *, is_pinned: bool) -> None:
        """Open one of the points there are."""
        points = self.world.points()
        if not points:
            return
        store = self.world.catalog_store
        point = self.chance.choice(points)
        pin = Pin(store, ITEM, self.world.catalog().version, point.id) if is_pinned else None
        stores = {disk.name: self.world.stores[URLS[disk.name]] for disk in DISKS}
        self.open.append(
            Reader(
                disks=open_point(FullStore(store), stores, ITEM, point.id, cache_bytes=0),
                expected=self.source.contents[point.time_ns],
                pin=pin,
                until=float("inf") if is_pinned else self.clock.now + GRACE,
            )
        )

    def let_pass(self, seconds: float) -> None:
        """Let time pass: pins are renewed as often as they must be."""
        while seconds > 0:
            step = min(seconds, EXPIRY_SECONDS / 3)
            self.clock.now += step
            seconds -= step
            for reader in self.open:
                if reader.pin:
                    reader.pin.renew()

    def check(self) -> None:
        """Assert that each still reads what it must; those without a promise leave."""
        for reader in list(self.open):
            if self.clock.now >= reader.until:
                reader.close()
                self.open.remove(reader)
                continue
            for disk, content in zip(DISKS, reader.expected, strict=True):
                found = reader.disks[disk.name].read(0, disk.size_bytes)
                assert found == content, "a reader was given something else"

    def close(self) -> None:
        for reader in self.open:
            reader.close()
        self.open.clear()
