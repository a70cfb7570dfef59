"""The tap's journal in shared memory, as the tap writes it; its layout is defined here.

Owns: the files of one journal, handing out receive buffers, making them reusable. Must not know:
NBD, sockets, numpy (the tap imports this: standard library only). Reader: journal.py.

A journal is a directory:
  head         4096 bytes; `HEAD` at 0, position (u64, written by the tap) at 64, released (u64,
               written by the consumer) at 128. Each of the two has one writer and is stored by
               one aligned 8-byte store, so neither side needs a lock or ever waits.
  index        ring of `capacity` records of 32 bytes; record n lies at (n mod capacity) * 32
  disks        JSON, [[name, bytes], …]: what the records' disk numbers mean
  buffer-NNN   payloads, exactly as the socket delivered them (NBD headers between them)

Record n may be read while released <= n < position. On machines with weaker ordering than x86-64
a position taken from a mark (which crosses a socket) is ordered; one read from the head may not be.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MAGIC = b"LWJRNL01"
HEAD = struct.Struct("<8sQQQQQ")  # magic, instance, capacity, buffer_bytes, buffer_count, time_ns
HEAD_BYTES = 4096
POSITION_WORD = 64 // 8
RELEASED_WORD = 128 // 8

RECORD = struct.Struct("<QQQQ")  # kind|disk<<8|flags<<16|length<<32, offset, buffer|position<<32, t
RECORD_BYTES = RECORD.size
KIND_WRITE = 1
KIND_ZEROES = 2
KIND_MARK = 3
FLAG_FROZEN = 1
"""Of a mark: the guest's file systems were frozen when it was set."""

CAPACITY = 1 << 19
"""Records in the ring: 16 MiB, more than 32 buffers of 8 MiB hold in 512-byte writes."""
CHUNK_RECORDS = 1 << 15
"""Records whose memory is claimed at once (1 MiB)."""
TRIM_BUFFERS_MAX = 4
"""Buffers given back in one go: freeing many would keep the tap from its sockets."""
STEP_BYTES = 1 << 20
"""Part of a buffer whose memory is claimed at once."""


def buffer_name(buffer_id: int) -> str:
    """Return the file name of a buffer."""
    return f"buffer-{buffer_id:03d}"


class Buffer:
    """One receive buffer. `claimed` bytes of it have memory behind them and may be written."""

    __slots__ = ("_fd", "buffer_id", "claimed", "map", "records_end", "size", "view")

    def __init__(self, directory: Path, buffer_id: int, size: int) -> None:
        self.buffer_id = buffer_id
        self.size = size
        self.claimed = 0
        self.records_end = 0
        self._fd = os.open(directory / buffer_name(buffer_id), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(self._fd, size)
            self.map = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            raise
        self.view = memoryview(self.map)

    def claim(self) -> bool:
        """Have one more step of memory behind the buffer; False if the machine has none left.

        Touching unclaimed shared memory on a full tmpfs would be a SIGBUS.
        """
        step = min(STEP_BYTES, self.size - self.claimed)
        try:
            os.posix_fallocate(self._fd, self.claimed, step)
        except OSError:
            return False
        self.claimed += step
        return True

    def give_back(self) -> None:
        """Return the memory to the machine; the file stays, since readers have it mapped."""
        if self.claimed:
            with suppress(OSError):  # not a tmpfs: the memory simply stays
                self.map.madvise(mmap.MADV_REMOVE)
                self.claimed = 0

    def close(self) -> None:
        self.view.release()
        self.map.close()
        os.close(self._fd)


class JournalWriter:
    """A journal open for appending. One thread.

    `position` counts records appended by the owner, who writes them into `index` itself (the hot
    loop) and calls `publish`; `limit` is the position up to which it may do so.
    """

    def __init__(
        self,
        directory: Path,
        *,
        instance: int,
        buffer_bytes: int,
        buffer_count: int,
        disks: Sequence[tuple[str, int]] = (),
        capacity: int = CAPACITY,
    ) -> None:
        """Make an empty journal at `directory`, which must not exist; it appears complete.

        `disks`: name and bytes, in the order in which records number them. `capacity` is a power
        of two.
        """
        self.directory = directory
        self.instance = instance
        self.buffer_bytes = buffer_bytes
        self.buffer_count = buffer_count
        self.capacity = capacity
        self.position = 0
        self.limit = 0
        new = directory.with_name(f".new-{directory.name}")
        new.mkdir(mode=0o700, parents=True)
        head = HEAD.pack(MAGIC, instance, capacity, buffer_bytes, buffer_count, time.time_ns())
        (new / "disks").write_text(json.dumps(list(disks)))
        (new / "head").write_bytes(head.ljust(HEAD_BYTES, b"\0"))
        self._head_map = _map(new / "head", HEAD_BYTES)
        self._head = memoryview(self._head_map).cast("Q")
        self._index_fd = os.open(new / "index", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._index_fd, capacity * RECORD_BYTES)
        self.index = mmap.mmap(self._index_fd, capacity * RECORD_BYTES)
        self._claimed = bytearray((capacity + CHUNK_RECORDS - 1) // CHUNK_RECORDS)
        self._created: list[Buffer] = []
        self._free: list[Buffer] = []
        self._retired: list[Buffer] = []
        self._unused = 0  # free buffers that nobody has taken since the last trim
        new.rename(directory)

    @property
    def released(self) -> int:
        """Return the position below which the consumer needs nothing any more."""
        return min(int(self._head[RELEASED_WORD]), self.position)

    @property
    def free_buffers(self) -> int:
        """Return how many buffers could be taken now."""
        self._reclaim()
        return len(self._free) + self.buffer_count - len(self._created)

    def publish(self, position: int) -> None:
        """Make the records below `position` visible."""
        self.position = position
        self._head[POSITION_WORD] = position

    def make_room(self, count: int) -> bool:
        """Raise `limit` so that `count` more records fit; False if they do not."""
        room = self.released + self.capacity
        wanted = self.position + count
        while self.limit < wanted:
            chunk = self.limit // CHUNK_RECORDS
            slot = chunk % len(self._claimed)
            upto = min((chunk + 1) * CHUNK_RECORDS, room)
            if upto <= self.limit:
                return False
            if not self._claimed[slot] and not self._claim_chunk(slot):
                return False
            self.limit = upto
        return True

    def append(
        self, kind: int, *, disk: int, length: int, offset: int, time_ns: int, flags: int = 0
    ) -> bool:
        """Append and publish one record without payload; False if the ring is full."""
        if self.position >= self.limit and not self.make_room(1):
            return False
        RECORD.pack_into(
            self.index,
            self.position % self.capacity * RECORD_BYTES,
            kind | disk << 8 | flags << 16 | length << 32,
            offset,
            0,
            time_ns,
        )
        self.publish(self.position + 1)
        return True

    def take_buffer(self) -> Buffer | None:
        """Return an empty buffer with memory behind its first step, or None."""
        self._reclaim()
        if self._free:
            buffer = self._free.pop()  # the last used first: its memory is warm
            self._unused = min(self._unused, len(self._free))
        elif len(self._created) < self.buffer_count:
            try:
                buffer = Buffer(self.directory, len(self._created), self.buffer_bytes)
            except OSError:
                return None
            self._created.append(buffer)
        else:
            return None
        if not buffer.claimed and not buffer.claim():
            self._free.append(buffer)
            return None
        return buffer

    def retire(self, buffer: Buffer) -> None:
        """Have `buffer` reused as soon as all records so far are released."""
        buffer.records_end = self.position
        self._retired.append(buffer)

    def trim(self, *, keep: int) -> None:
        """Give memory back: of free buffers that were not needed since the last call, but for
        `keep` of them, and of released index chunks. Call it about once a second."""
        self._reclaim()
        surplus = [b for b in self._free[: max(0, self._unused - keep)] if b.claimed]
        self._unused = len(self._free)
        for buffer in surplus[:TRIM_BUFFERS_MAX]:
            buffer.give_back()
        first, last = self.released // CHUNK_RECORDS, max(self.limit - 1, 0) // CHUNK_RECORDS
        live = {chunk % len(self._claimed) for chunk in range(first, last + 1)}
        for slot, claimed in enumerate(self._claimed):
            if claimed and slot not in live:
                start = slot * CHUNK_RECORDS * RECORD_BYTES
                length = min(CHUNK_RECORDS * RECORD_BYTES, len(self.index) - start)
                with suppress(OSError):
                    self.index.madvise(mmap.MADV_REMOVE, start, length)
                    self._claimed[slot] = 0

    def close(self) -> None:
        """Let go of the memory; the files stay for the consumer."""
        self._head.release()
        self._head_map.close()
        self.index.close()
        os.close(self._index_fd)
        for buffer in self._created:
            buffer.close()

    def _claim_chunk(self, slot: int) -> bool:
        start = slot * CHUNK_RECORDS * RECORD_BYTES
        length = min(CHUNK_RECORDS * RECORD_BYTES, self.capacity * RECORD_BYTES - start)
        try:
            os.posix_fallocate(self._index_fd, start, length)
        except OSError:
            return False
        self._claimed[slot] = 1
        return True

    def _reclaim(self) -> None:
        released = self.released
        if self._retired and self._retired[0].records_end <= released:
            self._free += [b for b in self._retired if b.records_end <= released]
            self._retired = [b for b in self._retired if b.records_end > released]


def _map(path: Path, size: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
