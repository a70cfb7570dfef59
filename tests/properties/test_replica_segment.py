"""Segments against a dictionary: what goes in comes out; anything else is a typed error."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leeward.core.errors import KeyMissing, SegmentCorrupt
from leeward.object_store.memory import MemoryStore
from leeward.replica.sealing import Key, KeyedStore, keyring
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    SECTORS,
    ZEROES,
    Compression,
    EncodedSegment,
    SegmentHeader,
    decode_segment,
    decode_table,
    encode_segment,
    read_table,
)

KEY = Key(bytes(range(32)))
KEYS = keyring([KEY])


@st.composite
def contents(draw: st.DrawFn) -> tuple[SegmentHeader, NDArray[np.void], bytes]:
    """A header, extents with gaps and zeros, and the data they refer to."""
    unit = draw(st.sampled_from([BLOCKS, SECTORS]))
    pieces = draw(
        st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40), st.booleans()), max_size=12)
    )
    extents, position, at = [], 0, draw(st.sampled_from([0, 7, 1 << 40]))
    for gap, count, has_data in pieces:
        at += gap
        extents.append((at, count, position if has_data else ZEROES))
        position += count if has_data else 0
        at += count
    seed = draw(st.integers(0, 255))
    noise = np.random.default_rng(seed).bytes(position * unit)
    data = noise if seed % 2 else bytes(len(noise) // 2) + noise[len(noise) // 2 :]
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    header = SegmentHeader(draw(text), draw(text), draw(st.integers(0, 2**64 - 1)), 5, unit)
    return header, np.array(extents, EXTENT_DTYPE), data


@settings(deadline=None, max_examples=60)
@given(
    contents(),
    st.sampled_from(["zstd", "lz4", "none"]),
    st.integers(1, 70_000),
    st.sampled_from([None, KEY]),
)
def test_segment_round_trip(
    content: tuple[SegmentHeader, NDArray[np.void], bytes],
    compression: Compression,
    cut: int,
    key: Key | None,
) -> None:
    header, extents, data = content
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    encoded = encode_segment(header, extents, pieces, compression=compression, key=key)
    stored = b"".join(encoded.parts)
    assert len(stored) == encoded.bytes
    assert hashlib.sha256(stored).hexdigest() == encoded.sha256
    decoded = decode_segment(stored, sha256=encoded.sha256, keys=KEYS)
    assert decoded.header == header
    assert decoded.extents.tolist() == extents.tolist()
    assert decoded.data() == data
    store = MemoryStore()
    store.create("x", encoded.parts)
    assert read_table(KeyedStore(store, KEYS), "x").extents.tolist() == extents.tolist()


def _encoded(
    compression: Compression = "zstd", key: Key | None = None
) -> tuple[EncodedSegment, bytes]:
    extents = np.array([(3, 20, 0), (40, 5, ZEROES), (50, 12, 20)], EXTENT_DTYPE)
    data = np.random.default_rng(1).bytes(16 * BLOCKS) + bytes(16 * BLOCKS)
    header = SegmentHeader("item", "disk", 1, 2, BLOCKS)
    encoded = encode_segment(header, extents, data, compression=compression, key=key)
    return encoded, b"".join(encoded.parts)


FORMS = st.sampled_from([("zstd", None), ("lz4", None), ("zstd", KEY)])


@settings(deadline=None, max_examples=200)
@given(st.data(), FORMS)
def test_garbled_segment_is_corrupt(
    data: st.DataObject, form: tuple[Compression, Key | None]
) -> None:
    encoded, stored = _encoded(*form)
    at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(stored) - 1)))
    bit = data.draw(st.integers(0, 7))
    garbled = bytearray(stored)
    garbled[at] ^= 1 << bit
    with pytest.raises(SegmentCorrupt):
        decode_segment(garbled, sha256=encoded.sha256, keys=KEYS)
    with pytest.raises(SegmentCorrupt):
        decode_segment(garbled, keys=KEYS).data()


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_torn_segment_is_corrupt(data: st.DataObject) -> None:
    _, stored = _encoded()
    length = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(stored) - 1)))
    for torn in (stored[:length], stored + b"x", stored[:length] + bytes(len(stored) - length)):
        if torn != stored:
            with pytest.raises(SegmentCorrupt):
                decode_segment(torn)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_corrupt(noise: bytes, with_magic: bool) -> None:
    with pytest.raises(SegmentCorrupt):
        decode_segment(b"LWSG\x01\x00" + noise if with_magic else noise)


@settings(deadline=None, max_examples=300)
@given(st.data(), FORMS)
def test_lies_with_a_right_checksum_are_corrupt_or_harmless(
    data: st.DataObject, form: tuple[Compression, Key | None]
) -> None:
    """A table whose checksum was made to fit still cannot lead outside the segment's own data; of
    an encrypted segment nothing can be changed at all but what its frames then contradict."""
    _, stored = _encoded(*form)
    end = int(decode_table(stored, KEYS).frame_offsets[0])
    table = bytearray(stored[: end - 4])
    at = data.draw(st.integers(4, len(table) - 1))
    table[at] = data.draw(st.integers(0, 255))
    lie = bytes(table) + struct.pack("<I", zlib.crc32(table)) + stored[end:]
    try:
        decoded = decode_segment(lie, keys=KEYS)
        assert len(decoded.data()) == decoded.table.data_bytes
    except (SegmentCorrupt, KeyMissing):
        return
    assert form[1] is None or lie == stored
    with_data = decoded.extents[decoded.extents["position"] != ZEROES]
    last = with_data["position"].astype(int) + with_data["count"].astype(int)
    assert (last * decoded.header.unit <= len(decoded.data())).all()
