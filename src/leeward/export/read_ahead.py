"""Fetching what a sequential reader will ask for next, and what a reader says it will ask for.

Owns: telling streams apart, the blocks fetched ahead and their limit. Must not know: NBD, stores.
Between PatientDevice and the disk of a recovery point. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass

from leeward.core.errors import LeewardError
from leeward.core.units import KIB, MIB
from leeward.nbd.handshake import Buffer, ReadDevice

BLOCK_BYTES = 256 * KIB
WINDOW_BYTES_MIN = 1 * MIB
WINDOW_BYTES_MAX = 16 * MIB
CACHE_BYTES = 48 * MIB
STREAMS_MAX = 8
SLACK_BYTES = 512 * KIB
"""How far from a stream's end a read still belongs to it: readers keep several in flight."""
EXPECTED_BYTES_MAX = 8 * MIB
"""Of one announcement no more than this is fetched."""


@dataclass(slots=True)
class _Stream:
    """A run of reads, each where the one before it ended, more or less."""

    end: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    """is_announced: fetched because its reader has said so, not because a stream leads there."""

    data: Future[Buffer]
    is_announced: bool


class ReadAhead:
    """`device`, with some MiB fetched ahead of every sequential reader, in `executor`: 1 MiB first,
    twice as much each time the reader has caught up with what is still on its way.

    bulk: the same disk, for what is announced: long reads that nobody will repeat.
    """

    def __init__(
        self, device: ReadDevice, executor: Executor, *, bulk: ReadDevice | None = None
    ) -> None:
        self._device = device
        self._bulk = bulk or device
        self._executor = executor
        self._lock = threading.Lock()
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._stream_count = 0
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return self._device.extents(offset, length)

    def expect(self, offset: int, length: int) -> None:
        """Have the range, which its reader will ask for soon, fetched. Returns at once."""
        end = offset + min(length, EXPECTED_BYTES_MAX)
        with self._lock:
            self._fetch(range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)), is_announced=True)

    def read(self, offset: int, length: int) -> Buffer:
        with self._lock:
            parts = [
                (start, size, self._blocks.get(start // BLOCK_BYTES))
                for start, size in _pieces(offset, length)
            ]
            if not all(block and block.is_announced for _, _, block in parts):
                is_late = any(block is None or not block.data.done() for _, _, block in parts)
                self._fetch(self._window_after(offset, length, is_late=is_late))
        if all(block is None for _, _, block in parts):
            return self._device.read(offset, length)
        found = [self._part(start, size, block) for start, size, block in parts]
        return found[0] if len(found) == 1 else b"".join(found)

    def _part(self, offset: int, length: int, block: _Block | None) -> Buffer:
        if block is not None:
            try:
                data = memoryview(block.data.result())
            except (LeewardError, CancelledError):  # the reader shall meet that error itself
                with self._lock:
                    self._blocks.pop(offset // BLOCK_BYTES, None)
            else:
                at = offset % BLOCK_BYTES
                return data[at : at + length]
        return self._device.read(offset, length)

    def _window_after(self, offset: int, length: int, *, is_late: bool) -> range:
        """Return the blocks to have at hand after this read; empty for one that follows none.

        is_late: not all of it had arrived when it was asked for.
        """
        end = offset + length
        for key, stream in self._streams.items():
            if abs(offset - stream.end) <= SLACK_BYTES:
                self._streams.move_to_end(key)
                stream.end = max(end, stream.end)
                if is_late:
                    stream.window = min(WINDOW_BYTES_MAX, stream.window * 2 or WINDOW_BYTES_MIN)
                limit = min(stream.end + stream.window, self.size_bytes)
                return range(-(-stream.end // BLOCK_BYTES), -(-limit // BLOCK_BYTES))
        self._stream_count += 1
        self._streams[self._stream_count] = _Stream(end)
        if len(self._streams) > STREAMS_MAX:
            self._streams.popitem(last=False)
        return range(0)

    def _fetch(self, blocks: range, *, is_announced: bool = False) -> None:
        device = self._bulk if is_announced else self._device
        for block in blocks:
            if block in self._blocks:
                self._blocks.move_to_end(block)
                continue
            offset = block * BLOCK_BYTES
            length = min(BLOCK_BYTES, self.size_bytes - offset)
            data = self._executor.submit(device.read, offset, length)
            self._blocks[block] = _Block(data, is_announced)
        while len(self._blocks) * BLOCK_BYTES > CACHE_BYTES:
            self._blocks.popitem(last=False)[1].data.cancel()


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) cut at block boundaries."""
    end = offset + length
    while offset < end:
        size = min(BLOCK_BYTES - offset % BLOCK_BYTES, end - offset)
        yield offset, size
        offset += size
