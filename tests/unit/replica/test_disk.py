"""Reading a disk at a recovery point: errors, requests, cache and threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from leeward.core.errors import (
    DataIntegrity,
    InvalidRequest,
    NotFound,
    ObjectMissing,
    SegmentCorrupt,
    Unavailable,
)
from leeward.core.units import BLOCK, GIB, KIB, MIB, TIB
from leeward.object_store.file import create_file_store
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import BlockMap
from leeward.replica.disk import PointDisk, open_point, replay_map
from leeward.replica.frames import ByteLimitedCache
from leeward.replica.layout import make_segment_id, segment_name
from leeward.replica.sealing import NO_KEYS, KeyedStore
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment
from leeward.replica.synthetic import synthetic_block, write_full_item

SIZE = 8 * MIB


class CountingStore(MemoryStore):
    """Remembers the ranges that were read; may hold every read until several have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int, int]] = []
        self.barrier: threading.Barrier | None = None
        self.failure: Exception | None = None

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.reads.append((name, offset, length))
        if self.barrier is not None:
            self.barrier.wait(timeout=60)
        if self.failure is not None:
            raise self.failure
        return super().get_range(name, offset, length)


def store_segment(store: MemoryStore, number: int, disk: str = "disk") -> tuple[int, bytes]:
    """Store a segment of 4 MiB of noise and return its id and data."""
    data = np.random.default_rng(number).bytes(4 * MIB)
    extents = np.array([(0, len(data) // BLOCK, 0)], EXTENT_DTYPE)
    header = SegmentHeader("item", disk, 1, 1, BLOCKS)
    encoded = encode_segment(header, extents, data, compression="zstd")
    segment_id = make_segment_id(1, number)
    store.create(segment_name("item", "disk", segment_id), encoded.parts)
    return segment_id, data


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def content() -> bytearray:
    return bytearray(SIZE)


@pytest.fixture
def disk(store: CountingStore, content: bytearray) -> Iterator[PointDisk]:
    """Two segments: one laid out plainly, one with its blocks dealt out in reverse."""
    block_map = BlockMap("item", "disk", SIZE)
    first, first_data = store_segment(store, 1)
    block_map.apply(first, np.array([(0, 1024, 0)], EXTENT_DTYPE))
    content[: 4 * MIB] = first_data
    second, second_data = store_segment(store, 2)
    extents = np.array([(1024 + index, 1, 1023 - index) for index in range(512)], EXTENT_DTYPE)
    block_map.apply(second, extents)
    for index in range(512):
        start = (1024 + index) * BLOCK
        content[start : start + BLOCK] = second_data[(1023 - index) * BLOCK :][:BLOCK]
    with PointDisk(store, block_map, SIZE, cache_bytes=MIB) as opened:
        yield opened


def test_any_range_reads_right(disk: PointDisk, content: bytearray) -> None:
    assert disk.read(0, SIZE) == content
    source = random.Random(1)
    for _ in range(200):
        offset = source.randrange(SIZE)
        length = source.choice([0, 1, 511, 4096, 70_000])
        length = min(length, SIZE - offset)
        assert disk.read(offset, length) == content[offset : offset + length]


def test_beyond_the_end_is_refused(disk: PointDisk) -> None:
    for offset, length in ((SIZE, 1), (SIZE - 1, 2), (-1, 1), (1 << 62, 1)):
        with pytest.raises(InvalidRequest):
            disk.read(offset, length)
        with pytest.raises(InvalidRequest):
            disk.extents(offset, length)
    assert disk.read(SIZE, 0) == b""
    assert disk.extents(5, 0) == []


def test_extents_are_data_and_holes(disk: PointDisk) -> None:
    assert disk.extents(0, SIZE) == [(6 * MIB, True), (2 * MIB, False)]
    assert disk.extents(6 * MIB - 1, 3) == [(1, True), (2, False)]


def test_neighbouring_frames_are_read_together(disk: PointDisk, store: CountingStore) -> None:
    disk.read(MIB, MIB)
    lengths = [length for _, _, length in store.reads]
    assert len(lengths) <= 3
    assert sum(lengths[1:]) <= MIB + 128 * KIB


def test_small_read_reads_one_frame(disk: PointDisk, store: CountingStore) -> None:
    disk.read(3 * MIB, 512)
    store.reads.clear()
    disk.read(3 * MIB + 512, 4096)
    assert store.reads == []
    disk.read(2 * MIB, 512)
    assert [length for _, _, length in store.reads] == [64 * KIB]


def test_distant_segments_are_read_at_once(disk: PointDisk, store: CountingStore) -> None:
    store.barrier = threading.Barrier(2)
    disk.read(4 * MIB - BLOCK, 2 * BLOCK)
    store.barrier = None
    assert len({name for name, _, _ in store.reads}) == 2


def test_one_frame_wanted_by_many_is_read_once(disk: PointDisk, store: CountingStore) -> None:
    disk.read(0, 1)
    store.reads.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: disk.read(MIB, BLOCK), range(32)))
    assert len(set(found)) == 1
    assert len(store.reads) == 1


def test_many_threads_read_right(disk: PointDisk, content: bytearray) -> None:
    def read(seed: int) -> bool:
        source = random.Random(seed)
        for _ in range(30):
            offset = source.randrange(SIZE - 200_000)
            length = source.randrange(200_000)
            if disk.read(offset, length) != content[offset : offset + length]:
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


def test_cache_stays_within_its_limit(disk: PointDisk) -> None:
    disk.read(0, SIZE)
    assert disk._frames._frames.bytes <= MIB
    cache: ByteLimitedCache[int, str] = ByteLimitedCache(10)
    for key in range(5):
        cache.put(key, "x", 4)
    assert [cache.get(key) for key in range(5)] == [None, None, None, "x", "x"]
    cache.get(3)
    cache.put(5, "x", 4)
    assert [cache.get(key) for key in (3, 4, 5)] == ["x", None, "x"]
    cache.put(6, "too big", 11)
    assert (cache.get(6), cache.bytes) == (None, 0)


def test_store_that_is_away_fails_the_read_and_heals(
    disk: PointDisk, store: CountingStore, content: bytearray
) -> None:
    store.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        disk.read(0, MIB)
    store.failure = None
    assert disk.read(0, MIB) == content[:MIB]


def test_missing_segment_is_a_missing_object(disk: PointDisk, store: CountingStore) -> None:
    store.delete(segment_name("item", "disk", make_segment_id(1, 1)))
    with pytest.raises(ObjectMissing):
        disk.read(0, 1)
    assert disk.read(7 * MIB, 100) == bytes(100)


@pytest.mark.parametrize("at", [0, 100, 300_000])
@pytest.mark.parametrize("torn", [True, False])
def test_garbled_segment_is_corrupt(
    disk: PointDisk, store: CountingStore, at: int, torn: bool
) -> None:
    name = segment_name("item", "disk", make_segment_id(1, 1))
    stored = bytearray(store.get(name))
    stored[at] ^= 1
    store.delete(name)
    store.create(name, bytes(stored[:at]) if torn else bytes(stored))
    with pytest.raises(SegmentCorrupt, match="segment"):
        disk.read(0, 4 * MIB)


def test_segment_of_another_disk_is_corrupt(store: CountingStore) -> None:
    segment_id, _ = store_segment(store, 3, disk="other")
    block_map = BlockMap("item", "disk", SIZE)
    block_map.apply(segment_id, np.array([(0, 1, 0)], EXTENT_DTYPE))
    with PointDisk(store, block_map, SIZE) as disk, pytest.raises(SegmentCorrupt):
        disk.read(0, 1)
    with pytest.raises(SegmentCorrupt):
        replay_map(store, "item", "disk", SIZE, "", [segment_id])


def test_segment_beyond_the_disk_is_corrupt(store: CountingStore) -> None:
    segment_id, _ = store_segment(store, 1)
    with pytest.raises(SegmentCorrupt):
        replay_map(store, "item", "disk", MIB, "", [segment_id])


def test_map_beyond_a_segments_data_is_corrupt(store: CountingStore) -> None:
    segment_id, _ = store_segment(store, 1)
    block_map = BlockMap("item", "disk", SIZE)
    block_map.apply(segment_id, np.array([(0, 2, 1023)], EXTENT_DTYPE))
    with PointDisk(store, block_map, SIZE) as disk, pytest.raises(DataIntegrity):
        disk.read(0, 2 * BLOCK)


def test_closed_disk_reads_no_more(store: CountingStore) -> None:
    block_map = BlockMap("item", "disk", SIZE)
    for number in (1, 2):
        segment_id, _ = store_segment(store, number)
        block_map.apply(segment_id, np.array([(number, 1, 0)], EXTENT_DTYPE))
    disk = PointDisk(store, block_map, SIZE)
    disk.close()
    with pytest.raises(Unavailable):
        disk.read(0, MIB)
    with pytest.raises(Unavailable):
        disk.read(BLOCK, 1)


def test_disks_of_a_point_lie_in_their_own_stores(tmp_path: Path) -> None:
    stores = {name: create_file_store(tmp_path / name) for name in ("system", "data")}
    sizes = {"system": TIB, "data": GIB + 512}
    point = write_full_item(
        stores["system"], stores, "web", sizes, vm_config={"name": "web"}, segment_count=1
    )
    assert any("disks/data" in name for name in stores["data"].list(""))
    assert not any("disks/data" in name for name in stores["system"].list(""))
    disks = open_point(stores["system"], stores, "web", "latest")
    only = open_point(stores["system"], {"data": stores["data"]}, "web", point.id)
    for disk in [*disks.values(), *only.values()]:
        with disk:
            last = disk.size_bytes // BLOCK - 1
            for block in (0, last):
                expected = synthetic_block(disk.disk, block, 1)
                assert disk.read(block * BLOCK, BLOCK) == expected
            assert disk.extents(0, disk.size_bytes) == [(disk.size_bytes, True)]
    with pytest.raises(NotFound):
        open_point(stores["system"], stores, "web", "rp-0001-00000009")
    with pytest.raises(NotFound):
        open_point(stores["system"], {"other": stores["data"]}, "web", point.id)
    with pytest.raises(InvalidRequest):
        write_full_item(stores["system"], stores, "web", sizes)


class NearCopy(CountingStore):
    """A store read through a copy that is damaged until it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[str] = []
        self.damages = ""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = super().get_range(name, offset, length)
        if self.damages == "table" and offset == 0 and name not in self.forgotten:
            return b"?" + data[1:]
        if self.damages == "frames" and offset > 0 and name not in self.forgotten:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def forget(self, name: str) -> None:
        self.forgotten.append(name)


@pytest.mark.parametrize("damages", ["table", "frames"])
def test_a_damaged_copy_is_forgotten_and_the_store_asked(damages: str) -> None:
    store = NearCopy()
    block_map = BlockMap("item", "disk", SIZE)
    segment_id, data = store_segment(store, 1)
    block_map.apply(segment_id, np.array([(0, 1024, 0)], EXTENT_DTYPE))
    store.damages = damages
    with PointDisk(KeyedStore(store, NO_KEYS), block_map, SIZE) as disk:
        assert disk.read(MIB, MIB) == data[MIB : 2 * MIB]
    assert store.forgotten


def test_pieces_are_the_data_alone(disk: PointDisk, content: bytearray) -> None:
    pieces = disk.read_pieces(MIB + 5, 5 * MIB)
    end = 0
    for offset, piece in pieces:
        assert offset >= end
        end = offset + len(piece)
        assert piece == content[offset:end]
    total = sum(length for length, is_data in disk.extents(MIB + 5, 5 * MIB) if is_data)
    assert sum(len(piece) for _, piece in pieces) == total
