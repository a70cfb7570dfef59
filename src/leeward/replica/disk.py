"""A disk as it was at a recovery point, readable at any offset.

Owns: turning a byte range into map runs, frames and bytes. Must not know: who reads (NBD, exports,
the worker merging sectors). Needs nothing but the target's stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import InvalidRequest, NotFound, SegmentCorrupt
from leeward.core.units import BLOCK, CHUNK, MIB
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.replica.block_map import BlockMap, open_checkpoint
from leeward.replica.catalog import Catalog
from leeward.replica.frames import FrameKey, FrameReader, frames_of
from leeward.replica.holds import Hold
from leeward.replica.layout import segment_name
from leeward.replica.pins import Pin
from leeward.replica.segment import BLOCKS, FRAME_BYTES, SegmentTable, read_table

CACHE_BYTES = 64 * MIB
TABLE_CACHE_BYTES = 16 * MIB
THREADS = 8

_WINDOW_BYTES = 16 * MIB
_EXTENTS_WINDOW_BLOCKS = 1 << 24
_REPLAY_BATCH = 64
_ZEROS = bytes(FRAME_BYTES)

_Run = tuple[int, int, int, int]
"""(first block, count, segment id or 0, position): runs.RUN_DTYPE."""


class PointDisk:
    """One disk through one map. Thread-safe as long as nobody changes the map. Close it.

    cache_bytes: limit of decompressed frames kept. on_close: called by the first `close`.
    """

    def __init__(
        self,
        store: ObjectStore,
        block_map: BlockMap,
        size_bytes: int,
        *,
        cache_bytes: int = CACHE_BYTES,
        table_cache_bytes: int = TABLE_CACHE_BYTES,
        threads: int = THREADS,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        if -(-size_bytes // BLOCK) > block_map.block_count:
            raise InvalidRequest(f"the map of disk {block_map.disk} is shorter than the disk")
        self._map = block_map
        self._size_bytes = size_bytes
        self._on_close = on_close
        self._frames = FrameReader(
            store,
            lambda segment_id: segment_name(block_map.item_id, block_map.disk, segment_id),
            lambda table: _belongs(table, block_map),
            cache_bytes=cache_bytes,
            table_cache_bytes=table_cache_bytes,
            threads=threads,
        )

    def beside(self, store: ObjectStore, *, cache_bytes: int) -> PointDisk:
        """Return the same disk read through another view of its store, with a cache of its own."""
        return PointDisk(store, self._map, self._size_bytes, cache_bytes=cache_bytes)

    def __enter__(self) -> PointDisk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._frames.close()
        on_close, self._on_close = self._on_close, lambda: None
        on_close()

    @property
    def disk(self) -> str:
        return self._map.disk

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return [offset, offset + length) of the disk. Raises: as `read_into`."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the disk's bytes from `offset` on, any alignment.

        Raises: InvalidRequest beyond the disk's end; ObjectMissing, SegmentCorrupt, Unavailable:
        then what `view` holds is undefined.
        """
        target = view.cast("B")
        self._check_range(offset, len(target))
        for start in range(0, len(target), _WINDOW_BYTES):
            part = target[start : start + _WINDOW_BYTES]
            self._read_window(offset + start, part)

    def read_pieces(self, offset: int, length: int) -> list[tuple[int, memoryview]]:
        """Return [(offset, bytes), ...] of the range's data, in order; what lies between reads as
        zeros. Nothing is copied: neighbouring pieces may come from different frames.

        Raises: as `read_into`. Hold the pieces of at most some MiB at a time.
        """
        self._check_range(offset, length)
        end = offset + length
        runs, frames = self._fetch(offset, end) if length else ([], {})
        found: list[tuple[int, memoryview]] = []
        for block, count, segment_id, position in runs:
            low = max(block * BLOCK, offset)
            high = min((block + count) * BLOCK, end)
            if segment_id:
                start = position * BLOCK + low - block * BLOCK
                for piece in _frame_pieces(frames, segment_id, start, high - low):
                    found.append((low, piece))
                    low += len(piece)
        return found

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return [(length, whether there is data), ...] of a range, alternating, summing to it.

        Raises: InvalidRequest beyond the disk's end.
        """
        self._check_range(offset, length)
        found: list[tuple[int, bool]] = []
        end = offset + length
        first, last = offset // BLOCK, -(-end // BLOCK) if length else 0
        for low in range(first, last, _EXTENTS_WINDOW_BLOCKS):
            high = min(last, low + _EXTENTS_WINDOW_BLOCKS)
            for start, stop, has_data in _data_ranges(self._map.resolve(low, high - low)):
                size = min(stop * BLOCK, end) - max(start * BLOCK, offset)
                if found and found[-1][1] == has_data:
                    size += found.pop()[0]
                found.append((size, has_data))
        return found

    def chunks_of_segments(
        self, segments: NDArray[np.uint64], offset: int, length: int
    ) -> NDArray[np.bool_]:
        """Return which chunks of a range have anything in `segments`; the first begins at
        `offset`. Raises: InvalidRequest beyond the disk's end."""
        self._check_range(offset, length)
        first = offset // BLOCK
        runs = self._map.resolve(first, -(-(offset + length) // BLOCK) - first)
        found = np.zeros(-(-length // CHUNK), np.bool_)
        for block, count, *_ in runs[np.isin(runs["segment"], segments)].tolist():
            low, high = block * BLOCK - offset, (block + count) * BLOCK - offset
            found[low // CHUNK : -(-high // CHUNK)] = True
        return found

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise InvalidRequest(
                f"{length} bytes at {offset} reach beyond disk {self.disk}", field="offset"
            )

    def _read_window(self, offset: int, target: memoryview) -> None:
        done = 0
        for start, piece in self.read_pieces(offset, len(target)):
            _fill_zeros(target[done : start - offset])
            done = start - offset + len(piece)
            target[start - offset : done] = piece
        _fill_zeros(target[done:])

    def _fetch(self, offset: int, end: int) -> tuple[list[_Run], Mapping[FrameKey, bytes]]:
        """Return the runs that cover [offset, end), not empty, and the frames they need."""
        first = offset // BLOCK
        runs: list[_Run] = self._map.resolve(first, -(-end // BLOCK) - first).tolist()
        wanted: dict[FrameKey, None] = {}
        for _, count, segment_id, position in runs:
            if segment_id:
                for index in frames_of(position, count, BLOCK):
                    wanted[segment_id, index] = None
        return runs, self._frames.read(wanted) if wanted else {}


def open_point(
    catalog_store: ObjectStore,
    stores_by_disk: Mapping[str, ObjectStore],
    item_id: str,
    point_id: str,
    *,
    holder: str = "",
    cache_bytes: int = CACHE_BYTES,
    threads: int = THREADS,
) -> dict[str, PointDisk]:
    """Return every disk of `stores_by_disk` as it was at a recovery point ("latest": the newest).

    The point is pinned until all the disks are closed: retention leaves it in the list, and what
    they need is not deleted even if it is dropped all the same.
    holder: of whoever will need the point again after a restart; it stays listed until that holder
    is released (holds.py), also when the disks are closed.
    cache_bytes: limit of each disk's frame cache. threads: how many requests one read of a disk
    makes at once. Raises: NotFound for an unknown point or a disk that it lacks; ObjectMissing,
    SegmentCorrupt, Unavailable.
    """
    catalog = Catalog.open(catalog_store, item_id)
    point = catalog.find_point(point_id)
    if not stores_by_disk:
        return {}
    with ThreadPoolExecutor(1) as aside:  # one wait for a far store, not two
        held = aside.submit(Hold, catalog_store, item_id, point.id, holder) if holder else None
        pin = Pin(catalog_store, item_id, catalog.version, point.id)
    hold = held.result() if held is not None else None
    let_go = partial(_let_go, pin, hold)
    try:
        catalog.refresh()  # what a version names after the pin is there will stay
        return _open_disks(catalog, stores_by_disk, point.id, let_go, cache_bytes, threads)
    except BaseException:
        let_go()
        raise


def _let_go(pin: Pin, hold: Hold | None) -> None:
    """Nothing is read any more; the point is held on for whoever comes next."""
    pin.release()
    if hold is not None:
        hold.stop()


def _open_disks(
    catalog: Catalog,
    stores_by_disk: Mapping[str, ObjectStore],
    point_id: str,
    let_go: Callable[[], None],
    cache_bytes: int,
    threads: int,
) -> dict[str, PointDisk]:
    point = catalog.find_point(point_id)
    sizes = catalog.disk_sizes(point)
    for disk in stores_by_disk:
        if disk not in sizes:
            raise NotFound(f"recovery point {point.id} has no disk {disk}", field="disk")
    is_open = set(stores_by_disk)

    def close(disk: str) -> None:
        is_open.discard(disk)
        if not is_open:
            let_go()

    with ThreadPoolExecutor(len(stores_by_disk)) as openers:
        maps = openers.map(
            lambda entry: open_map(entry[1], catalog, entry[0], point), stores_by_disk.items()
        )
        return {
            disk: PointDisk(
                store,
                block_map,
                sizes[disk],
                cache_bytes=cache_bytes,
                threads=threads,
                on_close=partial(close, disk),
            )
            for (disk, store), block_map in zip(stores_by_disk.items(), maps, strict=True)
        }


def open_map(
    store: ObjectStore, catalog: Catalog, disk: str, point: RecoveryPoint | str
) -> BlockMap:
    """Return the disk's map at a point. Raises: NotFound, ObjectMissing, SegmentCorrupt."""
    checkpoint, segments = catalog.disk_log(disk, point)
    return replay_map(
        store, catalog.item_id, disk, catalog.disk_sizes(point)[disk], checkpoint, segments
    )


def replay_map(
    store: ObjectStore,
    item_id: str,
    disk: str,
    size_bytes: int,
    checkpoint: str,
    segments: Iterable[int],
) -> BlockMap:
    """Return the map that a checkpoint ("": all zeros) and the segments after it give.

    Reads segment tables, never data. Raises: ObjectMissing, SegmentCorrupt, Unavailable.
    """
    block_map = open_checkpoint(store, checkpoint) if checkpoint else BlockMap(item_id, disk, 0)
    if (block_map.item_id, block_map.disk) != (item_id, disk):
        raise SegmentCorrupt(f"checkpoint {checkpoint} belongs to another disk")
    block_map.grow(max(size_bytes, block_map.size_bytes))
    pending = list(segments)
    with ThreadPoolExecutor(THREADS) as readers:
        for start in range(0, len(pending), _REPLAY_BATCH):
            batch = pending[start : start + _REPLAY_BATCH]
            names = [segment_name(item_id, disk, segment_id) for segment_id in batch]
            tables = readers.map(lambda name: read_table(store, name), names)
            for segment_id, table in zip(batch, tables, strict=True):
                if not _belongs(table, block_map):
                    raise SegmentCorrupt(f"segment {segment_id:x} belongs to another disk")
                block_map.apply_later(segment_id, table.extents)
    return block_map


def _belongs(table: SegmentTable, block_map: BlockMap) -> bool:
    header = table.header
    return (header.item_id, header.disk, header.unit) == (block_map.item_id, block_map.disk, BLOCKS)


def _data_ranges(runs: NDArray[np.void]) -> list[tuple[int, int, bool]]:
    """Return (first block, last block + 1, whether there is data), neighbours of a kind joined."""
    has_data = runs["segment"] != 0
    firsts = np.flatnonzero(np.concatenate([[True], has_data[1:] != has_data[:-1]]))
    starts = runs["block"][firsts].tolist()
    end = int(runs["block"][-1] + runs["count"][-1])
    return list(zip(starts, [*starts[1:], end], has_data[firsts].tolist(), strict=True))


def _frame_pieces(
    frames: Mapping[FrameKey, bytes], segment_id: int, offset: int, length: int
) -> Iterator[memoryview]:
    """Yield `length` bytes of a segment's logical data from `offset` on, cut at its frames."""
    end = offset + length
    while offset < end:
        index, within = divmod(offset, FRAME_BYTES)
        piece = memoryview(frames[segment_id, index])[within : within + end - offset]
        if len(piece) == 0:
            raise SegmentCorrupt(f"segment {segment_id:x} is shorter than its map says")
        yield piece
        offset += len(piece)


def _fill_zeros(target: memoryview) -> None:
    for start in range(0, len(target), len(_ZEROS)):
        part = target[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
