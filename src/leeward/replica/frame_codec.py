"""The logical data of a segment as frames: cut, compressed, sealed, and back.

Owns: the compressions and what a frame's stored length says. Must not know: extents, tables.
Under segment.py. The only home of lz4. FORMAT.md 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import lz4.block  # type: ignore[import-untyped]
import zstandard

from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.object_store.store import Buffer
from leeward.replica.sealing import TAG_BYTES, ObjectCipher

FRAME_BYTES = 64 * 1024
"""Logical bytes of a frame: compressed, checksummed and fetched as one. The last may be shorter."""

Compression = Literal["zstd", "lz4", "none"]
NONE, ZSTD, LZ4 = 0, 1, 2
COMPRESSIONS: dict[str, int] = {"none": NONE, "zstd": ZSTD, "lz4": LZ4}


def known_compression(name: str) -> Compression:
    """Return the compression of that name. Raises: InvalidRequest."""
    if name in COMPRESSIONS:
        return cast(Compression, name)
    raise InvalidRequest(f"there is no compression {name!r}", field="compression")


def cut_frames(data: Sequence[memoryview], compression: Compression) -> list[bytes | memoryview]:
    """Return the frames of the bytes in `data`, one piece after the other, each compressed where
    that makes it shorter; a frame that is not may be part of a piece."""
    raw = list(_raw_frames(data))
    if compression == "none":
        return raw
    compress = _compressor(compression)
    packed = [compress(frame) for frame in raw]
    return [
        small if len(small) < len(frame) else frame
        for small, frame in zip(packed, raw, strict=True)
    ]


def _raw_frames(data: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    """Yield FRAME_BYTES at a time; only what lies in several pieces is copied."""
    parts: list[memoryview] = []
    missing = FRAME_BYTES
    for piece in data:
        start, length = 0, len(piece)
        while length - start >= missing:
            parts.append(piece[start : start + missing])
            start += missing
            yield parts[0] if len(parts) == 1 else b"".join(parts)
            parts, missing = [], FRAME_BYTES
        if start < length:
            parts.append(piece[start:] if start else piece)
            missing -= length - start
    if parts:
        yield parts[0] if len(parts) == 1 else b"".join(parts)


def _compressor(compression: Compression) -> Callable[[Buffer], bytes]:
    if compression == "lz4":
        return lambda frame: bytes(lz4.block.compress(frame, store_size=False))
    return zstandard.ZstdCompressor(level=1, write_content_size=True).compress


class FrameCodec:
    """Unpacks the frames of one segment whose checksums have been verified."""

    def __init__(self, compression: int, cipher: ObjectCipher | None) -> None:
        """compression: as stored in the segment's header."""
        self._compression = compression
        self._cipher = cipher
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def overhead(self) -> int:
        """By how much a frame is longer when it is stored than when it is not sealed."""
        return TAG_BYTES if self._cipher else 0

    def unpack(self, index: int, stored: Buffer, logical: int) -> bytes:
        """Return the `logical` bytes of frame `index`. Raises: SegmentCorrupt."""
        if self._cipher:
            stored = self._cipher.decrypt(index + 1, stored)
        if len(stored) == logical:
            return bytes(stored)
        if self._compression == ZSTD:
            return self._unpack_zstd(stored, logical)
        if self._compression == LZ4:
            return _unpack_lz4(stored, logical)
        raise SegmentCorrupt("a segment's frame has a wrong length")

    def _unpack_zstd(self, stored: Buffer, logical: int) -> bytes:
        try:
            # The frame's own word on its size decides what zstandard allocates: ask before.
            if zstandard.frame_content_size(stored) != logical:
                raise SegmentCorrupt("a segment's frame has a wrong length")
            return self._decompressor.decompress(stored, max_output_size=logical)
        except zstandard.ZstdError as error:
            raise SegmentCorrupt(f"a segment's frame cannot be decompressed: {error}") from error


def _unpack_lz4(stored: Buffer, logical: int) -> bytes:
    try:
        data = bytes(lz4.block.decompress(stored, uncompressed_size=logical))
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise SegmentCorrupt(f"a segment's frame cannot be decompressed: {error}") from error
    if len(data) != logical:
        raise SegmentCorrupt("a segment's frame has a wrong length")
    return data
