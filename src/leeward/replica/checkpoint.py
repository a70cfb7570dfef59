"""Checkpoints: a block map stored in one object, its unchanged pages left in older ones.

Owns: the bytes of checkpoints and of map pages. Must not know: how a map is changed or asked.
Written by the worker now and then, read by whoever opens a recovery point. FORMAT.md 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from leeward.core.errors import InvalidRequest, NotFound, ObjectMissing, SegmentCorrupt
from leeward.core.units import CHUNK, KIB, MIB
from leeward.object_store.names import check_object_name
from leeward.object_store.store import Buffer, ObjectStore
from leeward.replica.layout import FRAGMENTED
from leeward.replica.sealing import (
    AES_256_GCM,
    NO_KEYS,
    PLAIN,
    SEAL_BYTES,
    TAG_BYTES,
    Key,
    Keyring,
    ObjectCipher,
    Seal,
    keys_of,
)

PAGE_CHUNKS = 16384
"""Chunks in a page: one page maps 1 GiB."""
PAGE_BYTES = PAGE_CHUNKS * CHUNK
CHUNK_BLOCKS = 16
DISK_BYTES_MAX = 1 << 50

MAGIC = b"LWCK"
VERSION = 1
_HEADER = struct.Struct("<4sHHHHIQQII")
_LENGTH = struct.Struct("<H")
_IS_SEALED = 1 << 15
"""Set in an object name's length when the object's seal follows the name."""
_CRC = struct.Struct("<I")
_INDEX_DTYPE = np.dtype(
    [
        ("page", "<u4"),
        ("object", "<u4"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("fragments", "<u4"),
        ("crc32", "<u4"),
        ("reserved", "<u4"),
    ]
)
_HEAD_BYTES_MAX = 256 * MIB
_FIRST_READ_BYTES = 64 * KIB
_ENTRIES_BYTES = PAGE_CHUNKS * 8
_FRAGMENT_BYTES = CHUNK_BLOCKS * 8
_COALESCED_BYTES_MAX = 8 * MIB


@dataclass(frozen=True, slots=True)
class StoredPage:
    """Where a page's compressed bytes lie, and what they must be."""

    object_name: str
    offset: int
    bytes: int
    fragments: int
    crc32: int
    seal: Seal = b""
    """Of the object it lies in; empty: not encrypted."""


@dataclass(frozen=True, slots=True)
class Page:
    """entries: PAGE_CHUNKS references; one with FRAGMENTED set is an index into fragments.
    fragments: (count, 16) references."""

    entries: NDArray[np.uint64]
    fragments: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CheckpointHead:
    """A checkpoint without its pages: whose it is, and where each page is. Absent page: zeros."""

    item_id: str
    disk: str
    epoch: int
    size_bytes: int
    pages: dict[int, StoredPage]


@dataclass(frozen=True, slots=True)
class EncodedCheckpoint:
    """A checkpoint ready to be stored, and the head it will be read back as."""

    parts: list[bytes]
    head: CheckpointHead


def encode_checkpoint(
    name: str, head: CheckpointHead, changed: Mapping[int, Page], key: Key | None = None
) -> EncodedCheckpoint:
    """Return the stored form of a map whose `changed` pages go into the object `name` itself and
    whose other pages lie where `head` says. The same input gives the same bytes."""
    kept = {page: at for page, at in head.pages.items() if page not in changed}
    bodies = {page: _encode_page(content) for page, content in sorted(changed.items())}
    objects = _encode_objects(sorted({(at.object_name, at.seal) for at in kept.values()}))
    names = (head.item_id + head.disk).encode()
    front_bytes = _HEADER.size + _padded(len(names)) + (SEAL_BYTES if key else 0)
    index_bytes = (len(kept) + len(changed)) * _INDEX_DTYPE.itemsize
    head_bytes = front_bytes + len(objects) + index_bytes + (TAG_BYTES if key else 0) + _CRC.size
    if head_bytes > _HEAD_BYTES_MAX:
        raise InvalidRequest(f"the map of disk {head.disk} has too many pages")
    front = _HEADER.pack(
        MAGIC,
        VERSION,
        len(head.item_id.encode()),
        len(head.disk.encode()),
        AES_256_GCM if key else PLAIN,
        head_bytes,
        head.epoch,
        head.size_bytes,
        1 + len({at.object_name for at in kept.values()}),
        len(kept) + len(changed),
    ) + names.ljust(_padded(len(names)), b"\0")
    cipher = key.seal(front, [objects, _encode_index(kept), *bodies.values()]) if key else None
    if cipher:
        bodies = {page: cipher.encrypt(1 + page, body) for page, body in bodies.items()}
    pages = kept | _place(name, bodies, changed, head_bytes, cipher)
    body = objects + _encode_index(pages, name)
    if cipher:
        front += cipher.seal
        body = cipher.encrypt(0, body, front)
    front += body
    new_head = CheckpointHead(head.item_id, head.disk, head.epoch, head.size_bytes, pages)
    return EncodedCheckpoint([front, _CRC.pack(zlib.crc32(front)), *bodies.values()], new_head)


def _place(
    name: str,
    bodies: Mapping[int, bytes],
    changed: Mapping[int, Page],
    head_bytes: int,
    cipher: ObjectCipher | None,
) -> dict[int, StoredPage]:
    """Return where each of `bodies`, stored one after the other behind the head, will lie."""
    pages, offset, seal = {}, head_bytes, cipher.seal if cipher else b""
    for page, body in bodies.items():
        count, crc = len(changed[page].fragments), zlib.crc32(body)
        pages[page] = StoredPage(name, offset, len(body), count, crc, seal)
        offset += len(body)
    return pages


def _encode_index(pages: Mapping[int, StoredPage], own_name: str = "") -> bytes:
    others = sorted({at.object_name for at in pages.values()} - {own_name})
    numbers = {object_name: 1 + number for number, object_name in enumerate(others)} | {own_name: 0}
    rows = [
        (page, numbers[at.object_name], at.offset, at.bytes, at.fragments, at.crc32, 0)
        for page, at in sorted(pages.items())
    ]
    return np.array(rows, _INDEX_DTYPE).tobytes()


def read_checkpoint_head(store: ObjectStore, name: str) -> CheckpointHead:
    """Return a stored checkpoint's head by one ranged read, two if it is long.

    Raises: ObjectMissing, SegmentCorrupt.
    """
    try:
        front = store.get_range(name, 0, _FIRST_READ_BYTES)
        head_bytes = _parse_head_bytes(front)
        if head_bytes > len(front):
            front += store.get_range(name, len(front), head_bytes - len(front))
    except NotFound as error:
        raise ObjectMissing(f"checkpoint {name} is gone though it is still in use") from error
    return _decode_head(name, memoryview(front)[:head_bytes], head_bytes, keys_of(store))


def read_pages(store: ObjectStore, pages: Mapping[int, StoredPage]) -> dict[int, Page]:
    """Return the pages stored at the given places, neighbours fetched by one request.

    Raises: ObjectMissing, SegmentCorrupt.
    """
    order = sorted(pages.items(), key=lambda entry: (entry[1].object_name, entry[1].offset))
    found: dict[int, Page] = {}
    group: list[tuple[int, StoredPage]] = []
    for number, at in order:
        if group and not _continues(group, at):
            found.update(_read_group(store, group))
            group = []
        group.append((number, at))
    if group:
        found.update(_read_group(store, group))
    return found


def _continues(group: Sequence[tuple[int, StoredPage]], at: StoredPage) -> bool:
    first, last = group[0][1], group[-1][1]
    return (
        at.object_name == last.object_name
        and at.offset == last.offset + last.bytes
        and at.offset + at.bytes - first.offset <= _COALESCED_BYTES_MAX
    )


def _read_group(store: ObjectStore, group: Sequence[tuple[int, StoredPage]]) -> dict[int, Page]:
    first, last = group[0][1], group[-1][1]
    try:
        data = store.get_range(
            first.object_name, first.offset, last.offset + last.bytes - first.offset
        )
    except NotFound as error:
        raise ObjectMissing(f"checkpoint {first.object_name} is gone, still in use") from error
    view = memoryview(data)
    return {
        number: _decode_page(
            number, view[at.offset - first.offset :][: at.bytes], at, keys_of(store)
        )
        for number, at in group
    }


def _encode_page(page: Page) -> bytes:
    raw = (
        page.entries.astype("<u8", copy=False).tobytes()
        + page.fragments.astype("<u8", copy=False).tobytes()
    )
    return zstandard.ZstdCompressor(level=1, write_content_size=True).compress(raw)


def _decode_page(page: int, stored: Buffer, at: StoredPage, keys: Keyring = NO_KEYS) -> Page:
    logical = _ENTRIES_BYTES + at.fragments * _FRAGMENT_BYTES
    if len(stored) != at.bytes or zlib.crc32(stored) != at.crc32:
        raise SegmentCorrupt(f"a map page in {at.object_name} does not match its checksum")
    if at.seal:
        stored = keys.cipher(at.seal).decrypt(1 + page, stored)
    try:
        if zstandard.frame_content_size(stored) != logical:
            raise SegmentCorrupt(f"a map page in {at.object_name} has a wrong length")
        raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=logical)
    except zstandard.ZstdError as error:
        raise SegmentCorrupt(f"a map page in {at.object_name}: {error}") from error
    words = np.frombuffer(raw, "<u8").astype(np.uint64, copy=False)
    entries = words[:PAGE_CHUNKS]
    fragments = words[PAGE_CHUNKS:].reshape(-1, CHUNK_BLOCKS)
    local = entries[entries >= FRAGMENTED] - np.uint64(FRAGMENTED)
    if (fragments >= FRAGMENTED).any() or (len(local) and int(local.max()) >= at.fragments):
        raise SegmentCorrupt(f"a map page in {at.object_name} contradicts itself")
    return Page(entries, fragments)


def _encode_objects(others: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the table of names and seals, this object's own, an empty name, first."""
    table = b"".join(
        _LENGTH.pack(len(name) | (_IS_SEALED if seal else 0)) + name.encode("ascii") + seal
        for name, seal in (("", b""), *others)
    )
    return table.ljust(_padded(len(table)), b"\0")


def _parse_head_bytes(front: bytes) -> int:
    if len(front) < _HEADER.size:
        raise SegmentCorrupt(f"a checkpoint of {len(front)} bytes is cut short")
    magic, version, *rest = _HEADER.unpack_from(front)
    if magic != MAGIC:
        raise SegmentCorrupt("an object is not a checkpoint", hint="it begins with other bytes")
    if version != VERSION:
        raise SegmentCorrupt(f"a checkpoint has format version {version}", hint="update Leeward")
    head_bytes = int(rest[3])
    if not _HEADER.size + _CRC.size <= head_bytes <= _HEAD_BYTES_MAX:
        raise SegmentCorrupt(f"a checkpoint's head of {head_bytes} bytes is impossible")
    return head_bytes


def _decode_head(name: str, front: memoryview, head_bytes: int, keys: Keyring) -> CheckpointHead:
    end = head_bytes - _CRC.size
    if len(front) != head_bytes or zlib.crc32(front[:end]) != _CRC.unpack_from(front, end)[0]:
        raise SegmentCorrupt(f"the head of checkpoint {name} does not match its checksum")
    _, _, item_bytes, disk_bytes, mode, _, epoch, size_bytes, object_count, index_count = (
        _HEADER.unpack_from(front)
    )
    middle = _HEADER.size + item_bytes
    start = _HEADER.size + _padded(item_bytes + disk_bytes)
    seal = bytes(front[start : start + SEAL_BYTES]) if mode else b""
    body = front[start + len(seal) : end]
    if mode not in (PLAIN, AES_256_GCM) or len(seal) != (SEAL_BYTES if mode else 0):
        raise SegmentCorrupt(f"the head of checkpoint {name} contradicts itself")
    if seal:
        body = memoryview(keys.cipher(seal).decrypt(0, body, front[: start + SEAL_BYTES]))
    try:
        item_id = str(front[_HEADER.size : middle], "utf-8")
        disk = str(front[middle : middle + disk_bytes], "utf-8")
        objects, at = _decode_objects(body, object_count)
        index = np.frombuffer(body, _INDEX_DTYPE, index_count, at)
    except (struct.error, UnicodeDecodeError, ValueError, InvalidRequest) as error:
        raise SegmentCorrupt(f"the head of checkpoint {name} contradicts itself") from error
    if at + index.nbytes != len(body) or _is_impossible(index, size_bytes, object_count):
        raise SegmentCorrupt(f"the head of checkpoint {name} contradicts itself")
    objects[0] = (name, seal)
    pages = {
        page: StoredPage(objects[number][0], offset, length, fragments, crc, objects[number][1])
        for page, number, offset, length, fragments, crc, _ in index.tolist()
    }
    return CheckpointHead(item_id, disk, epoch, size_bytes, pages)


def _is_impossible(index: NDArray[np.void], size_bytes: int, object_count: int) -> bool:
    page_count = -(-size_bytes // PAGE_BYTES)
    return bool(
        size_bytes > DISK_BYTES_MAX
        or (index["page"] >= page_count).any()
        or (index["object"] >= object_count).any()
        or (index["offset"] >= 1 << 62).any()
        or (index["fragments"] > PAGE_CHUNKS).any()
        or (index["bytes"] > _ENTRIES_BYTES * 20).any()
    )


def _decode_objects(body: memoryview, count: int) -> tuple[list[tuple[str, bytes]], int]:
    """Return the names with their seals, and where the table ends.

    Raises: ValueError, struct.error, InvalidRequest.
    """
    at, objects = 0, []
    if not 1 <= count <= len(body) // _LENGTH.size:
        raise ValueError("object count")
    for number in range(count):
        length = _LENGTH.unpack_from(body, at)[0]
        at += _LENGTH.size
        end = at + (length & ~_IS_SEALED)
        name = str(body[at:end], "utf-8")
        at = end + (SEAL_BYTES if length & _IS_SEALED else 0)
        objects.append((check_object_name(name) if number else name, bytes(body[end:at])))
        if at > len(body):
            raise ValueError("object names")
    return objects, _padded(at)


def _padded(length: int) -> int:
    return -(-length // 8) * 8
