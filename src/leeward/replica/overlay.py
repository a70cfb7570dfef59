"""What can be seen of extents that were written one layer over the other.

Owns: the arithmetic, a few numpy expressions for any number of extents. Must not know: segments'
ids, stores, what is kept. Under the plan of a compaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leeward.replica.runs import Indexes
from leeward.replica.segment import EXTENT_DTYPE, ZEROES

VISIBLE_DTYPE = np.dtype(
    [("start", "<i8"), ("count", "<i8"), ("layer", "<i8"), ("position", "<i8")]
)
"""count blocks from `start` on are those of `layer`, from `position` of its data on, or ZEROES."""


def visible(layers: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Return what of the layers' extents (EXTENT_DTYPE, oldest layer first, none overlapping within
    a layer) no later layer covers: VISIBLE_DTYPE, sorted by start, none overlapping."""
    extents = np.concatenate([*layers, np.zeros(0, EXTENT_DTYPE)])
    starts = extents["start"].astype(np.int64)
    ends = starts + extents["count"].astype(np.int64)
    layer_of = np.repeat(np.arange(len(layers)), [len(layer) for layer in layers])
    left, right, owner = _paint(starts, ends)
    found = np.zeros(len(left), VISIBLE_DTYPE)
    found["start"], found["count"], found["layer"] = left, right - left, layer_of[owner]
    position = extents["position"].astype(np.int64)[owner]
    found["position"] = np.where(position == ZEROES, ZEROES, position + left - starts[owner])
    return found


def _paint(starts: Indexes, ends: Indexes) -> tuple[Indexes, Indexes, Indexes]:
    """Return (left, right, index) of disjoint sorted ranges, each from the last one covering it.

    Ranges are cut into cells at all edges. The highest index over each cell comes from a sparse
    table filled from above: a range is two overlapping blocks of a power of two cells, and every
    block hands down to its two halves what covers it.
    """
    edges = np.unique(np.concatenate([starts, ends]))
    low, high = np.searchsorted(edges, starts), np.searchsorted(edges, ends)
    level_of = np.frexp(high - low)[1] - 1
    cells = max(len(edges) - 1, 0)
    highest = np.full(cells, -1, np.int64)
    for level in range(int(level_of.max(initial=0)), -1, -1):
        half, above = 1 << level, highest
        highest = above.copy()
        np.maximum(highest[half:], above[: cells - half], out=highest[half:])
        mine = np.flatnonzero(level_of == level)
        for block in (low[mine], high[mine] - half):
            given = np.full(cells, -1, np.int64)
            given[block] = mine  # of repeated places the last, which is the highest, stays
            np.maximum(highest, given, out=highest)
    owned = np.flatnonzero(highest >= 0)
    left, right, owner = edges[owned], edges[owned + 1], highest[owned]
    breaks = (owner[1:] != owner[:-1]) | (left[1:] != right[:-1])
    first = np.concatenate([np.zeros(min(len(left), 1), np.int64), np.flatnonzero(breaks) + 1])
    last = np.append(first[1:], len(left)) - 1 if len(first) else first
    return left[first], right[last], owner[first]
