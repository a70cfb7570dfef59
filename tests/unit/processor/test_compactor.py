"""When a disk's log is compacted, and how much of it: what is dead against all that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from leeward.core.units import BLOCK
from leeward.object_store.memory import MemoryStore
from leeward.processor.compaction import DEAD_SHARE_AFTER, DEAD_SHARE_MAX, DiskCompactor
from leeward.replica.catalog_state import State
from leeward.replica.layout import make_segment_id, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

ITEM, DISK = "item-1", "d"
SIZE_BLOCKS = 1000


@dataclass
class Log:
    """A disk's log as a catalog's state shows it, its segments stored."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore("target"))
    entries: list[tuple[Any, Any]] = field(default_factory=list)
    kept: set[tuple[int, int]] = field(default_factory=set)

    def window(self, *cuts: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Add a window: for each cut the (start, count) it wrote. Return its segments' ids."""
        ids = []
        for extents in cuts:
            number = len(self.entries) + 1
            ids.append(make_segment_id(1, number))
            table = np.zeros(len(extents), EXTENT_DTYPE)
            table["start"], table["count"] = zip(*extents, strict=True)
            table["position"] = np.cumsum(table["count"]) - table["count"]
            header = SegmentHeader(ITEM, DISK, 1, number, BLOCKS)
            data = bytes(int(table["count"].sum()) * BLOCK)
            encoded = encode_segment(header, table, data, compression="zstd", key=None)
            self.store.create(segment_name(ITEM, DISK, ids[-1]), encoded.parts)
            entry = SimpleNamespace(
                size_bytes=SIZE_BLOCKS * BLOCK, segments=(ids[-1],), checkpoint=""
            )
            self.entries.append((SimpleNamespace(position=(1, number)), entry))
        self.kept.add((1, len(self.entries)))
        return tuple(ids)

    @property
    def state(self) -> State:
        return cast(State, self)

    def ends(self) -> set[tuple[int, int]]:
        return self.kept

    def disk_entries(self, disk: str) -> Iterator[tuple[Any, Any]]:
        return iter(self.entries)

    def compactor(self) -> DiskCompactor:
        return DiskCompactor(self.store, ITEM, DISK, compression="zstd", sleep=lambda _: None)


def test_what_is_dead_is_little_beside_a_first_copy_that_is_kept() -> None:
    """All of it counts, also what one cut has brought; it is read only while that matters."""
    log = Log()
    log.window([(0, SIZE_BLOCKS)])
    log.window([(0, 40)], [(0, 40)])
    compactor = log.compactor()
    figures = compactor.survey(log.state)
    assert (figures.live, figures.dead, figures.freeable) == (SIZE_BLOCKS + 40, 40, 40)
    assert not compactor.is_worthwhile()

    log.window([(100, 80)], [(100, 80)])
    log.window([(500, 20)])  # not read: it is worth a round whatever this has, or not
    figures = compactor.survey(log.state)
    assert figures.dead == 120 > DEAD_SHARE_MAX * (figures.live + figures.dead)
    assert compactor.is_worthwhile()


def test_the_deadest_go_and_only_until_little_enough_is_dead() -> None:
    log = Log()
    log.window([(0, SIZE_BLOCKS)])
    dead, *_ = log.window([(0, 80)], [(0, 80)])  # nothing of the first is seen
    slightly, *_ = log.window([(0, 200)], [(0, 60)])  # 30 % of the first is dead
    compactor = log.compactor()
    figures = compactor.survey(log.state)
    assert (figures.dead, compactor.is_worthwhile()) == (140, True)

    victims = {each for plan in compactor.plan(log.state).values() for each in plan.victims}
    assert victims == {dead}
    left = figures.dead - 80
    assert left <= DEAD_SHARE_AFTER * (figures.live + figures.dead)

    thorough = compactor.plan(log.state, is_thorough=True)
    assert {each for plan in thorough.values() for each in plan.victims} == {dead, slightly}


def test_what_cannot_be_freed_is_no_reason_for_a_round() -> None:
    """Much is dead, but nowhere enough in one segment."""
    log = Log()
    for _ in range(20):
        log.window([(0, 100)], [(0, 14), (200, 86)])
    compactor = log.compactor()
    figures = compactor.survey(log.state)
    assert figures.dead == 280
    assert (figures.freeable, compactor.is_worthwhile()) == (0, False)
