"""Blocks of immutable objects kept on this host's disk, shared by all its exports.

Owns: the files, their checksums, the limit, who is forgotten first. Must not know: stores, what is
in the objects. Many processes use one directory at once, and each may be killed at any moment: a
block is one file, which appears whole and is believed only if it matches its checksum.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import InvalidRequest
from leeward.core.units import GIB, KIB, MIB, parse_size
from leeward.export.config import LIMIT_VARIABLE
from leeward.observability.log import get_logger

LIMIT_DEFAULT = 4 * GIB
BLOCK_BYTES = 256 * KIB
FREE_BYTES_MIN = GIB
"""So much of the file system is left to others: with less, nothing more is kept."""

_HEADER = struct.Struct("<4s16sII")
_MAGIC = b"LWC1"
_TOUCH_SECONDS = 60.0
_LEFTOVER_SECONDS = 3600.0
_SWEEP_SHARE = 32
"""A process looks at the whole directory after it has added this part of the limit."""
_SWEEP_BYTES_MIN = 4 * MIB
_KEPT_SHARE = 0.875
"""What a sweep leaves of the limit, so that not every block calls for the next sweep."""


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Block `index` (of BLOCK_BYTES each) of an object that never changes."""

    store_url: str
    name: str
    index: int

    @property
    def digest(self) -> bytes:
        text = f"{self.store_url}\0{self.name}\0{self.index}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


def cache_limit() -> int:
    """Return the cache's limit in bytes, as the environment has it, 0: no cache.

    Raises: InvalidRequest.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    return parse_size(text, field=LIMIT_VARIABLE) if text else LIMIT_DEFAULT


class BlockCache:
    """A directory of blocks. Thread-safe; nothing it does ever fails: it only keeps less."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._sweep_bytes = max(_SWEEP_BYTES_MIN, limit_bytes // _SWEEP_SHARE)
        self._lock = threading.Lock()
        self._added = self._sweep_bytes  # others may have left more than the limit behind

    def get(self, key: BlockKey) -> bytes | None:
        """Return the block, None if it is not kept. A damaged one is removed, never returned."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                content = file.read(_HEADER.size + BLOCK_BYTES + 1)
                if time.time() - os.fstat(file.fileno()).st_mtime > _TOUCH_SECONDS:
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            get_logger().warning("export_cache_unreadable", reason=str(error))
            return None
        data = _verified(key, content)
        if data is None:
            get_logger().warning("export_cache_entry_damaged", object=key.name, block=key.index)
            self._remove(path)
        return data

    def put(self, key: BlockKey, data: bytes) -> None:
        """Have the block kept, as long as there is room. data: at most BLOCK_BYTES, not empty."""
        if not 0 < len(data) <= min(BLOCK_BYTES, self._limit_bytes):
            return
        path = self._path(key)
        temporary = self._directory / f"new-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            room = os.statvfs(self._directory)
            if room.f_bavail * room.f_frsize < FREE_BYTES_MIN + len(data):
                return
            # Not fsynced: what a power cut leaves half written does not match its checksum.
            temporary.write_bytes(_packed(key, data))
            temporary.replace(path)
        except OSError as error:
            get_logger().warning("export_cache_not_written", reason=str(error))
            self._remove(temporary)
            return
        with self._lock:
            self._added += len(data)
            if self._added < self._sweep_bytes:
                return
            self._added = 0
        self._sweep()

    def forget(self, key: BlockKey) -> None:
        """Make the block not be kept. Idempotent."""
        self._remove(self._path(key))

    def _path(self, key: BlockKey) -> Path:
        name = key.digest.hex()
        return self._directory / name[:2] / name[2:]

    def _remove(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what was used longest ago until the limit is kept, unless another is at it."""
        with suppress(OSError), (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = sorted(self._entries())
            total = sum(size for _, size, _ in kept)
            if total <= self._limit_bytes:
                return
            for _, size, path in kept:
                if total <= self._limit_bytes * _KEPT_SHARE:
                    return
                self._remove(path)
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of use, bytes, path) of every block; remove what killed writers left."""
        for entry in os.scandir(self._directory):
            if entry.is_dir(follow_symlinks=False):
                for block in os.scandir(entry.path):
                    with suppress(OSError):
                        found = block.stat(follow_symlinks=False)
                        yield found.st_mtime, found.st_size, Path(block.path)
            elif entry.name.startswith("new-"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                        os.unlink(entry.path)


def open_cache(directory: Path) -> BlockCache | None:
    """Return this host's cache, None if it shall have none."""
    try:
        limit = cache_limit()
    except InvalidRequest as error:
        get_logger().warning("export_cache_limit_unreadable", reason=str(error))
        limit = LIMIT_DEFAULT
    return BlockCache(directory, limit) if limit else None


def _packed(key: BlockKey, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(key.digest))
    return _HEADER.pack(_MAGIC, key.digest, len(data), checksum) + data


def _verified(key: BlockKey, content: bytes) -> bytes | None:
    """Return the block in a file's content, None unless it is whole and that very block."""
    if len(content) < _HEADER.size:
        return None
    magic, digest, length, checksum = _HEADER.unpack_from(content)
    data = content[_HEADER.size :]
    if (magic, digest, length) != (_MAGIC, key.digest, len(data)):
        return None
    return data if zlib.crc32(data, zlib.crc32(digest)) == checksum else None
