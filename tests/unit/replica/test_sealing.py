"""Sealed objects: read by who holds the key, by nobody else, and no nonce is used twice."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from leeward.core.errors import InvalidRequest, KeyMissing, SegmentCorrupt
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import BlockMap, open_checkpoint
from leeward.replica.envelope import KIND_RECORD, open_envelope, seal_envelope
from leeward.replica.sealing import (
    NO_KEYS,
    SEAL_BYTES,
    Key,
    KeyedStore,
    Keyring,
    keyring,
)
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    SegmentHeader,
    decode_segment,
    encode_segment,
)

OLD, NEW = Key(b"o" * 32), Key(b"n" * 32)
BOTH = keyring([OLD, NEW], NEW)
SECRET = b"the guest's own words"
HEADER = SegmentHeader("web", "data", 1, 7, BLOCKS)


def sealed(content: bytes, *, key: Key = OLD, header: SegmentHeader = HEADER) -> bytes:
    extents = np.array([(5, len(content) // BLOCKS, 0)], EXTENT_DTYPE)
    return b"".join(encode_segment(header, extents, content, compression="none", key=key).parts)


def blocks(*words: bytes) -> bytes:
    return b"".join(word.ljust(BLOCKS, b".") for word in words)


def seal_of(stored: bytes) -> bytes:
    return stored[56 : 56 + SEAL_BYTES]


def test_nothing_of_a_guest_can_be_read_without_the_key() -> None:
    stored = sealed(blocks(SECRET))
    assert SECRET not in stored
    assert struct.pack("<Q", 5) not in stored[56 + SEAL_BYTES :], "nor which blocks it wrote"
    envelope = seal_envelope(KIND_RECORD, 1, {"vm": SECRET.decode()}, OLD)
    assert SECRET not in envelope
    assert open_envelope(envelope, KIND_RECORD, BOTH).body == b'{"vm":"the guest\'s own words"}'


@pytest.mark.parametrize("keys", [NO_KEYS, keyring([NEW])], ids=["none", "another"])
def test_a_missing_or_other_key_is_named(keys: Keyring) -> None:
    store = KeyedStore(MemoryStore(), keyring([OLD], OLD))
    block_map = BlockMap("web", "data", 1 << 20)
    block_map.write_checkpoint(store, "map", epoch=1)
    with pytest.raises(KeyMissing, match=OLD.id):
        decode_segment(sealed(blocks(b"x")), keys=keys)
    with pytest.raises(KeyMissing, match=OLD.id):
        open_envelope(seal_envelope(KIND_RECORD, 1, {}, OLD), KIND_RECORD, keys)
    with pytest.raises(KeyMissing, match=OLD.id):
        open_checkpoint(KeyedStore(store, keys), "map")
    with pytest.raises(KeyMissing, match=OLD.id):
        assert Keyring({NEW.id: NEW}.get, OLD.id).writing


def test_a_key_shows_itself_nowhere() -> None:
    assert "o" * 8 not in f"{OLD!r} {OLD}"
    with pytest.raises(InvalidRequest) as caught:
        Key(b"short secret")
    assert "secret" not in str(caught.value)


def test_a_retry_seals_the_same_bytes_and_other_content_never_shares_a_key() -> None:
    """AES-GCM is lost when one key and nonce seal two messages: a crash between encoding and the
    store's reply, and a second uploader, must both be unable to do so."""
    first = sealed(blocks(b"a", b"b"))
    assert sealed(blocks(b"a", b"b")) == first
    later = SegmentHeader("web", "data", 1, 8, BLOCKS)
    others = [
        sealed(blocks(b"a", b"c")),
        sealed(blocks(b"c", b"b")),
        sealed(blocks(b"a", b"b"), header=later),
        sealed(blocks(b"a", b"b"), key=NEW),
        sealed(blocks(b"a")),
    ]
    assert len({seal_of(stored) for stored in [first, *others]}) == 6
    envelopes = [seal_envelope(KIND_RECORD, 1, {"n": n % 3}, OLD) for n in range(6)]
    assert len({envelope[24:64] for envelope in envelopes}) == len(set(envelopes)) == 3


def test_parts_cannot_change_places() -> None:
    """Two frames of one segment exchanged, every checksum made to fit."""
    content = blocks(*(b"%d" % number for number in range(32)))
    stored = bytearray(sealed(content))
    table = decode_segment(bytes(stored), keys=BOTH).table
    low, middle, high = table.frame_offsets.tolist()
    stored[low:] = stored[middle:high] + stored[low:middle]
    entries = low - 4 - 16
    crcs = [zlib.crc32(stored[low:middle]), zlib.crc32(stored[middle:high])]
    struct.pack_into("<IIII", stored, entries, middle - low, crcs[0], high - middle, crcs[1])
    struct.pack_into("<I", stored, low - 4, zlib.crc32(stored[: low - 4]))
    with pytest.raises(SegmentCorrupt, match="not what was sealed"):
        decode_segment(bytes(stored), keys=BOTH).data()


def test_pages_under_the_old_key_stay_readable_when_new_ones_have_the_new_key() -> None:
    store = MemoryStore()
    old, new = KeyedStore(store, keyring([OLD], OLD)), KeyedStore(store, BOTH)
    block_map = BlockMap("web", "data", 3 << 30)
    block_map.apply(1 << 28 | 1, np.array([(0, 4, 0)], EXTENT_DTYPE))
    block_map.write_checkpoint(old, "first", epoch=1)
    block_map = open_checkpoint(new, "first")
    block_map.apply(1 << 28 | 2, np.array([(1 << 18, 4, 0)], EXTENT_DTYPE))
    block_map.write_checkpoint(new, "second", epoch=1)
    segments, _ = open_checkpoint(new, "second").lookup(np.array([3, (1 << 18) + 3]))
    assert segments.tolist() == [1 << 28 | 1, 1 << 28 | 2]
    with pytest.raises(KeyMissing, match=OLD.id):
        open_checkpoint(KeyedStore(store, keyring([NEW])), "second").lookup(np.array([3]))
    block_map = open_checkpoint(new, "second")
    block_map.write_checkpoint(KeyedStore(store, keyring([OLD, NEW])), "third", epoch=1)
    assert open_checkpoint(new, "third").lookup(np.array([3]))[0].tolist() == [1 << 28 | 1]
