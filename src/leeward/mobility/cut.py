"""The changes of one cut: what each disk's bytes became, every byte once.

Owns: last writer wins over a cut's journal records and sweep reads, and the division into segments.
Must not know: stores, QEMU, threads. Pure; sits between the journal (or the sweep) and the upload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leeward.core.errors import DataIntegrity, InvalidRequest
from leeward.core.units import BLOCK, SECTOR
from leeward.mobility.journal import KIND_MARK, KIND_WRITE, KIND_ZEROES, Records
from leeward.mobility.pieces import (
    ZERO_SOURCE,
    Ints,
    Pieces,
    aligned_inside,
    clip,
    coalesce,
    concatenate,
    in_order,
    run_ends,
    run_starts,
    split_in_three,
)
from leeward.object_store.store import Buffer
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SECTORS, SEGMENT_DATA_MAX, ZEROES

EXTENT_UNITS_MAX = 1 << 31
"""Longest zero extent, in units: its count is a u32."""

_FILL = -2
"""Source of literal zero bytes: the part of a data block that a zero write covers."""
_FILL_BYTES = memoryview(bytes(2 * BLOCK))
"""As long as zeros can be without a whole aligned block among them, and a little longer."""


@dataclass(frozen=True, slots=True)
class CutDisk:
    """A disk of the VM; its index in the sequence is the `disk` of records and sweep reads."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SweepRead:
    """A range read from the live disk while the tap was receiving.

    position: the journal position (records so far) when the read began, or, for a hole, when its
    block-status request began. Every record at or after it wins over this read.
    data: exactly `length` bytes; None reads as zeros.
    """

    disk: int
    offset: int
    length: int
    position: int
    data: Buffer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentContent:
    """What one segment will hold; `data` are views of the journal's and the sweep's own buffers.

    extents: EXTENT_DTYPE in `unit`, sorted, disjoint. data: logical data in position order.
    """

    unit: int
    extents: npt.NDArray[np.void]
    data: tuple[memoryview, ...]
    data_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChanges:
    """One disk's part of a cut. bytes_written: payload the guest wrote, before coalescing."""

    disk: str
    size_bytes: int
    segments: tuple[SegmentContent, ...]
    bytes_written: int


def build_cut(
    records: Records,
    *,
    first_position: int,
    buffer_of: Callable[[int], Buffer],
    sweep: Sequence[SweepRead],
    disks: Sequence[CutDisk],
) -> tuple[DiskChanges, ...]:
    """Return, for every disk in order, its changes with each byte from its last writer.

    records: the cut's journal records in order (RECORD_DTYPE); first_position: the journal position
    of records[0]. buffer_of: the journal buffer of that id. A sweep read is ordered before the
    record at its position; equal positions keep the order of `sweep`.
    The result refers to the buffers: release them after the cut has been uploaded.
    Raises: DataIntegrity for records no guest can have caused (not whole sectors, outside the
    disk); InvalidRequest for a sweep read that began outside this cut.
    """
    _check_records(records, disks)
    _check_sweep(sweep, first_position, first_position + len(records), disks)
    sources, journal = _journal_pieces(records, buffer_of)
    first_sweep = len(sources)
    sources.extend(memoryview(read.data or b"").cast("B") for read in sweep)
    changes = []
    for index, disk in enumerate(disks):
        on_disk = (records["disk"] == index) & (records["kind"] != KIND_MARK)
        order = np.flatnonzero(on_disk)
        writers = journal.select(order)
        reads = [(i, read) for i, read in enumerate(sweep) if read.disk == index]
        if reads:
            writers = _with_sweep(writers, order + first_position, reads, first_sweep)
        written = records["length"][on_disk & (records["kind"] == KIND_WRITE)]
        changes.append(
            DiskChanges(
                disk=disk.name,
                size_bytes=disk.size_bytes,
                segments=tuple(_segments(coalesce(writers), sources)),
                bytes_written=int(written.sum(dtype=np.int64)),
            )
        )
    return tuple(changes)


# ------------------------------------------------------------------------------ what comes in


def _check_records(records: Records, disks: Sequence[CutDisk]) -> None:
    """Return if every record is a whole-sector range of a known disk."""
    if not np.isin(records["kind"], (KIND_WRITE, KIND_ZEROES, KIND_MARK)).all():
        raise DataIntegrity("the journal holds a record of unknown kind")
    changing = records[records["kind"] != KIND_MARK]
    if not len(changing):
        return
    if int(changing["disk"].max()) >= len(disks):
        raise DataIntegrity("the journal holds a record of a disk that the tap does not have")
    sizes = np.array([disk.size_bytes for disk in disks], dtype=np.uint64)[changing["disk"]]
    offset, length = changing["offset"], changing["length"].astype(np.uint64)
    outside = (offset > sizes) | (length > sizes - np.minimum(offset, sizes))
    ragged = (offset % SECTOR != 0) | (length % SECTOR != 0) | (length == 0)
    for wrong, what in ((ragged, "not whole 512-byte sectors"), (outside, "outside the disk")):
        if wrong.any():
            bad = changing[int(np.flatnonzero(wrong)[0])]
            raise DataIntegrity(
                f"a journal record of disk {disks[bad['disk']].name} is {what}: "
                f"offset {bad['offset']}, length {bad['length']}",
                hint="no guest request looks like that; the stream must be swept again",
            )


def _check_sweep(
    sweep: Sequence[SweepRead], first: int, last: int, disks: Sequence[CutDisk]
) -> None:
    """Return if every sweep read is a whole-sector range that began within [first, last]."""
    for read in sweep:
        name, size = disks[read.disk].name, disks[read.disk].size_bytes
        if not first <= read.position <= last:
            raise InvalidRequest(
                f"a sweep read of disk {name} began at position {read.position}, outside the cut "
                f"[{first}, {last}]",
                field="position",
                hint="read the range again inside one cut",
            )
        if read.offset % SECTOR or read.length % SECTOR or read.length <= 0:
            raise InvalidRequest(f"a sweep read of disk {name} is not whole sectors")
        if read.offset < 0 or read.offset + read.length > size:
            raise InvalidRequest(f"a sweep read of disk {name} is outside the disk")
        if read.data is not None and memoryview(read.data).nbytes != read.length:
            raise InvalidRequest(f"a sweep read of disk {name} has not `length` bytes of data")


def _journal_pieces(
    records: Records, buffer_of: Callable[[int], Buffer]
) -> tuple[list[memoryview], Pieces]:
    """Return the buffers that the records name, and one piece per record, marks included."""
    is_write = records["kind"] == KIND_WRITE
    buffers, index = np.unique(records["buffer"][is_write], return_inverse=True)
    sources = [memoryview(buffer_of(int(buffer))).cast("B") for buffer in buffers]
    source = np.full(len(records), ZERO_SOURCE, dtype=np.int64)
    source[is_write] = index
    start = records["offset"].astype(np.int64)
    at = records["position"].astype(np.int64)
    lengths = np.array([view.nbytes for view in sources], dtype=np.int64)
    if (at[is_write] + records["length"][is_write] > lengths[index]).any():
        raise DataIntegrity("a journal record's payload reaches past the end of its buffer")
    return sources, Pieces(start, start + records["length"], source, at)


def _with_sweep(
    journal: Pieces,
    positions: Ints,
    reads: Sequence[tuple[int, SweepRead]],
    first_source: int,
) -> Pieces:
    """Return the journal's pieces with the sweep's put in front of the record at their position."""
    parts, keys = [journal], [2 * positions + 1]
    for index, read in reads:
        pieces = _sweep_pieces(read, first_source + index)
        parts.append(pieces)
        keys.append(np.full(pieces.start.size, 2 * read.position, dtype=np.int64))
    order = np.argsort(np.concatenate(keys), kind="stable")
    return concatenate(parts).select(order)


def _sweep_pieces(read: SweepRead, source: int) -> Pieces:
    """Return a sweep read as runs of data and of zeros: whole aligned blocks of zeros are zeros."""
    first = -(-read.offset // BLOCK) * BLOCK - read.offset
    blocks = (read.length - first) // BLOCK
    if read.data is None or blocks <= 0:
        edges = np.array([0, read.length], dtype=np.int64)
        zero = np.array([read.data is None])
    else:
        view = np.frombuffer(read.data, dtype=np.uint8)[first : first + blocks * BLOCK]
        words = view.reshape(blocks, BLOCK).view(np.uint64)
        block_zero = words[:, 0] == 0  # of most that are not zeros the first word says so
        block_zero[block_zero] = ~words[block_zero].any(axis=1)
        zero = np.concatenate(([False], block_zero, [False]))
        inner = np.arange(blocks + 1, dtype=np.int64) * BLOCK + first
        edges = np.concatenate(([0], inner, [read.length]))
        changed = np.concatenate(([True], zero[1:] != zero[:-1]))
        zero, edges = zero[changed], np.append(edges[:-1][changed], read.length)
    pieces = Pieces(
        start=edges[:-1] + read.offset,
        end=edges[1:] + read.offset,
        source=np.where(zero, ZERO_SOURCE, source),
        at=edges[:-1],
    )
    return pieces.select(pieces.start < pieces.end)


# ------------------------------------------------------------------------------ segments


def _segments(pieces: Pieces, sources: Sequence[memoryview]) -> list[SegmentContent]:
    """Return the segments: whole 4 KiB blocks of every covered run, then its ragged rest."""
    if not pieces.start.size:
        return []
    first = run_starts(pieces.start, pieces.end, None)
    lengths = np.diff(np.append(first, pieces.start.size))
    run_start, run_end = pieces.start[first], run_ends(pieces.end, first)
    inner_start, inner_end = aligned_inside(run_start, run_end)
    before, inside, after = split_in_three(
        pieces, np.repeat(inner_start, lengths), np.repeat(inner_end, lengths)
    )
    blocks = _whole_zero_blocks(inside)
    ragged = in_order(concatenate([before, after]))
    return [
        *_unit_segments(blocks, BLOCKS, sources),
        *_unit_segments(ragged, SECTORS, sources),
    ]


def _whole_zero_blocks(pieces: Pieces) -> Pieces:
    """Return the pieces with zeros only where a whole block is: the rest becomes literal zeros."""
    zero = pieces.source == ZERO_SOURCE
    zeros, data = pieces.select(zero), pieces.select(~zero)
    before, inside, after = split_in_three(zeros, *aligned_inside(zeros.start, zeros.end))
    fills = concatenate([before, after])
    literal = Pieces(
        fills.start, fills.end, np.full_like(fills.source, _FILL), np.zeros_like(fills.at)
    )
    return in_order(concatenate([data, inside, literal]))


def _unit_segments(
    pieces: Pieces, unit: int, sources: Sequence[memoryview]
) -> list[SegmentContent]:
    """Return the pieces as segments of at most SEGMENT_DATA_MAX bytes of data each."""
    if not pieces.start.size:
        return []
    pieces, position, fresh = _split_at_limits(pieces, unit)
    zero = pieces.source == ZERO_SOURCE
    # Zeros exactly at a border stay with the segment before it.
    segment = np.where(zero, np.maximum(position - 1, 0), position) // SEGMENT_DATA_MAX
    breaks = fresh | np.concatenate(([True], zero[1:] != zero[:-1]))
    breaks[1:] |= (pieces.start[1:] != pieces.end[:-1]) | (segment[1:] != segment[:-1])
    first = np.flatnonzero(breaks)
    extents = np.zeros(first.size, dtype=EXTENT_DTYPE)
    extents["start"] = pieces.start[first] // unit
    extents["count"] = (run_ends(pieces.end, first) - pieces.start[first]) // unit
    extents["position"] = np.where(
        zero[first], ZEROES, (position[first] - segment[first] * SEGMENT_DATA_MAX) // unit
    )
    made = []
    for number in np.unique(segment):
        views = _views(pieces.select((segment == number) & ~zero), sources)
        made.append(
            SegmentContent(
                unit=unit,
                extents=extents[segment[first] == number],
                data=views,
                data_bytes=sum(view.nbytes for view in views),
            )
        )
    return made


def _split_at_limits(pieces: Pieces, unit: int) -> tuple[Pieces, Ints, npt.NDArray[np.bool_]]:
    """Return the pieces split where data crosses a segment's limit or zeros an extent's.

    Also each piece's position in the logical data (for zeros: the data before it), and where a
    further part of a long zero piece begins.
    """
    zero = pieces.source == ZERO_SOURCE
    length = pieces.end - pieces.start
    data_length = np.where(zero, 0, length)
    position = np.cumsum(data_length) - data_length
    step = np.where(zero, EXTENT_UNITS_MAX * unit, SEGMENT_DATA_MAX)
    phase = np.where(zero, 0, position % SEGMENT_DATA_MAX)
    parts = -(-(phase + length) // step)
    origin = np.repeat(np.arange(parts.size), parts)
    part = np.arange(origin.size) - np.repeat(np.cumsum(parts) - parts, parts)
    low = np.maximum(part * step[origin] - phase[origin], 0)
    high = np.minimum((part + 1) * step[origin] - phase[origin], length[origin])
    whole = pieces.select(origin)
    split = clip(whole, whole.start + low, whole.start + high)
    return split, position[origin] + np.where(zero[origin], 0, low), zero[origin] & (part > 0)


def _views(pieces: Pieces, sources: Sequence[memoryview]) -> tuple[memoryview, ...]:
    """Return the pieces' bytes without copying them."""
    at = np.where(pieces.source == _FILL, 0, pieces.at)
    lengths = pieces.end - pieces.start
    return tuple(
        (_FILL_BYTES if source == _FILL else sources[source])[low:high]
        for source, low, high in zip(
            pieces.source.tolist(), at.tolist(), (at + lengths).tolist(), strict=True
        )
    )
