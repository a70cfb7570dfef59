"""Verified frames of segments, fetched concurrently and kept for a while.

Owns: which stored bytes are asked for, by how many requests, and what is cached. Must not know:
disks or maps. Sits between PointDisk and the store. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from leeward.core.errors import (
    LeewardError,
    NotFound,
    ObjectMissing,
    SegmentCorrupt,
    Unavailable,
)
from leeward.core.units import KIB, MIB
from leeward.object_store.store import ObjectStore, forget_copies
from leeward.replica.segment import FRAME_BYTES, SegmentTable, read_table_and_head

FrameKey = tuple[int, int]
"""(segment id, frame index)."""

_REQUEST_BYTES_MAX = MIB
_GAP_BYTES_MAX = 64 * KIB
_WAIT_SECONDS = 120.0
_ENTRY_BYTES = 400
"""What a cache entry costs beside its content, about."""

K = TypeVar("K")
V = TypeVar("V")


class ByteLimitedCache(Generic[K, V]):
    """A map that forgets what was used longest ago once it holds more than `limit_bytes`.

    Not thread-safe. An entry bigger than the limit is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        old = self._entries.pop(key, None)
        self._bytes += size_bytes - (old[1] if old else 0)
        self._entries[key] = (value, size_bytes)
        while self._bytes > self._limit_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self._bytes -= freed


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment's table without its extents, and as many of its first bytes as came with it."""

    table: SegmentTable
    head: bytes


class FrameReader:
    """Frames of the segments of one disk's replica."""

    def __init__(
        self,
        store: ObjectStore,
        name_of: Callable[[int], str],
        check: Callable[[SegmentTable], bool],
        *,
        cache_bytes: int,
        table_cache_bytes: int,
        threads: int,
    ) -> None:
        """name_of: segment id → object name. check: whether a table belongs to this disk."""
        self._store = store
        self._name_of = name_of
        self._check = check
        self._frames: ByteLimitedCache[FrameKey, bytes] = ByteLimitedCache(cache_bytes)
        self._segments: ByteLimitedCache[int, _Segment] = ByteLimitedCache(table_cache_bytes)
        self._pending: dict[FrameKey, Future[dict[FrameKey, bytes]]] = {}
        self._lock = threading.Lock()
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def close(self) -> None:
        """Stop the threads; later reads raise Unavailable."""
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(wait=True)

    def read(self, keys: Iterable[FrameKey]) -> dict[FrameKey, bytes]:
        """Return the logical bytes of every frame asked for, verified.

        What is neither cached nor on its way already is fetched: segments and distant ranges at
        once, neighbours by one request. Raises: ObjectMissing, SegmentCorrupt, Unavailable.
        """
        found: dict[FrameKey, bytes] = {}
        mine: list[FrameKey] = []
        others: dict[FrameKey, Future[dict[FrameKey, bytes]]] = {}
        promise: Future[dict[FrameKey, bytes]] = Future()
        with self._lock:
            self._check_open()
            for key in keys:
                frame = self._frames.get(key)
                if frame is not None:
                    found[key] = frame
                elif key in self._pending:
                    others[key] = self._pending[key]
                else:
                    mine.append(key)
                    self._pending[key] = promise
        if mine:
            found.update(self._fetch_for_all(mine, promise))
        for key, future in others.items():
            found[key] = _result(future)[key]
        return found

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the disk has been closed")

    def _fetch_for_all(
        self, keys: Sequence[FrameKey], promise: Future[dict[FrameKey, bytes]]
    ) -> dict[FrameKey, bytes]:
        """Return the frames, having answered whoever waits for them, whatever became of them."""
        found: dict[FrameKey, bytes] = {}
        failure: LeewardError = Unavailable("another read of the same data was given up")
        try:
            found = self._fetch(keys)
            return found
        except LeewardError as error:
            failure = error
            raise
        finally:
            with self._lock:
                for key in keys:
                    del self._pending[key]
                for key, frame in found.items():
                    self._frames.put(key, frame, len(frame) + _ENTRY_BYTES)
            if found:
                promise.set_result(found)
            else:
                promise.set_exception(failure)

    def _fetch(self, keys: Iterable[FrameKey]) -> dict[FrameKey, bytes]:
        wanted: dict[int, list[int]] = {}
        for segment_id, index in sorted(keys):
            wanted.setdefault(segment_id, []).append(index)
        segments = dict(zip(wanted, self._map(self._segment, list(wanted)), strict=True))
        requests = [
            (segment_id, run)
            for segment_id, indexes in wanted.items()
            for run in _requests(self._name_of(segment_id), segments[segment_id], indexes)
        ]
        found: dict[FrameKey, bytes] = {}
        for part in self._map(lambda r: self._read_run(r[0], segments[r[0]], r[1]), requests):
            found.update(part)
        return found

    def _segment(self, segment_id: int) -> _Segment:
        with self._lock:
            known = self._segments.get(segment_id)
        if known is not None:
            return known
        name = self._name_of(segment_id)
        table, head = read_table_and_head(self._store, name)
        if not self._check(table):
            raise SegmentCorrupt(f"segment {name} belongs to another disk")
        lean = replace(table, extents=table.extents[:0])
        size_bytes = table.frame_offsets.nbytes + table.frame_crcs.nbytes + _ENTRY_BYTES
        with self._lock:
            # The head serves this read only; its frames go to the other cache.
            self._segments.put(segment_id, _Segment(lean, b""), size_bytes)
        return _Segment(lean, head)

    def _read_run(
        self, segment_id: int, segment: _Segment, indexes: list[int]
    ) -> dict[FrameKey, bytes]:
        try:
            return self._decode_run(segment_id, segment, indexes)
        except SegmentCorrupt:
            if not forget_copies(self._store, self._name_of(segment_id)):
                raise
            return self._decode_run(segment_id, replace(segment, head=b""), indexes)

    def _decode_run(
        self, segment_id: int, segment: _Segment, indexes: list[int]
    ) -> dict[FrameKey, bytes]:
        table, name = segment.table, self._name_of(segment_id)
        offsets = table.frame_offsets[indexes[0] : indexes[-1] + 2].tolist()
        start, end = offsets[0], offsets[-1]
        try:
            if end <= len(segment.head):
                view = memoryview(segment.head)[start:end]
            else:
                view = memoryview(self._store.get_range(name, start, end - start))
            codec = table.codec()
            found = {}
            for index in indexes:
                low, high = offsets[index - indexes[0] : index - indexes[0] + 2]
                found[segment_id, index] = table.decode_frame(
                    index, view[low - start : high - start], codec
                )
            return found
        except NotFound as error:
            raise ObjectMissing(f"segment {name} is gone though it is still in use") from error
        except SegmentCorrupt as error:
            raise SegmentCorrupt(f"segment {name}: {error.message}") from error

    def _map(self, work: Callable[[K], V], inputs: list[K]) -> Iterator[V]:
        """Yield work(input) of every input, done concurrently where there are several."""
        if len(inputs) == 1 or self._threads == 1:
            return map(work, inputs)
        with self._lock:
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "leeward-frames")
            results = self._pool.map(work, inputs, timeout=_WAIT_SECONDS)
        return _in_time(results)


def _in_time(results: Iterator[V]) -> Iterator[V]:
    try:
        yield from results
    except FutureTimeout:
        raise Unavailable("the object store takes too long to answer") from None


def _requests(name: str, segment: _Segment, indexes: list[int]) -> Iterator[list[int]]:
    """Yield groups of frames, each near enough together to be read by one request."""
    offsets = segment.table.frame_offsets
    if indexes[-1] >= segment.table.frame_count:
        raise SegmentCorrupt(f"segment {name} has no frame {indexes[-1]}")
    group: list[int] = []
    for index in indexes:
        if group:
            gap = int(offsets[index] - offsets[group[-1] + 1])
            length = int(offsets[index + 1] - offsets[group[0]])
            if gap > _GAP_BYTES_MAX or length > _REQUEST_BYTES_MAX:
                yield group
                group = []
        group.append(index)
    yield group


def _result(future: Future[dict[FrameKey, bytes]]) -> dict[FrameKey, bytes]:
    try:
        return future.result(timeout=_WAIT_SECONDS)
    except FutureTimeout:
        raise Unavailable("another read of the same data takes too long") from None


def frames_of(position: int, count: int, block_bytes: int) -> range:
    """Return the indexes of the frames that hold `count` blocks of a segment's data."""
    first = position * block_bytes // FRAME_BYTES
    return range(first, ((position + count) * block_bytes - 1) // FRAME_BYTES + 1)
