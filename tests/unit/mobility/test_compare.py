"""What a sweep sends is exactly what differs, whole chunks of it, every byte at most once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leeward.core.units import CHUNK
from leeward.mobility.compare import changed_reads, chunk_ranges, zero_reads
from leeward.replica.digests import DigestList, digest_chunks

CHUNKS = 12


def disk_of(letters: str) -> bytes:
    """Return one chunk for each letter, "." is zeros."""
    return b"".join(bytes(CHUNK) if one == "." else one.encode() * CHUNK for one in letters)


def listed(content: bytes) -> DigestList:
    rows = digest_chunks(content)
    chunks = np.flatnonzero(rows.any(axis=1))
    return DigestList("i", "d", 1, 1, 0, len(rows), chunks, rows[chunks])


@given(
    st.text("ab.", min_size=CHUNKS, max_size=CHUNKS),
    st.text("ab.", min_size=CHUNKS, max_size=CHUNKS),
    st.integers(0, CHUNKS - 1),
    st.integers(1, CHUNKS),
    st.integers(0, 5000),
)
def test_the_target_becomes_equal_by_what_is_sent(
    here: str, there: str, first: int, limit: int, short: int
) -> None:
    disk, target = disk_of(here), bytearray(disk_of(there))
    end = len(disk) - short
    disk = disk[:end] + bytes(short)
    digests = listed(bytes(target))
    extents = [
        (at * CHUNK + 512, CHUNK - 1024) for at in range(CHUNKS) if here[at] != "." and at >= first
    ]
    ranges, until = chunk_ranges(extents, first * CHUNK, end, bytes_max=limit * CHUNK)
    reads = zero_reads(0, ranges, first * CHUNK, until, 5, digests)
    for low, high in ranges:
        reads += changed_reads(0, low, disk[low:high], 6, digests)
    covered = bytearray(len(disk))
    for read in reads:
        assert any(disk[read.offset : read.offset + read.length]) == (read.data is not None)
        target[read.offset : read.offset + read.length] = read.data or bytes(read.length)
        assert not any(covered[read.offset : read.offset + read.length])
        covered[read.offset : read.offset + read.length] = b"\1" * read.length
    assert target[first * CHUNK : until] == disk[first * CHUNK : until]
    assert sum(high - low for low, high in ranges) <= limit * CHUNK
    for at in range(first, until // CHUNK):
        is_equal = here[at] == there[at]
        assert any(covered[at * CHUNK : at * CHUNK + CHUNK]) is not is_equal
