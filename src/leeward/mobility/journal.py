"""The tap's journal, as the agent reads it: an ordered index of writes and where their bytes lie.

Owns: reading records and payloads, releasing them. Must not know: the tap process or QEMU. Layout
and writer: journal_writer.py; between the tap and the cut builder.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from leeward.core.errors import Conflict, NotFound, SegmentCorrupt
from leeward.mobility.journal_writer import (
    FLAG_FROZEN,
    HEAD,
    HEAD_BYTES,
    KIND_MARK,
    KIND_WRITE,
    KIND_ZEROES,
    MAGIC,
    POSITION_WORD,
    RECORD_BYTES,
    RELEASED_WORD,
    buffer_name,
)

__all__ = [
    "FLAG_FROZEN",
    "KIND_MARK",
    "KIND_WRITE",
    "KIND_ZEROES",
    "RECORD_DTYPE",
    "JournalReader",
    "Records",
]

RECORD_DTYPE = np.dtype(
    [
        ("kind", "u1"),  # KIND_WRITE, KIND_ZEROES or KIND_MARK
        ("disk", "u1"),  # index into the tap's disk list
        ("flags", "<u2"),  # FLAG_FROZEN on some marks, else 0
        ("length", "<u4"),  # bytes; 0 for marks
        ("offset", "<u8"),  # disk byte offset; for marks the mark's id
        ("buffer", "<u4"),  # buffer that holds the payload of a write
        ("position", "<u4"),  # byte position of the payload in that buffer
        ("time_ns", "<u8"),  # wall clock when the tap received it
    ]
)
assert RECORD_DTYPE.itemsize == RECORD_BYTES

Records = np.ndarray[tuple[int], np.dtype[np.void]]


class JournalReader:
    """One journal, open for reading and releasing. Safe for several reading threads.

    It stays readable when its tap is gone: what the tap had received is a valid prefix.
    """

    def __init__(self, directory: Path) -> None:
        """Open the journal at `directory`. Raises: NotFound, SegmentCorrupt."""
        self.directory = directory
        self.disks = _read_disks(directory / "disks")
        """Name and bytes of each disk, in the order in which the records number them."""
        self._head_map = _map(directory / "head", HEAD_BYTES, writable=True)
        magic, instance, capacity, buffer_bytes, buffer_count, _ = HEAD.unpack_from(self._head_map)
        if magic != MAGIC:
            self._head_map.close()
            raise SegmentCorrupt(f"{directory} is not a tap's journal")
        self.instance: int = instance
        self.capacity: int = capacity
        self.buffer_bytes: int = buffer_bytes
        self.buffer_count: int = buffer_count
        self._head = memoryview(self._head_map).cast("Q")
        self._index_map = _map(directory / "index", capacity * RECORD_BYTES, writable=False)
        self._index = np.frombuffer(self._index_map, dtype=RECORD_DTYPE)
        self._buffers: dict[int, memoryview] = {}
        self._opening = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> JournalReader:
        """Return the journal at `directory`, open. Raises: NotFound, SegmentCorrupt."""
        return cls(directory)

    def position(self) -> int:
        """Return the number of records so far; all below it may be read unless released."""
        return int(self._head[POSITION_WORD])

    def released(self) -> int:
        """Return the position below which records are no longer readable."""
        return int(self._head[RELEASED_WORD])

    def records(self, start: int, stop: int) -> Records:
        """Return a copy of records `start` (inclusive) to `stop` (exclusive).

        Raises: Conflict when the range is not within released … position.
        """
        if not self.released() <= start <= stop <= self.position():
            raise Conflict(
                f"records {start} to {stop} are not in the journal: it holds "
                f"{self.released()} to {self.position()}"
            )
        first, last = start % self.capacity, stop % self.capacity
        if start == stop:
            return self._index[:0].copy()
        if first < last:
            return self._index[first:last].copy()
        return np.concatenate((self._index[first:], self._index[:last]))

    def buffer(self, buffer_id: int) -> memoryview:
        """Return a whole buffer, read-only. Its bytes are those of records not yet released."""
        view = self._buffers.get(buffer_id)
        if view is None:
            with self._opening:
                path = self.directory / buffer_name(buffer_id)
                view = self._buffers.get(buffer_id) or memoryview(
                    _map(path, self.buffer_bytes, writable=False)
                )
                self._buffers[buffer_id] = view
        return view

    def payload(self, record: np.void) -> memoryview:
        """Return the bytes of one write record, without copying."""
        position = int(record["position"])
        return self.buffer(int(record["buffer"]))[position : position + int(record["length"])]

    def release(self, position: int) -> None:
        """Let the tap reuse everything below `position`. Never goes back; one caller at a time."""
        self._head[RELEASED_WORD] = max(self.released(), min(position, self.position()))

    def close(self) -> None:
        """Let go of the memory as soon as nobody holds a view of it. Idempotent."""
        self._head.release()
        self._index = np.empty(0, RECORD_DTYPE)
        self._buffers.clear()
        with suppress(BufferError):
            self._index_map.close()
        self._head_map.close()


def _read_disks(path: Path) -> tuple[tuple[str, int], ...]:
    try:
        return tuple((str(name), int(size)) for name, size in json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise NotFound(f"no tap journal file {path}") from error
    except (ValueError, TypeError) as error:
        raise SegmentCorrupt(f"{path} does not say which disks the journal is of") from error


def _map(path: Path, size: int, *, writable: bool) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    except FileNotFoundError as error:
        raise NotFound(f"no tap journal file {path}") from error
    try:
        if os.fstat(fd).st_size < size:
            raise SegmentCorrupt(f"{path} is shorter than {size} bytes")
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, size, prot=access)
    finally:
        os.close(fd)
