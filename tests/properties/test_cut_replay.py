"""A cut's segments, replayed, give byte for byte what its records and sweep reads give in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.mobility import cut as cut_module
from leeward.mobility import pieces as pieces_module
from leeward.mobility.cut import CutDisk, DiskChanges, SweepRead, build_cut
from leeward.mobility.journal import KIND_MARK, KIND_WRITE, KIND_ZEROES, RECORD_DTYPE, Records
from leeward.replica.segment import BLOCKS, SECTORS, SEGMENT_DATA_MAX, ZEROES

SECTOR = 512
DISK_SECTORS = (100, 64)
"""The first disk ends inside a 4 KiB block."""
DISKS = tuple(CutDisk(f"disk-{i}", n * SECTOR) for i, n in enumerate(DISK_SECTORS))
FIRST_POSITION = 1000


@dataclass(frozen=True)
class Step:
    """A record (write, zeroes, mark) or, with `read`, a sweep read before the next record."""

    kind: int
    disk: int
    start: int
    count: int
    fill: int
    read: bool


@st.composite
def steps(draw: st.DrawFn) -> Step:
    disk = draw(st.integers(0, 1))
    start = draw(st.integers(0, DISK_SECTORS[disk] - 1))
    count = draw(st.integers(1, DISK_SECTORS[disk] - start))
    read = draw(st.integers(0, 3)) == 0
    kinds = (KIND_WRITE, KIND_ZEROES) if read else (KIND_WRITE, KIND_WRITE, KIND_ZEROES, KIND_MARK)
    return Step(draw(st.sampled_from(kinds)), disk, start, count, draw(st.integers(0, 255)), read)


def payload(step: Step) -> bytes:
    """Sectors that name their place and writer; a fill of 0 is mostly zeros, to be found out."""
    if step.fill % 3 == 0:
        data = bytearray(step.count * SECTOR)
        data[(step.fill * 7) % len(data)] = step.fill % 2
        return bytes(data)
    return b"".join(
        bytes([step.fill, sector % 256]) * (SECTOR // 2)
        for sector in range(step.start, step.start + step.count)
    )


def build(script: list[Step]) -> tuple[tuple[DiskChanges, ...], list[bytearray], list[bytearray]]:
    """Return the built cut, the model's bytes, and which bytes the model says were touched."""
    records: list[tuple[int, ...]] = []
    buffers = [bytearray(), bytearray()]
    reads = []
    model = [bytearray(b"\xee" * disk.size_bytes) for disk in DISKS]
    touched = [bytearray(disk.size_bytes) for disk in DISKS]
    for step in script:
        offset, length = step.start * SECTOR, step.count * SECTOR
        data = payload(step) if step.kind == KIND_WRITE else bytes(length)
        if step.kind != KIND_MARK:
            model[step.disk][offset : offset + length] = data
            touched[step.disk][offset : offset + length] = b"\x01" * length
        position = FIRST_POSITION + len(records)
        if step.read:
            content = data if step.kind == KIND_WRITE else None
            reads.append(SweepRead(step.disk, offset, length, position, content))
            continue
        buffer = len(records) % 2
        at = len(buffers[buffer])
        if step.kind == KIND_WRITE:
            buffers[buffer] += data
        is_mark = step.kind == KIND_MARK
        records.append((step.kind, step.disk, 0, 0 if is_mark else length, offset, buffer, at, 0))
    array: Records = np.array(records, dtype=RECORD_DTYPE)
    changes = build_cut(
        array,
        first_position=FIRST_POSITION,
        buffer_of=lambda buffer: buffers[buffer],
        sweep=reads,
        disks=DISKS,
    )
    return changes, model, touched


def check(
    changes: tuple[DiskChanges, ...],
    model: list[bytearray],
    touched: list[bytearray],
    *,
    limit: int = SEGMENT_DATA_MAX,
) -> None:
    for index, disk in enumerate(changes):
        image = bytearray(b"\xee" * disk.size_bytes)
        covered = bytearray(disk.size_bytes)
        for segment in disk.segments:
            data = b"".join(segment.data)
            assert len(data) == segment.data_bytes <= limit
            used = 0
            previous_end = 0
            for start, count, position in segment.extents.tolist():
                low, length = start * segment.unit, count * segment.unit
                assert length > 0
                assert low >= previous_end
                previous_end = low + length
                if position == ZEROES:
                    content = bytes(length)
                else:
                    assert position * segment.unit == used
                    content = data[used : used + length]
                    used += length
                assert len(content) == length
                assert not any(covered[low : low + length]), "a byte was stored twice"
                image[low : low + length] = content
                covered[low : low + length] = b"\x01" * length
                if segment.unit == SECTORS:
                    assert count < 2 * BLOCKS // SECTORS
            assert used == len(data)
        assert covered == touched[index]
        assert image == model[index]


@settings(max_examples=300, deadline=None)
@given(st.lists(steps(), max_size=25))
def test_replay_equals_model(script: list[Step]) -> None:
    check(*build(script))


@settings(max_examples=150, deadline=None)
@given(st.lists(steps(), max_size=25), st.sampled_from([4096, 12288]))
def test_replay_equals_model_in_small_segments(script: list[Step], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut_module, "SEGMENT_DATA_MAX", limit)
        patch.setattr(cut_module, "EXTENT_UNITS_MAX", 3)
        check(*build(script), limit=limit)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps(), max_size=40))
def test_replay_equals_model_coalesced_in_halves(script: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PAINT_MAX", 4)
        check(*build(script))


@settings(max_examples=100, deadline=None)
@given(st.lists(steps(), max_size=25))
def test_whole_blocks_are_blocks_and_zeros_carry_no_data(script: list[Step]) -> None:
    changes, _, touched = build(script)
    for index, disk in enumerate(changes):
        whole = {
            block
            for block in range(disk.size_bytes // BLOCKS)
            if all(touched[index][block * BLOCKS : (block + 1) * BLOCKS])
        }
        in_blocks = {
            block
            for segment in disk.segments
            if segment.unit == BLOCKS
            for start, count, _ in segment.extents.tolist()
            for block in range(start, start + count)
        }
        assert in_blocks == whole
