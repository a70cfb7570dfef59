"""The rules of segments that properties do not reach."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from leeward.core.errors import InvalidRequest, ObjectMissing, SegmentCorrupt
from leeward.object_store.memory import MemoryStore
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    SEGMENT_BYTES_MAX,
    SEGMENT_DATA_MAX,
    ZEROES,
    SegmentHeader,
    decode_segment,
    encode_segment,
    read_table,
)

HEADER = SegmentHeader("item", "disk", 1, 1, BLOCKS)

BAD: dict[str, tuple[list[tuple[int, int, int]], int]] = {
    "not sorted": ([(5, 1, 0), (1, 1, 1)], 2),
    "overlapping": ([(1, 3, 0), (3, 1, 3)], 4),
    "empty extent": ([(1, 0, 0)], 1),
    "beyond the data": ([(1, 2, 0)], 1),
    "far beyond the data": ([(1, 0xFFFFFFFF, 0xFFFFFFFE)], 1),
    "too far out": ([(1 << 60, 1, 0)], 1),
    "too much data": ([(0, 1, 0)], SEGMENT_DATA_MAX // BLOCKS + 1),
}


@pytest.mark.parametrize("rule", BAD)
def test_segment_that_breaks_a_rule_is_not_made(rule: str) -> None:
    extents, blocks = BAD[rule]
    with pytest.raises(InvalidRequest):
        encode_segment(
            HEADER, np.array(extents, EXTENT_DTYPE), bytes(blocks * BLOCKS), compression="none"
        )


def test_ragged_data_and_foreign_extents_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        encode_segment(HEADER, np.zeros(0, EXTENT_DTYPE), b"x", compression="none")
    with pytest.raises(InvalidRequest):
        encode_segment(HEADER, np.zeros(1, np.uint64), b"", compression="none")


def test_biggest_segment_and_many_extents() -> None:
    extents = np.zeros(200_000, EXTENT_DTYPE)
    extents["start"] = np.arange(len(extents)) * 2
    extents["count"] = 1
    extents["position"] = np.where(np.arange(len(extents)) < 4096, np.arange(len(extents)), ZEROES)
    encoded = encode_segment(HEADER, extents, bytes(SEGMENT_DATA_MAX), compression="zstd")
    assert encoded.bytes < SEGMENT_BYTES_MAX
    store = MemoryStore()
    store.create("x", encoded.parts)
    assert (read_table(store, "x").extents == extents).all()
    assert decode_segment(store.get("x")).data() == bytes(SEGMENT_DATA_MAX)


def test_incompressible_data_is_stored_as_it_is() -> None:
    noise = np.random.default_rng(1).bytes(SEGMENT_DATA_MAX // 8)
    extents = np.array([(0, len(noise) // BLOCKS, 0)], EXTENT_DTYPE)
    encoded = encode_segment(HEADER, extents, noise, compression="zstd")
    assert encoded.bytes - len(noise) < 1000


def test_missing_segment_is_a_missing_object() -> None:
    with pytest.raises(ObjectMissing):
        read_table(MemoryStore(), "x")


def test_frame_that_claims_to_be_huge_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = zstandard.ZstdCompressor

    class Bomb:
        def __init__(self, **_: object) -> None:
            self._real = real(level=1)

        def compress(self, data: bytes) -> bytes:
            return self._real.compress(bytes(1 << 28))[:1000]

    monkeypatch.setattr("leeward.replica.frame_codec.zstandard.ZstdCompressor", Bomb)
    extents = np.array([(0, 16, 0)], EXTENT_DTYPE)
    stored = b"".join(encode_segment(HEADER, extents, bytes(16 * BLOCKS), compression="zstd").parts)
    with pytest.raises(SegmentCorrupt, match="wrong length"):
        decode_segment(stored).data()
