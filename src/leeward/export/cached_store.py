"""A store whose segments are kept, as they are stored, on this host's disk.

Owns: which objects, which blocks a range needs, that no block is fetched twice at once. Must not
know: segments' format, so it can tell damaged bytes from good ones only by their readers' word
(`forget`). Between the replica log's readers and a store that is far. Thread-safe.
"""

from __future__ import annotations

import builtins
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from leeward.core.errors import LeewardError, Unavailable
from leeward.core.units import MIB
from leeward.export.block_cache import BLOCK_BYTES, BlockCache, BlockKey
from leeward.object_store.names import check_range
from leeward.object_store.store import Buffer, ObjectStore
from leeward.replica.frames import ByteLimitedCache
from leeward.replica.segment import SEGMENT_BYTES_MAX

MEMORY_BYTES = 8 * MIB
WAIT_SECONDS = 120.0
_SEGMENT = re.compile(r"items/[^/]+/disks/[^/]+/segments/[^/]+")
"""Their names are never used again for anything else: what is kept of them cannot be stale."""


class CachedStore:
    """`store` with a cache before its segments; everything else goes straight through.

    is_keeping: whether what had to be fetched is kept. If not, exactly what was asked for is
    fetched.
    """

    def __init__(self, store: ObjectStore, cache: BlockCache, *, is_keeping: bool = True) -> None:
        self._store = store
        self._cache = cache
        self._is_keeping = is_keeping
        self._lock = threading.Lock()
        self._recent: ByteLimitedCache[tuple[str, int], bytes] = ByteLimitedCache(MEMORY_BYTES)
        self._fetching: dict[tuple[str, int], Future[bytes]] = {}

    @property
    def url(self) -> str:
        return self._store.url

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._store.create(name, data)

    def get(self, name: str) -> bytes:
        return self._store.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        if not length or not _SEGMENT.fullmatch(name):
            return self._store.get_range(name, offset, length)
        blocks = range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
        found = {index: data for index in blocks if (data := self._kept(name, index)) is not None}
        if len(found) < len(blocks) and not self._is_keeping:
            return self._store.get_range(name, offset, length)
        self._complete(name, blocks, found)
        start = offset - blocks[0] * BLOCK_BYTES
        return b"".join(_up_to_the_end(blocks, found))[start : start + length]

    def size(self, name: str) -> int:
        return self._store.size(name)

    def list(self, prefix: str) -> builtins.list[str]:
        return self._store.list(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self._store.sizes(prefix)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def forget(self, name: str) -> None:
        """Have nothing of the object kept: what was read of it is not what it should be."""
        with self._lock:
            self._recent = ByteLimitedCache(MEMORY_BYTES)
        for index in range(-(-SEGMENT_BYTES_MAX // BLOCK_BYTES)):
            self._cache.forget(BlockKey(self.url, name, index))

    def _kept(self, name: str, index: int) -> bytes | None:
        with self._lock:
            data = self._recent.get((name, index))
        if data is None:
            data = self._cache.get(BlockKey(self.url, name, index))
            if data is not None:
                with self._lock:
                    self._recent.put((name, index), data, len(data))
        return data

    def _complete(self, name: str, blocks: range, found: dict[int, bytes]) -> None:
        """Have every block in `found`: fetched here, or by another who has begun already."""
        mine: dict[int, Future[bytes]] = {}
        others: dict[int, Future[bytes]] = {}
        with self._lock:
            for index in blocks:
                if index in found:
                    continue
                if (name, index) in self._fetching:
                    others[index] = self._fetching[name, index]
                else:
                    mine[index] = self._fetching[name, index] = Future()
        failure: LeewardError = Unavailable("another read of the same data was given up")
        try:
            for run in _runs(list(mine)):
                found.update(self._fetch(name, run))
        except LeewardError as error:
            failure = error
            raise
        finally:
            with self._lock:
                for index, future in mine.items():
                    del self._fetching[name, index]
                    if index in found:
                        self._recent.put((name, index), found[index], len(found[index]))
                        future.set_result(found[index])
                    else:
                        future.set_exception(failure)
        for index, future in others.items():
            try:
                found[index] = future.result(timeout=WAIT_SECONDS)
            except TimeoutError:
                raise Unavailable("another read of the same data takes too long") from None

    def _fetch(self, name: str, run: range) -> dict[int, bytes]:
        """Return consecutive blocks, fetched by one request; empty past the object's end."""
        data = self._store.get_range(name, run[0] * BLOCK_BYTES, len(run) * BLOCK_BYTES)
        found = {}
        for index in run:
            at = (index - run[0]) * BLOCK_BYTES
            block = found[index] = data[at : at + BLOCK_BYTES]
            if block:
                self._cache.put(BlockKey(self.url, name, index), block)
        return found


def _runs(indexes: Sequence[int]) -> list[range]:
    """Return the indexes, which are sorted, as ranges without gaps."""
    runs: list[range] = []
    for index in indexes:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def _up_to_the_end(blocks: range, found: dict[int, bytes]) -> list[bytes]:
    """Return the blocks up to the first that is short: there the object ends."""
    parts = []
    for index in blocks:
        parts.append(found[index])
        if len(found[index]) < BLOCK_BYTES:
            break
    return parts
