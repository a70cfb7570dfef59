"""Which segments of a disk's log to write anew, and what of them.

Owns: what is live, what is worth rewriting, and proving that a rewritten log shows the same. Must
not know: stores, catalogs, clocks. Pure; compaction.py carries the plan out.

A *window* is what lies between one kept recovery point and the next, the latter's cut included.
Nobody can want the disk as it was inside a window: of two versions of a block born in it, the
earlier is dead, for no kept point lies in its [birth, death). The later one lives as long as the
point does. So each window is planned by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import DataIntegrity
from leeward.core.units import KIB, MIB
from leeward.replica.block_map import BlockMap
from leeward.replica.overlay import visible
from leeward.replica.runs import Indexes
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SEGMENT_DATA_MAX, ZEROES

DEAD_PERCENT_MIN = 15
"""A segment of whose data less is dead is left as it is."""
DEAD_PERCENT_CHEAP = 50
"""Of a segment with so much dead no more is moved than is freed."""
SMALL_BYTES = 256 * KIB
SMALL_COUNT_MIN = 256
"""So many segments of less data in one window become few, whatever is dead of them."""
GROUP_BLOCKS = SEGMENT_DATA_MAX // BLOCKS
GROUP_EXTENTS = 1 << 16
"""Extents of a segment that a compaction writes, at most."""
PIECE_BLOCKS = MIB // BLOCKS

_CHECKED_BLOCKS = 1 << 20
_RUN_DTYPE = np.dtype([("start", "<i8"), ("count", "<i8"), ("segment", "<i8"), ("position", "<i8")])


@dataclass(frozen=True, slots=True)
class LogSegment:
    """A segment of a disk's log. extents: as in its table. data_blocks: of its logical data."""

    segment_id: int
    extents: NDArray[np.void]
    data_blocks: int

    def covers(self, block_count: int) -> bool:
        """Say whether nothing below that block can be seen of what was written before."""
        starts, counts = (self.extents[each].astype(np.int64) for each in ("start", "count"))
        ends = np.concatenate([np.zeros(1, np.int64), starts + counts])
        return bool((starts == ends[:-1]).all() and ends[-1] >= block_count)


@dataclass(frozen=True, slots=True)
class Group:
    """What one new segment is to hold.

    extents: as in its table. segments, positions: where each block of its data lies now, in the
    order of the data: every old segment's from its beginning to its end.
    """

    extents: NDArray[np.void]
    segments: NDArray[np.uint64]
    positions: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """victims: the window's segments to be replaced by `groups`, in the order of the log.

    live_blocks, dead_blocks: of all segments' data. moved_blocks: of the victims' live data.
    candidates: segments that might be victims, whatever else is; crowded: those of them that are
    too many and too small. dead_by_percent: dead blocks of the candidates, by how much of the
    segment is dead; of what goes in any case at 100.
    """

    victims: tuple[int, ...]
    groups: tuple[Group, ...]
    live_blocks: int
    dead_blocks: int
    moved_blocks: int
    candidates: int
    crowded: int
    dead_by_percent: Indexes


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """Of a disk's listed segments, in blocks of data. dead_by_percent: dead in those that might be
    rewritten, by how much of the segment is dead."""

    live: int = 0
    dead: int = 0
    candidates: int = 0
    crowded: int = 0
    dead_by_percent: Indexes = field(default_factory=lambda: np.zeros(101, np.int64))

    @property
    def freeable(self) -> int:
        return int(self.dead_by_percent.sum())


def plan_window(
    window: Sequence[LogSegment],
    *,
    spared: frozenset[int] = frozenset(),
    dead_percent_min: int = DEAD_PERCENT_MIN,
    moved_blocks_max: int = 1 << 62,
) -> WindowPlan:
    """Return what to do with a window's segments, oldest first.

    spared: ids of segments that cannot be read, never victims. dead_percent_min: of a victim, at
    least. moved_blocks_max: so much live data is rewritten at most, that of the segments with the
    most dead first.
    """
    runs = visible([segment.extents for segment in window])
    data = np.array([segment.data_blocks for segment in window], np.int64)
    is_data = runs["position"] != ZEROES
    live = np.bincount(
        runs["layer"][is_data], runs["count"][is_data], minlength=len(window)
    ).astype(np.int64)
    percent, is_crowded = _dead_percent(runs, data, live)
    is_spared = np.array([segment.segment_id in spared for segment in window], np.bool_)
    is_candidate = ~is_spared & (percent >= DEAD_PERCENT_MIN)
    is_victim = is_candidate & (percent >= dead_percent_min)
    is_victim &= _affordable(data, live, is_victim, moved_blocks_max)
    victims = np.flatnonzero(is_victim)
    moving = runs[is_victim[runs["layer"]]]
    return WindowPlan(
        victims=tuple(window[index].segment_id for index in victims.tolist()),
        groups=tuple(_groups(moving, [segment.segment_id for segment in window])),
        live_blocks=int(live.sum()),
        dead_blocks=int((data - live).sum()),
        moved_blocks=int(live[victims].sum()),
        candidates=int(np.count_nonzero(is_candidate)),
        crowded=int(np.count_nonzero(is_candidate & is_crowded)),
        dead_by_percent=np.bincount(
            percent[is_candidate], (data - live)[is_candidate], minlength=101
        ).astype(np.int64),
    )


def figures_of(plan: WindowPlan) -> DiskFigures:
    return DiskFigures(
        plan.live_blocks,
        plan.dead_blocks,
        plan.candidates,
        plan.crowded,
        plan.dead_by_percent,
    )


def sum_figures(figures: Iterable[DiskFigures]) -> DiskFigures:
    each = list(figures)
    return DiskFigures(
        sum(f.live for f in each),
        sum(f.dead for f in each),
        sum(f.candidates for f in each),
        sum(f.crowded for f in each),
        sum((f.dead_by_percent for f in each), np.zeros(101, np.int64)),
    )


def percent_to_free(dead_by_percent: Indexes, blocks: int) -> int:
    """Return how much of a segment must be dead for it to be a victim, so that so many dead blocks
    are freed with the least moved: the deadest first, and whatever is cheap."""
    freed = np.cumsum(dead_by_percent[::-1])[::-1]
    enough = np.flatnonzero(freed >= blocks)
    percent = int(enough[-1]) if enough.size else DEAD_PERCENT_MIN
    return max(DEAD_PERCENT_MIN, min(percent, DEAD_PERCENT_CHEAP))


def _dead_percent(
    runs: NDArray[np.void], data: Indexes, live: Indexes
) -> tuple[Indexes, NDArray[np.bool_]]:
    """Return how much of each segment is dead, 100 for what is to go in any case; and which are
    crowded, so many and so small that few are to be made of them."""
    is_seen = np.bincount(runs["layer"], minlength=len(data)) > 0
    small = data * BLOCKS < SMALL_BYTES
    is_crowded = small & (np.count_nonzero(small) >= SMALL_COUNT_MIN)
    percent = (data - live) * 100 // np.maximum(data, 1)
    return np.where(is_seen & ~is_crowded, percent, 100), is_crowded


def _affordable(
    data: Indexes, live: Indexes, is_victim: NDArray[np.bool_], blocks_max: int
) -> NDArray[np.bool_]:
    """Return which victims' live data are within the limit together, those with the smallest live
    share first, and one of them at least."""
    order = np.argsort(np.where(is_victim, live / np.maximum(data, 1), 2.0), kind="stable")
    before = np.cumsum(live[order]) - live[order]
    affordable = np.zeros(len(data), np.bool_)
    affordable[order[before < blocks_max]] = True
    return affordable


def _groups(moving: NDArray[np.void], ids: Sequence[int]) -> list[Group]:
    """Return the live runs of the victims, in the order in which they lie stored, put into groups.

    Runs are cut into pieces first, so that groups come out full.
    """
    pieces = _cut(moving)
    pieces = pieces[np.lexsort((pieces["position"], pieces["layer"]))]
    is_data = pieces["position"] != ZEROES
    ends = np.cumsum(np.where(is_data, pieces["count"], 0))
    groups: list[Group] = []
    first = 0
    while first < len(pieces):
        done = int(ends[first - 1]) if first else 0
        full = int(np.searchsorted(ends, done + GROUP_BLOCKS, side="right"))
        last = min(full, first + GROUP_EXTENTS)
        groups.append(_group(pieces[first:last], ids))
        first = last
    return groups


def _cut(runs: NDArray[np.void]) -> NDArray[np.void]:
    """Return the runs, those with data cut so that none is longer than PIECE_BLOCKS."""
    is_data = runs["position"] != ZEROES
    parts = np.where(is_data, -(-runs["count"] // PIECE_BLOCKS), 1)
    skipped = (np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)) * (
        PIECE_BLOCKS
    )
    cut = np.repeat(runs, parts)
    has_data = np.repeat(is_data, parts)
    cut["start"] += skipped
    cut["count"] -= skipped
    cut["position"][has_data] += skipped[has_data]
    cut["count"][has_data] = np.minimum(cut["count"][has_data], PIECE_BLOCKS)
    return cut


def _group(pieces: NDArray[np.void], ids: Sequence[int]) -> Group:
    is_data = pieces["position"] != ZEROES
    counts = np.where(is_data, pieces["count"], 0)
    offsets = np.cumsum(counts) - counts
    extents = np.zeros(len(pieces), EXTENT_DTYPE)
    extents["start"], extents["count"] = pieces["start"], pieces["count"]
    extents["position"] = np.where(is_data, offsets, ZEROES)
    within = np.arange(int(counts.sum())) - np.repeat(offsets, counts)
    positions = np.repeat(np.where(is_data, pieces["position"], 0), counts) + within
    segments = np.repeat(np.array(ids, np.uint64)[pieces["layer"]], counts)
    return Group(
        extents[np.argsort(extents["start"], kind="stable")],
        segments,
        positions.astype(np.uint32),
    )


def replace_victims(
    lists: Sequence[tuple[int, ...]], plan: WindowPlan, new_ids: Sequence[int]
) -> list[tuple[int, ...]]:
    """Return the lists of a window's segments, one for each cut, without the victims, the new ones
    where the last victim was: no later segment of the window has a block of theirs."""
    gone, last = set(plan.victims), plan.victims[-1] if plan.victims else 0
    return [
        tuple(
            kept
            for segment_id in listed
            for kept in (
                new_ids if segment_id == last else (() if segment_id in gone else (segment_id,))
            )
        )
        for listed in lists
    ]


def check_window(
    before: Sequence[LogSegment], after: Sequence[LogSegment], moved: Mapping[int, Group]
) -> None:
    """Return if the segments `after`, applied in order, give every block what `before` gave it,
    a block of a new segment being what it was moved from. moved: by new segment's id.

    Independent of how the plan was made. Raises: DataIntegrity.
    """
    if not np.array_equal(traced(_shown(before), {}), traced(_shown(after), moved)):
        raise DataIntegrity("a compacted window would not show what it showed")


def check_maps(before: BlockMap, after: BlockMap, moved: Mapping[int, Group]) -> None:
    """Return if both maps give every block the same, as `check_window`. Raises: DataIntegrity."""
    for low in range(0, before.block_count, _CHECKED_BLOCKS):
        count = min(_CHECKED_BLOCKS, before.block_count - low)
        old, new = (_runs_of(each.resolve(low, count)) for each in (before, after))
        if not np.array_equal(traced(old, {}), traced(new, moved)):
            raise DataIntegrity("a compacted map would not show what it showed")


def _runs_of(resolved: NDArray[np.void]) -> NDArray[np.void]:
    runs = np.zeros(len(resolved), _RUN_DTYPE)
    runs["start"], runs["count"] = resolved["block"], resolved["count"]
    runs["segment"] = resolved["segment"]
    runs["position"] = np.where(resolved["segment"] == 0, 0, resolved["position"])
    return runs


def _shown(window: Sequence[LogSegment]) -> NDArray[np.void]:
    """Return what a window makes of the disk; segment 0: zeros."""
    found = visible([segment.extents for segment in window])
    ids = np.array([*(segment.segment_id for segment in window), 0], np.int64)
    is_data = found["position"] != ZEROES
    runs = np.zeros(len(found), _RUN_DTYPE)
    runs["start"], runs["count"] = found["start"], found["count"]
    runs["segment"] = np.where(is_data, ids[found["layer"]], 0)
    runs["position"] = np.where(is_data, found["position"], 0)
    return runs


def traced(runs: NDArray[np.void], moved: Mapping[int, Group]) -> NDArray[np.void]:
    """Return sorted runs with blocks of new segments as what they were moved from, none joinable
    with the next."""
    is_moved = np.isin(runs["segment"], list(moved))
    pieces = [runs[~is_moved]]
    for segment_id in np.unique(runs["segment"][is_moved]).tolist():
        mine, group = runs[runs["segment"] == segment_id], moved[segment_id]
        within = np.arange(int(mine["count"].sum())) - np.repeat(
            np.cumsum(mine["count"]) - mine["count"], mine["count"]
        )
        at = np.repeat(mine["position"], mine["count"]) + within
        blocks = np.zeros(len(at), _RUN_DTYPE)
        blocks["start"] = np.repeat(mine["start"], mine["count"]) + within
        blocks["count"] = 1
        blocks["segment"], blocks["position"] = group.segments[at], group.positions[at]
        pieces.append(blocks)
    found = np.concatenate(pieces)
    return _joined(found[np.argsort(found["start"], kind="stable")])


def _joined(runs: NDArray[np.void]) -> NDArray[np.void]:
    """Return sorted runs with those put together that go on where the one before ends."""
    if not len(runs):
        return runs
    ends = runs["start"] + runs["count"]
    joins = (runs["start"][1:] == ends[:-1]) & (runs["segment"][1:] == runs["segment"][:-1])
    joins &= (runs["segment"][1:] == 0) | (
        runs["position"][1:] == (runs["position"] + runs["count"])[:-1]
    )
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    joined: NDArray[np.void] = runs[first].copy()
    joined["count"] = np.append(ends[first[1:] - 1], ends[-1]) - joined["start"]
    return joined
