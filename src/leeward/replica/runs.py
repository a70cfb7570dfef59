"""The arithmetic of extents, pieces and runs, one numpy expression each.

Owns: pure functions over parallel arrays (places, lengths, references). Must not know: pages, locks
or storage. Under BlockMap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from leeward.replica.layout import FRAGMENTED, POSITION_BITS

Indexes = NDArray[np.int64]
References = NDArray[np.uint64]

RUN_DTYPE = np.dtype([("block", "<u8"), ("count", "<u8"), ("segment", "<u8"), ("position", "<u4")])
"""count blocks from `block` on lie in `segment` from block `position` of its data on; segment 0:
they read as zeros."""

FLAG = np.uint64(FRAGMENTED)
POSITION_MASK = np.uint64((1 << POSITION_BITS) - 1)
POSITION_SHIFT = np.uint64(POSITION_BITS)


def cut_to_range(
    starts: Indexes, counts: Indexes, references: References, low: int, high: int
) -> tuple[Indexes, Indexes, References]:
    """Return what of the extents, sorted and apart, lies in [low, high)."""
    first = int(np.searchsorted(starts + counts, low, side="right"))
    last = int(np.searchsorted(starts, high, side="left"))
    starts, counts, references = starts[first:last], counts[first:last], references[first:last]
    begins, ends = np.maximum(starts, low), np.minimum(starts + counts, high)
    skipped = np.where(references == 0, 0, begins - starts).astype(np.uint64)
    return begins, ends - begins, references + skipped


def split_by_cost(costs: Indexes, limit: int) -> Iterator[slice]:
    """Yield consecutive slices of about `limit` cost each, at least one element long."""
    ends = np.cumsum(costs)
    first = 0
    while first < len(costs):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + limit)))
        yield slice(first, last)
        first = last


def ramp(lengths: Indexes) -> Indexes:
    """Return 0, 1, ... lengths[0] - 1, 0, 1, ... lengths[1] - 1, and so on."""
    total = int(lengths.sum())
    return np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def clip_pieces(
    blocks: Indexes, lengths: Indexes, references: References, low: int, high: int
) -> tuple[Indexes, Indexes, References]:
    """Return the pieces cut to [low, high); only the first and last few can stick out."""
    inside = (blocks + lengths > low) & (blocks < high)
    blocks, lengths, references = blocks[inside], lengths[inside], references[inside]
    skipped = max(0, low - int(blocks[0]))
    blocks[0] += skipped
    lengths[0] -= skipped
    if references[0]:
        references[0] += np.uint64(skipped)
    lengths[-1] = min(int(lengths[-1]), high - int(blocks[-1]))
    return blocks, lengths, references


def join_pieces(
    places: Indexes, lengths: Indexes, references: References, step: int
) -> tuple[Indexes, Indexes, References]:
    """Return gapless pieces with those put together that go on where the one before ends.

    A piece's reference advances by `step` per unit of length; zeros stay zeros, fragmented entries
    stay alone.
    """
    advances = lengths[:-1].astype(np.uint64) * np.uint64(step)
    advances[references[:-1] == 0] = 0
    joins = references[1:] == references[:-1] + advances
    joins &= (references[1:] == 0) == (references[:-1] == 0)
    joins &= references[:-1] < FLAG
    firsts = np.flatnonzero(np.concatenate([[True], ~joins]))
    return places[firsts], np.add.reduceat(lengths, firsts), references[firsts]


def make_runs(blocks: Indexes, lengths: Indexes, references: References) -> NDArray[np.void]:
    runs = np.empty(len(blocks), RUN_DTYPE)
    runs["block"] = blocks
    runs["count"] = lengths
    runs["segment"] = references >> POSITION_SHIFT
    runs["position"] = references & POSITION_MASK
    return runs
