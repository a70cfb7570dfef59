"""Byte ranges with a source: the arithmetic that cut.py is made of.

Owns: last writer wins, joining neighbours, cutting to borders; all in numpy, n log n. Must not
know: records, sweeps, segments. Pure; under cut.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leeward.core.units import BLOCK

PAINT_MAX = 1 << 22
"""Elements one painting may touch: beyond it the writers are coalesced in halves first, so that
thousands of wide zeroes over thousands of small writes stay n log n in time and memory."""

ZERO_SOURCE = -1
"""Source of a piece that reads as zeros."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Byte ranges [start, end) of a disk, each from byte `at` of `source` on: an index, ZERO_SOURCE
    or another negative mark of the caller's."""

    start: Ints
    end: Ints
    source: Ints
    at: Ints

    def select(self, which: npt.NDArray[np.bool_] | Ints) -> Pieces:
        return Pieces(self.start[which], self.end[which], self.source[which], self.at[which])


def coalesce(writers: Pieces) -> Pieces:
    """Return disjoint sorted pieces, each byte from the last writer that covers it."""
    owner = np.arange(writers.start.size, dtype=np.int64)
    start, end, owner = _last_writers(writers.start, writers.end, owner)
    source = writers.source[owner]
    same = np.where(source == ZERO_SOURCE, ZERO_SOURCE, owner)
    first = run_starts(start, end, same)
    start, end, owner, source = start[first], run_ends(end, first), owner[first], source[first]
    return Pieces(start, end, source, writers.at[owner] + start - writers.start[owner])


def _last_writers(start: Ints, end: Ints, owner: Ints) -> tuple[Ints, Ints, Ints]:
    """Return (start, end, owner) of disjoint sorted intervals; a later writer hides an earlier."""
    if start.size > 2 and _paint_cost(start, end) > PAINT_MAX:
        half = start.size // 2
        early = _last_writers(start[:half], end[:half], owner[:half])
        late = _last_writers(start[half:], end[half:], owner[half:])
        start, end, owner = (np.concatenate(both) for both in zip(early, late, strict=True))
    return _paint(start, end, owner)


def _paint_cost(start: Ints, end: Ints) -> int:
    """Return the number of elementary intervals that painting would touch."""
    edges = np.unique(np.concatenate((start, end)))
    return int((np.searchsorted(edges, end) - np.searchsorted(edges, start)).sum())


def _paint(start: Ints, end: Ints, owner: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the elementary intervals that have an owner, neighbours of one owner joined."""
    edges = np.unique(np.concatenate((start, end)))
    low = np.searchsorted(edges, start)
    spans = np.searchsorted(edges, end) - low
    skip = np.cumsum(spans) - spans
    interval = np.arange(int(spans.sum()), dtype=np.int64) + np.repeat(low - skip, spans)
    painted = np.full(max(edges.size - 1, 0), -1, dtype=np.int64)
    painted[interval] = np.repeat(owner, spans)  # of repeated indices the last assignment stays
    owned = np.flatnonzero(painted >= 0)
    left, right, painted = edges[owned], edges[owned + 1], painted[owned]
    first = run_starts(left, right, painted)
    return left[first], run_ends(right, first), painted[first]


def run_starts(start: Ints, end: Ints, key: npt.NDArray[np.generic] | None) -> Ints:
    """Return the indices at which a run of touching pieces of equal key begins."""
    if not start.size:
        return np.zeros(0, dtype=np.int64)
    breaks = start[1:] != end[:-1]
    if key is not None:
        breaks |= key[1:] != key[:-1]
    return np.concatenate((np.zeros(1, np.int64), np.flatnonzero(breaks) + 1))


def run_ends(end: Ints, first: Ints) -> Ints:
    """Return the end of each run that begins at the indices `first`."""
    return end[np.append(first[1:], end.size) - 1] if first.size else end[:0]


def aligned_inside(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Return the block-aligned inside of each range; (end, end) where there is none."""
    low, high = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
    empty = low >= high
    return np.where(empty, end, low), np.where(empty, end, high)


def split_in_three(pieces: Pieces, low: Ints, high: Ints) -> tuple[Pieces, Pieces, Pieces]:
    """Return the parts of the pieces before `low`, in [low, high), and from `high` on."""
    return (
        clip(pieces, pieces.start, np.minimum(pieces.end, low)),
        clip(pieces, np.maximum(pieces.start, low), np.minimum(pieces.end, high)),
        clip(pieces, np.maximum(pieces.start, high), pieces.end),
    )


def clip(pieces: Pieces, start: Ints, end: Ints) -> Pieces:
    """Return the pieces cut down to [start, end), without those of which nothing is left."""
    clipped = Pieces(start, end, pieces.source, pieces.at + start - pieces.start)
    return clipped.select(start < end)


def concatenate(parts: Sequence[Pieces]) -> Pieces:
    """Return all pieces of the parts, in that order."""
    return Pieces(
        start=np.concatenate([part.start for part in parts]),
        end=np.concatenate([part.end for part in parts]),
        source=np.concatenate([part.source for part in parts]),
        at=np.concatenate([part.at for part in parts]),
    )


def in_order(pieces: Pieces) -> Pieces:
    """Return the pieces by start."""
    return pieces.select(np.argsort(pieces.start, kind="stable"))
