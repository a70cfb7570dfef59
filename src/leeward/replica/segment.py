"""Segments: immutable objects that hold the new contents of some extents of one disk.

Owns: their bytes, encoding and verified decoding. Must not know: which map or cut uses them.
Written at the source, kept verbatim in the target's log, read back by PointDisk. FORMAT.md 3.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import InvalidRequest, NotFound, ObjectMissing, SegmentCorrupt
from leeward.core.units import MIB
from leeward.object_store.store import Buffer, ObjectStore, forget_copies, pieces
from leeward.replica.frame_codec import (
    COMPRESSIONS,
    FRAME_BYTES,
    Compression,
    FrameCodec,
    cut_frames,
)
from leeward.replica.sealing import (
    AES_256_GCM,
    NO_KEYS,
    PLAIN,
    SEAL_BYTES,
    TAG_BYTES,
    Key,
    Keyring,
    ObjectCipher,
    keys_of,
)

__all__ = ["FRAME_BYTES", "Compression"]

BLOCKS = 4096
SECTORS = 512
"""The two units a segment may count in, bytes. Target segments use BLOCKS only."""

SEGMENT_DATA_MAX = 16 * MIB
"""Logical data of one segment, bytes, inclusive."""
EXTENTS_MAX = 1 << 20
"""Extents of one segment, inclusive."""
ZEROES = 0xFFFFFFFF
"""An extent's position when it reads as zeros and has no data."""

EXTENT_DTYPE = np.dtype([("start", "<u8"), ("count", "<u4"), ("position", "<u4")])
"""In units. position: of the extent's first unit in the segment's logical data, or ZEROES."""
_FRAME_DTYPE = np.dtype([("bytes", "<u4"), ("crc32", "<u4")])

MAGIC = b"LWSG"
VERSION = 1
_HEADER = struct.Struct("<4sHBBIIIIQQHHI")
_CRC = struct.Struct("<I")
_NAME_BYTES_MAX = 255
_FRAMES_MAX = SEGMENT_DATA_MAX // FRAME_BYTES
_TABLE_BYTES_MAX = (
    _HEADER.size + 2 * _NAME_BYTES_MAX + 8 + EXTENTS_MAX * 16 + _FRAMES_MAX * 8 + _CRC.size
    + SEAL_BYTES + TAG_BYTES
)  # fmt: skip
SEGMENT_BYTES_MAX = _TABLE_BYTES_MAX + SEGMENT_DATA_MAX + _FRAMES_MAX * TAG_BYTES
"""No stored segment is bigger, bytes."""
_FIRST_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Whose bytes a segment holds, and from which cut. unit: BLOCKS or SECTORS."""

    item_id: str
    disk: str
    epoch: int
    sequence: int
    unit: int


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A segment ready to be stored: `parts` one after the other."""

    parts: list[bytes | memoryview]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentTable:
    """Everything of a segment but its data.

    extents: EXTENT_DTYPE, sorted by start, not overlapping. Frame i lies at
    [frame_offsets[i], frame_offsets[i + 1]) of the object.
    """

    header: SegmentHeader
    extents: NDArray[np.void]
    data_bytes: int
    frame_offsets: NDArray[np.int64]
    frame_crcs: NDArray[np.uint32]
    compression: int
    """As the header has it."""
    cipher: ObjectCipher | None
    """None: the segment is not sealed."""

    @property
    def key_id(self) -> str:
        """Of the key that the segment is sealed with, "" if it is not."""
        return self.cipher.key_id if self.cipher else ""

    @property
    def frame_count(self) -> int:
        return len(self.frame_crcs)

    @property
    def object_bytes(self) -> int:
        return int(self.frame_offsets[-1])

    def frame_logical_bytes(self, index: int) -> int:
        return min(FRAME_BYTES, self.data_bytes - index * FRAME_BYTES)

    def decode_frame(self, index: int, stored: Buffer, codec: FrameCodec) -> bytes:
        """Return frame `index`'s logical bytes from its stored ones; `codec` is this table's.

        Raises: SegmentCorrupt.
        """
        expected = int(self.frame_offsets[index + 1] - self.frame_offsets[index])
        if len(stored) != expected or zlib.crc32(stored) != int(self.frame_crcs[index]):
            raise SegmentCorrupt(f"frame {index} of a segment does not match its checksum")
        return codec.unpack(index, stored, self.frame_logical_bytes(index))

    def codec(self) -> FrameCodec:
        """Return what unpacks frames that have been verified. One thread at a time."""
        return FrameCodec(self.compression, self.cipher)


@dataclass(frozen=True)
class DecodedSegment:
    """A whole segment whose checksums have been verified. stored: the object's bytes."""

    table: SegmentTable
    stored: memoryview

    @property
    def header(self) -> SegmentHeader:
        return self.table.header

    @property
    def extents(self) -> NDArray[np.void]:
        return self.table.extents

    def data(self) -> bytes:
        """Return the logical data: an extent's units lie at its position. Raises: SegmentCorrupt.

        Decompressed at the first call and kept.
        """
        return self._data

    @cached_property
    def _data(self) -> bytes:
        return b"".join(self.frames())

    def frames(self) -> Iterator[bytes]:
        """Yield every frame's logical bytes, in order, keeping none. Raises: SegmentCorrupt."""
        table, offsets = self.table, self.table.frame_offsets.tolist()
        codec = table.codec()
        for index in range(table.frame_count):
            stored = self.stored[offsets[index] : offsets[index + 1]]
            yield codec.unpack(index, stored, table.frame_logical_bytes(index))


def encode_segment(
    header: SegmentHeader,
    extents: NDArray[np.void],
    data: Buffer | Sequence[Buffer],
    *,
    compression: Compression,
    key: Key | None = None,
) -> EncodedSegment:
    """Return the stored form of `extents` (EXTENT_DTYPE) over the logical `data`, sealed with
    `key` if there is one. The same input gives the same bytes.

    Raises: InvalidRequest if extents or data break the format's rules.
    """
    content = pieces(data)
    data_bytes = sum(map(len, content))
    if problem := _problem(header, extents, data_bytes):
        raise InvalidRequest(f"a segment {problem}")
    frames = cut_frames(content, compression)
    head, body = _encode_header(header, extents, data_bytes, compression, key), extents.tobytes()
    if key:
        # Copies: a nonce must not meet another content if whoever gave the data changes it now.
        frames = [bytes(frame) for frame in frames]
        cipher = key.seal(head, [body, *frames])
        head += cipher.seal
        body = cipher.encrypt(0, body, head)
        frames = [cipher.encrypt(index + 1, frame) for index, frame in enumerate(frames)]
    table = np.empty(len(frames), _FRAME_DTYPE)
    table["bytes"] = [len(frame) for frame in frames]
    table["crc32"] = [zlib.crc32(frame) for frame in frames]
    head += body + table.tobytes()
    parts: list[bytes | memoryview] = [head, _CRC.pack(zlib.crc32(head)), *frames]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return EncodedSegment(parts, sum(map(len, parts)), digest.hexdigest())


def decode_segment(
    data: Buffer, *, sha256: str | None = None, keys: Keyring = NO_KEYS
) -> DecodedSegment:
    """Return the segment in `data`, its structure and every checksum verified.

    sha256: what a manifest says of the object, verified too if given.
    Raises: SegmentCorrupt, KeyMissing.
    """
    stored = memoryview(data).cast("B")
    if sha256 is not None and hashlib.sha256(stored).hexdigest() != sha256:
        raise SegmentCorrupt("a segment does not match the digest in its manifest")
    table = decode_table(stored, keys)
    if len(stored) != table.object_bytes:
        raise SegmentCorrupt(f"a segment of {table.object_bytes} bytes has {len(stored)}")
    offsets = table.frame_offsets.tolist()
    for index, crc in enumerate(table.frame_crcs.tolist()):
        if zlib.crc32(stored[offsets[index] : offsets[index + 1]]) != crc:
            raise SegmentCorrupt(f"frame {index} of a segment does not match its checksum")
    return DecodedSegment(table, stored)


def decode_table(data: Buffer, keys: Keyring = NO_KEYS) -> SegmentTable:
    """Return the table at the beginning of `data`; what follows it is not looked at.

    Raises: SegmentCorrupt, KeyMissing.
    """
    view = memoryview(data).cast("B")
    fields = _parse_header(view)
    end = fields.table_bytes
    if len(view) < end:
        raise SegmentCorrupt("a segment is cut short within its table")
    if zlib.crc32(view[: end - _CRC.size]) != _CRC.unpack_from(view, end - _CRC.size)[0]:
        raise SegmentCorrupt("a segment's table does not match its checksum")
    header = _decode_names(view, fields)
    start, middle = fields.extents_offset, fields.extents_offset + fields.extents_bytes
    cipher, body = None, bytes(view[start:middle])
    if fields.encryption:
        cipher = keys.cipher(bytes(view[start - SEAL_BYTES : start]))
        body = cipher.decrypt(0, body, view[:start])
    extents = np.frombuffer(body, EXTENT_DTYPE, fields.extent_count).copy()
    frames = np.frombuffer(view, _FRAME_DTYPE, fields.frame_count, middle)
    offsets = np.full(len(frames) + 1, end, np.int64)
    offsets[1:] += np.cumsum(frames["bytes"], dtype=np.int64)
    table = SegmentTable(
        header,
        extents,
        fields.data_bytes,
        offsets,
        frames["crc32"].copy(),
        fields.compression,
        cipher,
    )
    problem = _problem(header, extents, fields.data_bytes) or _frame_problem(table)
    if problem:
        raise SegmentCorrupt(f"a segment {problem}")
    return table


def read_table(store: ObjectStore, name: str) -> SegmentTable:
    """Return a stored segment's table by one ranged read, two if it is long.

    Raises: ObjectMissing, SegmentCorrupt, KeyMissing.
    """
    return read_table_and_head(store, name)[0]


def read_table_and_head(store: ObjectStore, name: str) -> tuple[SegmentTable, bytes]:
    """Return the table and the object's first bytes, which had to be read anyway."""
    try:
        return _read_table_and_head(store, name)
    except SegmentCorrupt:
        if not forget_copies(store, name):
            raise
        return _read_table_and_head(store, name)


def _read_table_and_head(store: ObjectStore, name: str) -> tuple[SegmentTable, bytes]:
    try:
        head = store.get_range(name, 0, _FIRST_READ_BYTES)
        table_bytes = _parse_header(memoryview(head)).table_bytes
        if table_bytes > len(head):
            head += store.get_range(name, len(head), table_bytes - len(head))
        return decode_table(head, keys_of(store)), head
    except NotFound as error:
        raise ObjectMissing(f"segment {name} is gone though it is still in use") from error
    except SegmentCorrupt as error:
        raise SegmentCorrupt(f"segment {name}: {error.message}") from error


@dataclass(frozen=True, slots=True)
class _Fields:
    compression: int
    encryption: int
    unit: int
    extent_count: int
    frame_count: int
    data_bytes: int
    epoch: int
    sequence: int
    item_bytes: int
    disk_bytes: int

    @property
    def extents_offset(self) -> int:
        names = _padded(self.item_bytes + self.disk_bytes)
        return _HEADER.size + names + (SEAL_BYTES if self.encryption else 0)

    @property
    def extents_bytes(self) -> int:
        return self.extent_count * 16 + (TAG_BYTES if self.encryption else 0)

    @property
    def table_bytes(self) -> int:
        return self.extents_offset + self.extents_bytes + self.frame_count * 8 + _CRC.size


def _parse_header(view: memoryview) -> _Fields:
    if len(view) < _HEADER.size:
        raise SegmentCorrupt(f"a segment of {len(view)} bytes is cut short")
    magic, version, compression, encryption, unit, extent_count, frame_count, data_units, *rest = (
        _HEADER.unpack_from(view)
    )
    if magic != MAGIC:
        raise SegmentCorrupt("an object is not a segment", hint="it begins with other bytes")
    if version != VERSION:
        raise SegmentCorrupt(f"a segment has format version {version}", hint="update Leeward")
    epoch, sequence, item_bytes, disk_bytes, reserved = rest
    fields = _Fields(
        compression,
        encryption,
        unit,
        extent_count,
        frame_count,
        data_units * unit,
        epoch,
        sequence,
        item_bytes,
        disk_bytes,
    )
    if (
        unit not in (BLOCKS, SECTORS)
        or compression not in COMPRESSIONS.values()
        or encryption not in (PLAIN, AES_256_GCM)
        or reserved
        or extent_count > EXTENTS_MAX
        or fields.data_bytes > SEGMENT_DATA_MAX
        or frame_count != -(-fields.data_bytes // FRAME_BYTES)
        or max(item_bytes, disk_bytes) > _NAME_BYTES_MAX
    ):
        raise SegmentCorrupt("a segment's header contradicts itself")
    return fields


def _decode_names(view: memoryview, fields: _Fields) -> SegmentHeader:
    start, middle = _HEADER.size, _HEADER.size + fields.item_bytes
    try:
        item_id = str(view[start:middle], "utf-8")
        disk = str(view[middle : middle + fields.disk_bytes], "utf-8")
    except UnicodeDecodeError as error:
        raise SegmentCorrupt("a segment's names cannot be read") from error
    return SegmentHeader(item_id, disk, fields.epoch, fields.sequence, fields.unit)


def _encode_header(
    header: SegmentHeader,
    extents: NDArray[np.void],
    data_bytes: int,
    compression: Compression,
    key: Key | None,
) -> bytes:
    """Return what comes before the extents, but for the seal."""
    item_id, disk = header.item_id.encode(), header.disk.encode()
    names = item_id + disk
    fixed = _HEADER.pack(
        MAGIC,
        VERSION,
        COMPRESSIONS[compression],
        AES_256_GCM if key else PLAIN,
        header.unit,
        len(extents),
        -(-data_bytes // FRAME_BYTES),
        data_bytes // header.unit,
        header.epoch,
        header.sequence,
        len(item_id),
        len(disk),
        0,
    )
    return fixed + names.ljust(_padded(len(names)), b"\0")


def _problem(header: SegmentHeader, extents: NDArray[Any], data_bytes: int) -> str:
    """Return which rule of the format is broken, "" if none."""
    if header.unit not in (BLOCKS, SECTORS):
        return f"has unit {header.unit}"
    if not (0 <= header.epoch < 1 << 64 and 0 <= header.sequence < 1 << 64):
        return "has a number out of range"
    if max(len(header.item_id.encode()), len(header.disk.encode())) > _NAME_BYTES_MAX:
        return "has a name that is too long"
    if data_bytes > SEGMENT_DATA_MAX or data_bytes % header.unit:
        return f"has {data_bytes} bytes of data"
    if extents.dtype != EXTENT_DTYPE or len(extents) > EXTENTS_MAX:
        return f"has {len(extents)} extents of {extents.dtype}"
    starts = extents["start"]
    counts = extents["count"].astype(np.uint64)
    # Below 2**55 units no sum here, and no byte offset made of one, can wrap around.
    if len(starts) and (not counts.all() or int(starts.max()) >= 1 << 55):
        return "has an extent that is empty or too far out"
    if (starts[1:] < starts[:-1] + counts[:-1]).any():
        return "has extents that overlap or are not sorted"
    has_data = extents["position"] != ZEROES
    ends = extents["position"].astype(np.uint64)[has_data] + counts[has_data]
    if len(ends) and int(ends.max()) > data_bytes // header.unit:
        return "has an extent beyond its data"
    return ""


def _frame_problem(table: SegmentTable) -> str:
    stored = np.diff(table.frame_offsets) - table.codec().overhead
    logical = np.full(len(stored), FRAME_BYTES, np.int64)
    if len(logical):
        logical[-1] = table.frame_logical_bytes(len(logical) - 1)
    if (stored < 1).any() or (stored > logical).any():
        return "has a frame of an impossible length"
    return ""


def _padded(length: int) -> int:
    return -(-length // 8) * 8
