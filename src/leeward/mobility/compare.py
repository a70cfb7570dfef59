"""What of a disk differs from what the target holds of it: the part that a sweep has to send.

Owns: cutting reads down to the chunks whose digests differ. Must not know: NBD, where digests come
from. Pure; under sweep.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from leeward.core.units import CHUNK
from leeward.mobility.cut import SweepRead
from leeward.object_store.store import Buffer
from leeward.replica.digests import DigestList


def chunk_ranges(
    extents: Iterable[tuple[int, int]], start: int, end: int, *, bytes_max: int
) -> tuple[list[tuple[int, int]], int]:
    """Return ([(start, end)], until): the chunks of [start, until) that the extents (offset,
    length; ascending) touch, neighbours joined; `until` is where they come to `bytes_max`.

    start: where a chunk begins; end: so too, or the disk's end.
    """
    ranges: list[tuple[int, int]] = []
    left = bytes_max
    for offset, length in extents:
        low = max(offset // CHUNK * CHUNK, start, ranges[-1][1] if ranges else start)
        high = min(-(-(offset + length) // CHUNK) * CHUNK, end)
        if low >= high:
            continue
        high = min(high, low + max(left // CHUNK, 1) * CHUNK)
        left -= high - low
        if ranges and ranges[-1][1] == low:
            ranges[-1] = (ranges[-1][0], high)
        else:
            ranges.append((low, high))
        if left <= 0:
            return ranges, high
    return ranges, end


def zero_reads(
    disk: int, ranges: list[tuple[int, int]], start: int, end: int, position: int, of: DigestList
) -> list[SweepRead]:
    """Return, as zeros read at `position`, what of [start, end) outside the ranges the target holds
    although the disk has nothing there."""
    first, last = start // CHUNK, -(-end // CHUNK)
    low, high = np.searchsorted(of.chunks, (first, last))
    held = np.zeros(last - first, np.bool_)
    held[of.chunks[low:high] - first] = True
    for begin, stop in ranges:
        held[begin // CHUNK - first : -(-stop // CHUNK) - first] = False
    return [
        SweepRead(disk, at, min(stop, end) - at, position, None) for at, stop in _runs(held, start)
    ]


def changed_reads(
    disk: int, offset: int, data: Buffer, position: int, of: DigestList
) -> list[SweepRead]:
    """Return what of `data`, read from byte `offset` at `position`, the target does not hold."""
    view = memoryview(data).cast("B")
    return [
        SweepRead(disk, at, len(part), position, part)
        for at, stop in _runs(~of.is_equal(offset, view), offset)
        if len(part := view[at - offset : stop - offset])
    ]


def _runs(wanted: NDArray[np.bool_], start: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of the runs of chunks that are wanted."""
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).tolist()
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        yield start + low * CHUNK, start + high * CHUNK
