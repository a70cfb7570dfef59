"""The cut builder's shapes, its limits, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from leeward.core.errors import DataIntegrity, InvalidRequest
from leeward.mobility.cut import CutDisk, DiskChanges, SweepRead, build_cut
from leeward.mobility.journal import KIND_MARK, KIND_WRITE, KIND_ZEROES, RECORD_DTYPE
from leeward.replica.segment import BLOCKS, SECTORS, SEGMENT_DATA_MAX, ZEROES

MIB = 1 << 20
DISK = CutDisk("system", 64 * MIB)


def build(
    *records: tuple[int, int, int, int],
    buffer: bytes = b"\x01" * MIB,
    sweep: tuple[SweepRead, ...] = (),
    disks: tuple[CutDisk, ...] = (DISK,),
    first_position: int = 0,
) -> DiskChanges:
    """Build a cut from (kind, offset, length, position) records of disk 0."""
    array = np.array(
        [(kind, 0, 0, length, offset, 7, at, 0) for kind, offset, length, at in records],
        dtype=RECORD_DTYPE,
    )
    return build_cut(
        array,
        first_position=first_position,
        buffer_of={7: buffer}.__getitem__,
        sweep=sweep,
        disks=disks,
    )[0]


def test_nothing_changed_gives_no_segments_but_names_every_disk() -> None:
    disks = (DISK, CutDisk("data", MIB))
    changes = build_cut(
        np.zeros(0, RECORD_DTYPE), first_position=5, buffer_of=bytes, sweep=(), disks=disks
    )
    assert [(c.disk, c.size_bytes, c.segments) for c in changes] == [
        ("system", 64 * MIB, ()),
        ("data", MIB, ()),
    ]


def test_a_ragged_write_is_blocks_inside_and_sectors_at_its_ends() -> None:
    blocks, sectors = build((KIND_WRITE, 3584, 4096 + 1024, 0)).segments
    assert (blocks.unit, blocks.extents.tolist()) == (BLOCKS, [(1, 1, 0)])
    assert (sectors.unit, sectors.extents.tolist()) == (SECTORS, [(7, 1, 0), (16, 1, 1)])


def test_data_is_not_copied() -> None:
    buffer = bytes(range(256)) * 64
    (segment,) = build((KIND_WRITE, 4096, 8192, 4096), buffer=buffer).segments
    assert segment.data[0].obj is buffer
    assert bytes(segment.data[0]) == buffer[4096:12288]


def test_two_zero_halves_make_one_zero_block() -> None:
    (segment,) = build((KIND_ZEROES, 4096, 2048, 0), (KIND_ZEROES, 6144, 2048, 0)).segments
    assert segment.extents.tolist() == [(1, 1, ZEROES)]
    assert segment.data == ()


def test_bytes_written_counts_every_write_before_coalescing_and_no_zeroes() -> None:
    changes = build((KIND_WRITE, 0, 4096, 0), (KIND_WRITE, 0, 4096, 0), (KIND_ZEROES, 0, MIB, 0))
    assert changes.bytes_written == 8192
    assert sum(segment.data_bytes for segment in changes.segments) == 0


def test_segments_hold_at_most_the_limit() -> None:
    buffer = bytes([1]) * (40 * MIB)
    segments = build((KIND_WRITE, 4096, 40 * MIB, 0), buffer=buffer).segments
    assert [segment.data_bytes for segment in segments] == [
        SEGMENT_DATA_MAX,
        SEGMENT_DATA_MAX,
        8 * MIB,
    ]
    assert [segment.extents["start"][0] for segment in segments] == [1, 4097, 8193]
    assert all(segment.extents["position"][0] == 0 for segment in segments)


def test_a_hole_of_64_tib_fits_into_extents() -> None:
    size = 64 << 40
    hole = SweepRead(0, 0, size, 0, None)
    (segment,) = build(sweep=(hole,), disks=(CutDisk("big", size),)).segments
    assert int(segment.extents["count"].astype(np.uint64).sum()) * BLOCKS == size
    assert (segment.extents["position"] == ZEROES).all()


def test_zero_blocks_of_a_sweep_read_become_zeros() -> None:
    data = bytes(8192) + b"\x05" * 4096 + bytes(4096)
    (segment,) = build(sweep=(SweepRead(0, 0, 16384, 0, data),)).segments
    assert segment.extents.tolist() == [(0, 2, ZEROES), (2, 1, 0), (3, 1, ZEROES)]
    assert segment.data_bytes == 4096


def test_a_write_wins_over_a_sweep_read_that_began_before_it_and_loses_to_a_later_one() -> None:
    read = b"\x09" * 4096
    early = SweepRead(0, 0, 4096, 10, read)
    late = SweepRead(0, 0, 4096, 11, read)
    write = (KIND_WRITE, 0, 4096, 0)
    (segment,) = build(write, sweep=(early,), first_position=10).segments
    assert bytes(segment.data[0]) == b"\x01" * 4096
    (segment,) = build(write, sweep=(late,), first_position=10).segments
    assert bytes(segment.data[0]) == read


@pytest.mark.parametrize("position", [9, 12])
def test_a_sweep_read_begun_outside_the_cut_is_refused(position: int) -> None:
    read = SweepRead(0, 0, 4096, position, None)
    with pytest.raises(InvalidRequest, match="outside the cut"):
        build((KIND_MARK, 1, 0, 0), sweep=(read,), first_position=10)


@pytest.mark.parametrize(
    "read",
    [
        SweepRead(0, 0, 4096, 0, bytes(512)),
        SweepRead(0, 100, 512, 0, None),
        SweepRead(0, DISK.size_bytes, 512, 0, None),
        SweepRead(0, 0, 0, 0, None),
    ],
)
def test_a_misshapen_sweep_read_is_refused(read: SweepRead) -> None:
    with pytest.raises(InvalidRequest):
        build(sweep=(read,))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((KIND_WRITE, 100, 512, 0), "not whole 512-byte sectors"),
        ((KIND_WRITE, 0, 100, 0), "not whole 512-byte sectors"),
        ((KIND_WRITE, 0, 0, 0), "not whole 512-byte sectors"),
        ((KIND_ZEROES, DISK.size_bytes - 512, 1024, 0), "outside the disk"),
        ((KIND_ZEROES, (1 << 64) - 512, 1024, 0), "outside the disk"),
        ((KIND_WRITE, 0, 4096, MIB - 512), "past the end of its buffer"),
        ((9, 0, 512, 0), "unknown kind"),
    ],
)
def test_a_record_no_guest_can_cause_is_refused(
    record: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(DataIntegrity, match=message):
        build(record)


def test_a_record_of_an_unknown_disk_is_refused() -> None:
    records = np.array([(KIND_WRITE, 3, 0, 512, 0, 7, 0, 0)], dtype=RECORD_DTYPE)
    with pytest.raises(DataIntegrity, match="does not have"):
        build_cut(records, first_position=0, buffer_of=lambda _: b"", sweep=(), disks=(DISK,))


def test_thousands_of_wide_zeroes_over_small_writes_stay_small() -> None:
    """Painted naively this is 3000 x 12000 elements."""
    records = []
    for index in range(3000):
        records.append((KIND_ZEROES, 0, 32 * MIB, 0))
        records.append((KIND_WRITE, (index * 7919 % 8000) * 4096 + 512, 1024, 0))
    changes = build(*records)
    (extent,) = (segment for segment in changes.segments if segment.data_bytes)
    assert extent.data_bytes == 4096
