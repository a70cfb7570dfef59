"""Digest lists: equal content is known as equal, any difference shows, damage is told."""

from __future__ import annotations

import hashlib
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.core.units import CHUNK
from leeward.replica.digests import (
    CHUNKS_MAX,
    DigestList,
    decode_digests,
    digest_chunks,
    digest_disk,
    digests_name,
    encode_digests,
)


class Image:
    """A disk in memory; blocks of zeros are holes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [
            (len(piece), any(piece))
            for at in range(offset, offset + length, 4096)
            if (piece := self.content[at : min(at + 4096, offset + length)])
        ]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.content[offset : offset + len(view)]


def content_of(chunks: str, *, tail: int = 0) -> bytes:
    """Return one chunk for each letter, "." is zeros; and `tail` more bytes."""
    rng = random.Random(1)
    filled = {letter: rng.randbytes(CHUNK) for letter in sorted(set(chunks)) if letter != "."}
    return b"".join(filled.get(letter, bytes(CHUNK)) for letter in chunks) + rng.randbytes(tail)


def listed(content: bytes, key: bytes = b"") -> DigestList:
    end, chunks, digests = digest_disk(Image(content), 0, data_bytes_max=1 << 40, key=key)
    return DigestList("item", "sys", 3, 7, 0, end, chunks, digests)


def test_equal_chunks_are_known_and_any_changed_bit_shows() -> None:
    content = content_of("ab.c..d")
    digests = listed(content)
    assert digests.is_equal(0, content).all()
    for chunk in range(7):
        changed = bytearray(content)
        changed[chunk * CHUNK + 4711] ^= 1
        assert np.flatnonzero(~digests.is_equal(0, changed)).tolist() == [chunk]


def test_chunks_of_zeros_take_no_place_and_are_known() -> None:
    digests = listed(content_of("a...b"))
    assert digests.chunks.tolist() == [0, 4]
    assert digests.is_zero(CHUNK, 3 * CHUNK)
    assert not digests.is_zero(CHUNK, 3 * CHUNK + 1)
    assert not digests.is_zero(CHUNK - 1, 2)


def test_what_lies_outside_the_list_is_never_equal() -> None:
    digests = listed(content_of("ab"))
    assert digests.is_equal(CHUNK, content_of("ab.")[CHUNK:]).tolist() == [True, False]
    assert not digests.is_zero(2 * CHUNK, CHUNK)


def test_a_disk_that_has_grown_is_equal_where_it_was() -> None:
    content = content_of("ab", tail=5000)
    digests = listed(content)
    grown = content + bytes(CHUNK - 5000)
    assert digests.is_equal(0, grown).tolist() == [True, True, True]


def test_a_key_makes_other_digests() -> None:
    content = content_of("ab")
    assert not listed(content, key=b"k" * 32).is_equal(0, content).any()
    assert listed(content, key=b"k" * 32).is_equal(0, content, key=b"k" * 32).all()


def test_a_range_must_begin_where_a_chunk_does() -> None:
    with pytest.raises(InvalidRequest):
        listed(content_of("a")).is_equal(512, b"x")


def test_digests_are_those_the_document_names() -> None:
    content = content_of("a")
    assert digest_chunks(content)[0].tobytes() == hashlib.blake2b(content, digest_size=16).digest()
    name = digests_name("web-1", 2, 9, "sys", 16384)
    assert name == "items/web-1/digests/00000002-000000000009-sys-000000016384"


def test_a_long_disk_is_digested_in_lists_that_follow_each_other() -> None:
    content = content_of("a.b..cdef.g", tail=512)
    at, seen, lists = 0, [], []
    while at * CHUNK < len(content):
        end, chunks, digests = digest_disk(Image(content), at, data_bytes_max=2 * CHUNK)
        lists.append(DigestList("item", "sys", 1, 1, at, end, chunks, digests))
        seen += chunks.tolist()
        at = end
    assert seen == listed(content).chunks.tolist()
    assert len(lists) > 2
    covered = np.array([one.is_equal(0, content) for one in lists])
    assert covered.sum(axis=0).tolist() == [1] * 12


@given(st.text("ab.", max_size=12), st.integers(0, 3), st.integers(0, 600))
def test_a_stored_list_comes_back(chunks: str, first: int, tail: int) -> None:
    content = content_of("." * first + chunks, tail=tail)
    digests = listed(content)
    back = decode_digests(encode_digests(digests))
    assert back.chunks.tolist() == digests.chunks.tolist()
    assert back.digests.tobytes() == digests.digests.tobytes()
    assert (back.item_id, back.disk, back.epoch, back.sequence) == ("item", "sys", 3, 7)
    assert (back.first_chunk, back.end_chunk) == (digests.first_chunk, digests.end_chunk)


@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    stored = bytearray(encode_digests(listed(content_of("ab.c"))))
    if data.draw(st.booleans()):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    with pytest.raises(SegmentCorrupt):
        decode_digests(bytes(stored))


@given(st.integers(0, 15), st.binary(min_size=8, max_size=8))
def test_a_list_that_lies_in_good_form_is_told(word: int, lie: bytes) -> None:
    stored = bytearray(encode_digests(listed(content_of("ab.c")))[:-32])
    stored[word * 8 : word * 8 + 8] = lie
    stored += hashlib.sha256(stored).digest()
    try:
        found = decode_digests(bytes(stored))
    except SegmentCorrupt:
        return
    assert len(found.chunks) == len(found.digests) <= CHUNKS_MAX
    assert (np.diff(found.chunks) > 0).all()
    assert struct.calcsize("<4sHBxIHHQQQQII") == 56


class Rotten(Image):
    """Chunk 2 cannot be read."""

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset < 3 * CHUNK and offset + len(view) > 2 * CHUNK:
            raise SegmentCorrupt("rotten")
        super().read_into(offset, view)


def test_what_cannot_be_read_or_is_doubted_equals_nothing() -> None:
    content = content_of("abc.de", tail=7)

    def doubted(offset: int, length: int) -> NDArray[np.bool_]:
        chunks = np.arange(offset // CHUNK, -(-(offset + length) // CHUNK))
        return np.asarray(chunks == 4)

    end, chunks, digests = digest_disk(Rotten(content), 0, data_bytes_max=1 << 40, doubted=doubted)
    made = DigestList("item", "sys", 3, 7, 0, end, chunks, digests)
    assert made.is_equal(0, content).tolist() == [True, True, False, True, False, True, True]
    assert not decode_digests(encode_digests(made)).is_equal(2 * CHUNK, bytes(CHUNK)).any()
