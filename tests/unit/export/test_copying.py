"""Writing a disk's data to a file: every byte in its place, holes left as holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from leeward.core.errors import ObjectMissing
from leeward.core.units import BLOCK, MIB
from leeward.export import copying
from leeward.export.copying import copy_data
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import BlockMap
from leeward.replica.disk import PointDisk
from leeward.replica.layout import make_segment_id, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

SIZE = 12 * MIB + 512
SEGMENT_BLOCKS = 4 * MIB // BLOCK


class Fixture:
    """A disk with 4 MiB in one piece, a hole, and 2 MiB dealt out backwards in every other block of
    4 MiB; its end is no whole block."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.content = bytearray(SIZE)
        self._map = BlockMap("item", "disk", SIZE)
        self._write(1, [(0, SEGMENT_BLOCKS, 0)])
        scattered = [(2048 + 2 * n, 1, SEGMENT_BLOCKS - 1 - n) for n in range(512)]
        self._write(2, [*scattered, (SIZE // BLOCK, 1, 0)])
        self.disk = PointDisk(self.store, self._map, SIZE, cache_bytes=0, threads=1)

    def _write(self, number: int, extents: list[tuple[int, int, int]]) -> None:
        data = np.random.default_rng(number).bytes(SEGMENT_BLOCKS * BLOCK)
        encoded = encode_segment(
            SegmentHeader("item", "disk", 1, 1, BLOCKS),
            np.array([(0, SEGMENT_BLOCKS, 0)], EXTENT_DTYPE),
            data,
            compression="zstd",
        )
        segment_id = make_segment_id(1, number)
        self.store.create(segment_name("item", "disk", segment_id), encoded.parts)
        self._map.apply(segment_id, np.array(extents, EXTENT_DTYPE))
        for start, count, position in extents:
            piece = data[position * BLOCK : (position + count) * BLOCK]
            piece = piece[: SIZE - start * BLOCK]
            self.content[start * BLOCK : start * BLOCK + len(piece)] = piece


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.disk.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "disk.raw", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_every_byte_lies_in_its_place_and_holes_take_no_space(
    fixture: Fixture, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "VECTORS_MAX", 7)
    steps: list[tuple[int, int]] = []
    copy_data(fixture.disk, target, lambda done, total: steps.append((done, total)), workers=3)
    assert os.pread(target, SIZE + 1, 0) == bytes(fixture.content)
    assert os.lseek(target, 5 * MIB, os.SEEK_DATA) == 8 * MIB
    assert steps == sorted(steps)
    assert steps[-1] == (SIZE, SIZE)


def test_a_kernel_that_writes_less_than_it_was_given_is_asked_again(
    fixture: Fixture, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def some(descriptor: int, views: list[memoryview], offset: int) -> int:
        return real(descriptor, [views[0][:5000]], offset)

    monkeypatch.setattr(os, "pwritev", some)
    copy_data(fixture.disk, target, lambda done, total: None, workers=2)
    assert os.pread(target, SIZE, 0) == bytes(fixture.content)


def test_what_cannot_be_read_ends_it(fixture: Fixture, target: int) -> None:
    fixture.store.delete(segment_name("item", "disk", make_segment_id(1, 2)))
    with pytest.raises(ObjectMissing):
        copy_data(fixture.disk, target, lambda done, total: None, workers=2)
