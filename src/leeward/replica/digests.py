"""Digest lists: what a range of a disk holds, chunk by chunk, in 16 bytes each.

Owns: the digest of a chunk, the list's stored form, comparing content with it. Must not know: who
asks or answers. They travel instead of data between two disks that should be equal: a sweep skips
what the replica has already, a failback what the old disk still has. FORMAT.md 8.

A chunk of zeros has no digest and no place in a list; the last chunk of a disk counts as if zeros
followed it, so that a disk that has grown compares equal where it was.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import DataIntegrity, InvalidRequest, SegmentCorrupt
from leeward.core.ids import check_name
from leeward.core.units import CHUNK, MIB
from leeward.object_store.store import Buffer

DIGEST_BYTES = 16
CHUNKS_MAX = 1 << 16
"""Digests in one list: 1 MiB of them, for 4 GiB of data."""
_LIKE_NOTHING = 0xFF
"""Every byte of the digest of a chunk that must be sent."""
MAGIC = b"LWDG"
VERSION = 1
BLAKE2B_128 = 1

_HEADER = struct.Struct("<4sHBxIHHQQQQII")
_RUN_DTYPE = np.dtype([("start", "<u8"), ("count", "<u8")])
_NAME = re.compile(r"items/[^/]+/digests/(\d{8,})-(\d{12,})-.*")
_SHA256_BYTES = 32
_NAME_BYTES_MAX = 255
_CHUNK_NUMBER_MAX = 1 << 40
_READ_BYTES = 4 * MIB
LIST_BYTES_MAX = (
    _HEADER.size + 2 * _NAME_BYTES_MAX + 8 + CHUNKS_MAX * (16 + DIGEST_BYTES) + _SHA256_BYTES
)

Digests = NDArray[np.uint8]
Chunks = NDArray[np.int64]


class Readable(Protocol):
    """A disk whose content can be digested (a PointDisk, an image)."""

    @property
    def size_bytes(self) -> int: ...
    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]: ...
    def read_into(self, offset: int, view: memoryview) -> None: ...


@dataclass(frozen=True)
class DigestList:
    """Digests of chunks [first_chunk, end_chunk) of a disk; those not in `chunks` are zeros.

    epoch, sequence: of the cut that asked for it: the content is that of this cut or of a later
    one, for each chunk by itself. chunks: ascending. digests: one row of 16 bytes for each.
    """

    item_id: str
    disk: str
    epoch: int
    sequence: int
    first_chunk: int
    end_chunk: int
    chunks: Chunks
    digests: Digests
    key: bytes = field(default=b"", repr=False)
    """What the digests were made with, for whoever compares."""

    def is_equal(self, offset: int, data: Buffer, *, key: bytes = b"") -> NDArray[np.bool_]:
        """Say of every chunk of `data`, which begins at byte `offset`, whether it is what the list
        says; a chunk outside the list's range is not.

        Raises: InvalidRequest if `offset` is not where a chunk begins.
        """
        if offset % CHUNK:
            raise InvalidRequest(f"no chunk begins at byte {offset}", field="offset")
        first = offset // CHUNK
        ours = digest_chunks(data, key=key or self.key)
        wanted = np.arange(first, first + len(ours))
        theirs = np.zeros_like(ours)
        low, high = np.searchsorted(self.chunks, (first, first + len(ours)))
        theirs[self.chunks[low:high] - first] = self.digests[low:high]
        is_inside = (wanted >= self.first_chunk) & (wanted < self.end_chunk)
        return np.asarray((ours == theirs).all(axis=1) & is_inside)

    def is_zero(self, offset: int, length: int) -> bool:
        """Say whether all chunks that the range touches are in the list's range, and zeros."""
        first, end = offset // CHUNK, -(-(offset + length) // CHUNK)
        low, high = np.searchsorted(self.chunks, (first, end))
        return bool(self.first_chunk <= first and end <= self.end_chunk and low == high)


def digest_chunks(data: Buffer, *, key: bytes = b"") -> Digests:
    """Return a row of 16 bytes for every chunk of `data`, all zero for a chunk of zeros.

    key: makes digests that nobody without it can compute; up to 64 bytes.
    """
    view = memoryview(data).cast("B")
    count = -(-len(view) // CHUNK)
    found = np.zeros((count, DIGEST_BYTES), np.uint8)
    for index in _with_data(view, count):
        chunk = view[index * CHUNK : (index + 1) * CHUNK]
        digest = hashlib.blake2b(chunk, digest_size=DIGEST_BYTES, key=key)
        if len(chunk) < CHUNK:
            digest.update(bytes(CHUNK - len(chunk)))
        found[index] = np.frombuffer(digest.digest(), np.uint8)
    return found


def _with_data(view: memoryview, count: int) -> list[int]:
    """Return the indices of the chunks that are not all zeros."""
    whole = len(view) // CHUNK
    words = np.frombuffer(view[: whole * CHUNK], np.uint64).reshape(whole, CHUNK // 8)
    found: list[int] = np.flatnonzero(words.any(axis=1)).tolist()
    if whole < count and np.frombuffer(view[whole * CHUNK :], np.uint8).any():
        found.append(whole)
    return found


def digest_disk(
    disk: Readable,
    first_chunk: int,
    *,
    data_bytes_max: int,
    key: bytes = b"",
    doubted: Callable[[int, int], NDArray[np.bool_]] | None = None,
) -> tuple[int, Chunks, Digests]:
    """Return (end, chunks, digests) of chunks [first_chunk, end) of a disk, reading at most about
    `data_bytes_max` bytes of data; end is the disk's when all of it has been digested.

    doubted: says of the chunks of a range of bytes which are not to be relied upon; they, and those
    that cannot be read, get a digest that nothing has: whoever compares sends them.
    """
    chunks: list[Chunks] = []
    digests: list[Digests] = []
    at = first_chunk * CHUNK
    budget = min(data_bytes_max, CHUNKS_MAX * CHUNK)
    for start, length in _pieces(disk, at):
        if length > budget and chunks:
            break
        rows = _digest_piece(disk, start, length, key)
        if doubted is not None:
            rows[doubted(start, length)] = _LIKE_NOTHING
        has_data = np.flatnonzero(rows.any(axis=1))
        chunks.append(has_data + start // CHUNK)
        digests.append(rows[has_data])
        budget -= length
        at = start + length
        if budget <= 0:
            break
    else:
        at = disk.size_bytes
    none = (np.zeros(0, np.int64), np.zeros((0, DIGEST_BYTES), np.uint8))
    return (
        -(-at // CHUNK),
        np.concatenate((none[0], *chunks)),
        np.concatenate((none[1], *digests)),
    )


def _digest_piece(disk: Readable, start: int, length: int, key: bytes) -> Digests:
    data = bytearray(length)
    try:
        disk.read_into(start, memoryview(data))
        return digest_chunks(data, key=key)
    except DataIntegrity:
        if length <= CHUNK:
            return np.full((1, DIGEST_BYTES), _LIKE_NOTHING, np.uint8)
    pieces = range(start, start + length, CHUNK)
    return np.concatenate(
        [_digest_piece(disk, at, min(CHUNK, start + length - at), key) for at in pieces]
    )


def _pieces(disk: Readable, at: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of whole chunks that may hold data, in order, none twice."""
    end = disk.size_bytes
    done = at
    for length, has_data in disk.extents(at, end - at) if at < end else ():
        start, at = at, at + length
        if not has_data:
            continue
        start = max(start // CHUNK * CHUNK, done)
        stop = min(-(-at // CHUNK) * CHUNK, end)
        for low in range(start, stop, _READ_BYTES):
            yield low, min(_READ_BYTES, stop - low)
        done = max(done, stop)


# ── stored form ──────────────────────────────────────────────────────────────────────────────────


def digests_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/digests/"


def digests_name(item_id: str, epoch: int, sequence: int, disk: str, first_chunk: int) -> str:
    """Return the name of the list that begins at `first_chunk`, asked for by that cut."""
    disk = check_name(disk, field="disk")
    return f"{digests_prefix(item_id)}{epoch:08d}-{sequence:012d}-{disk}-{first_chunk:012d}"


def parse_digests_position(name: str) -> tuple[int, int] | None:
    """Return (epoch, sequence) of a list's name, None if it is no such name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def encode_digests(digests: DigestList) -> bytes:
    """Return the list's stored form. Raises: InvalidRequest if it is too long."""
    item, disk = digests.item_id.encode(), digests.disk.encode()
    if len(digests.chunks) > CHUNKS_MAX or max(len(item), len(disk)) > _NAME_BYTES_MAX:
        raise InvalidRequest("a digest list is too long")
    runs = _runs(digests.chunks)
    head = _HEADER.pack(
        *(MAGIC, VERSION, BLAKE2B_128, CHUNK, len(item), len(disk)),
        *(digests.epoch, digests.sequence, digests.first_chunk, digests.end_chunk),
        *(len(runs), len(digests.chunks)),
    )
    names = item + disk
    body = b"".join(
        (
            head,
            names,
            bytes(-(len(head) + len(names)) % 8),
            runs.tobytes(),
            digests.digests.tobytes(),
        )
    )
    return body + hashlib.sha256(body).digest()


def _runs(chunks: Chunks) -> NDArray[np.void]:
    first = np.flatnonzero(np.diff(chunks, prepend=-2) != 1)
    runs = np.zeros(first.size, _RUN_DTYPE)
    runs["start"] = chunks[first]
    runs["count"] = np.diff(np.append(first, chunks.size))
    return runs


def decode_digests(data: Buffer) -> DigestList:
    """Return a stored list, everything about it checked. Raises: SegmentCorrupt."""
    view = memoryview(data).cast("B")
    if not _HEADER.size + _SHA256_BYTES <= len(view) <= LIST_BYTES_MAX:
        raise SegmentCorrupt(f"a digest list of {len(view)} bytes cannot be one")
    body = view[:-_SHA256_BYTES]
    magic, version, kind, chunk, item_len, disk_len, *numbers, runs, count = _HEADER.unpack_from(
        view
    )
    if magic != MAGIC:
        raise SegmentCorrupt("an object is not a digest list", hint="it begins with other bytes")
    if (version, kind, chunk) != (VERSION, BLAKE2B_128, CHUNK):
        raise SegmentCorrupt(f"a digest list has format version {version}", hint="update Leeward")
    names_end = _HEADER.size + item_len + disk_len
    start = names_end + -names_end % 8
    if start + runs * 16 + count * DIGEST_BYTES != len(body):
        raise SegmentCorrupt("a digest list's length contradicts its header")
    if hashlib.sha256(body).digest() != view[-_SHA256_BYTES:]:
        raise SegmentCorrupt("a digest list does not match its checksum")
    try:
        item = bytes(body[_HEADER.size : _HEADER.size + item_len]).decode()
        disk = bytes(body[_HEADER.size + item_len : names_end]).decode()
    except UnicodeDecodeError as error:
        raise SegmentCorrupt("a digest list's names cannot be read") from error
    epoch, sequence, first_chunk, end_chunk = numbers
    table = np.frombuffer(body, _RUN_DTYPE, runs, start)
    chunks = _expanded(table, first_chunk, end_chunk, count)
    digests = np.frombuffer(body, np.uint8, count * DIGEST_BYTES, start + runs * 16)
    return DigestList(
        item, disk, epoch, sequence, first_chunk, end_chunk, chunks, digests.reshape(-1, 16)
    )


def _expanded(runs: NDArray[np.void], first: int, end: int, count: int) -> Chunks:
    """Return the chunks of the runs. Raises: SegmentCorrupt unless they are `count`, ascending and
    within [first, end)."""
    if not first <= end <= _CHUNK_NUMBER_MAX:
        raise SegmentCorrupt("a digest list's range is none")
    too_big = runs["start"].max(initial=0) > end or runs["count"].max(initial=0) > count
    starts, counts = runs["start"].astype(np.int64), runs["count"].astype(np.int64)
    if too_big or int(counts.sum()) != count or (counts < 1).any():
        raise SegmentCorrupt("a digest list's runs contradict its header")
    ends = starts + counts
    if len(runs) and (starts[0] < first or ends[-1] > end or (starts[1:] < ends[:-1]).any()):
        raise SegmentCorrupt("a digest list's runs overlap or leave its range")
    within = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(starts, counts) + within)
