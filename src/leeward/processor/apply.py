"""A disk's replica log, being written: whole blocks copied as they came, sectors merged in.

Owns: the worker's map of one disk and the objects it adds to the target. Must not know: the cache,
the catalog, cuts. Sits between the drained segments and the catalog record that lists them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import DataIntegrity, SegmentCorrupt
from leeward.object_store.store import Buffer, ObjectStore
from leeward.processor.old_blocks import OldBlocks, nothing_forgiven
from leeward.replica.block_map import BlockMap
from leeward.replica.catalog import Catalog
from leeward.replica.disk import PointDisk, replay_map
from leeward.replica.layout import NUMBER_MAX, checkpoint_name, make_segment_id, segment_name
from leeward.replica.sealing import keys_of
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    SECTORS,
    ZEROES,
    Compression,
    DecodedSegment,
    SegmentHeader,
    encode_segment,
)

CHECKPOINT_SEGMENTS = 128
CHECKPOINT_EXTENTS = 1 << 16
"""Segments, or extents, since the last checkpoint beyond which the map is stored again."""

SECTORS_PER_BLOCK = BLOCKS // SECTORS
ZEROES_EXTENT_MAX = 1 << 31
"""Blocks of zeros that one extent takes at most."""
MERGE_BLOCKS = 2048
"""Blocks merged at once: 8 MiB of old and new content in memory."""
RAGGED_EXTENT_MAX = MERGE_BLOCKS // 2 * SECTORS_PER_BLOCK
"""Longest extent of a SECTORS segment, in sectors: anything longer belongs into BLOCKS."""


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment in the target's log that no catalog record lists yet."""

    segment_id: int
    extents: NDArray[np.void]


Fetched = StoredSegment | DecodedSegment
"""A BLOCKS segment, in the target already; or a SECTORS segment, still to be merged."""


class Numbers:
    """Numbers for segments and checkpoints under one claim, each given once. Thread-safe."""

    def __init__(self, claim: int) -> None:
        self.claim = claim
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    @property
    def taken(self) -> int:
        """The number given last."""
        with self._lock:
            return self._next

    @property
    def newest_id(self) -> int:
        """The segment id that the number given last makes; no later one is smaller or equal."""
        return make_segment_id(self.claim, self._next)

    @property
    def is_running_out(self) -> bool:
        """True while a batch still has numbers enough, but a new claim is due."""
        return self._next > NUMBER_MAX - (1 << 24)


class DiskReplica:
    """One disk's log in the target store and the map of its newest state.

    Used by one thread. After an error the map may be ahead of the catalog: throw the object away.
    What it had stored is then orphaned; its names are never given again.
    """

    def __init__(
        self,
        store: ObjectStore,
        block_map: BlockMap,
        numbers: Numbers,
        *,
        to_replay: int,
        compression: Compression = "zstd",
        is_forgiven: Callable[[int], bool] = nothing_forgiven,
        is_anew: bool = False,
    ) -> None:
        """to_replay: segments that came after the checkpoint the map was opened from.
        is_forgiven: as BlockReader has it. is_anew: the map is all zeros, whatever the log says."""
        self._store = store
        self._map = block_map
        self._numbers = numbers
        self._old = OldBlocks(store, block_map, is_forgiven=is_forgiven)
        self._to_replay = to_replay
        self._compression = compression
        self._extents_to_replay = 0
        self._is_anew = is_anew

    def close(self) -> None:
        """Stop the threads that read old blocks."""
        self._old.close()

    @property
    def needs_checkpoint(self) -> bool:
        """Whether replaying what came since the last checkpoint would begin to take long."""
        return is_replay_long(self._to_replay, self._extents_to_replay)

    @property
    def size_bytes(self) -> int:
        return self._map.size_bytes

    def reader(self, *, cache_bytes: int, threads: int) -> PointDisk:
        """Return the disk as it is now and becomes: read it between changes only, and close it."""
        return PointDisk(
            self._store,
            self._map,
            self._map.size_bytes,
            cache_bytes=cache_bytes,
            threads=threads,
        )

    def grow(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long from the next cut on. Raises: SegmentCorrupt if it would
        shrink: blocks beyond the end cannot be told from ones never written."""
        if size_bytes < self._map.size_bytes:
            raise SegmentCorrupt(
                f"disk {self._map.disk} has shrunk from {self._map.size_bytes} to {size_bytes}",
                hint="disable replication and enable it again",
            )
        if size_bytes > self._map.size_bytes:
            self._map.grow(size_bytes)

    def begin(self, header: SegmentHeader) -> list[int]:
        """Return the ids of the segments that bring the log to where the map begins, to be listed
        before all others of a cut: zeros everywhere if it begins anew, else none."""
        if not self._is_anew:
            return []
        self._is_anew = False
        blocks = self._map.block_count
        starts = range(0, blocks, ZEROES_EXTENT_MAX)
        extents = np.zeros(len(starts), EXTENT_DTYPE)
        extents["start"] = starts
        extents["count"] = [min(ZEROES_EXTENT_MAX, blocks - start) for start in starts]
        extents["position"] = ZEROES
        return [self._store_extents(header, extents, b"").segment_id] if blocks else []

    def holds_data(self, first: int, count: int) -> bool:
        """Say whether the log has data in any of these blocks."""
        return bool(self._map.resolve(first, count)["segment"].any())

    def bring_to(
        self, header: SegmentHeader, first: int, content: NDArray[np.uint8]
    ) -> StoredSegment | None:
        """Have the disk hold `content`, a row for each block from `first` on. What differs from
        the log's newest state is stored and returned; None if nothing does."""
        blocks = np.arange(first, first + len(content), dtype=np.int64)
        differs = (self._old.read(blocks) != content).any(axis=1)
        if not differs.any():
            return None
        stored = self._store_blocks(header, blocks[differs], content[differs])
        self._map.apply(stored.segment_id, stored.extents)
        self._to_replay += 1
        self._extents_to_replay += len(stored.extents)
        return stored

    def take(self, segment: Fetched) -> list[int]:
        """Bring the map to the state after the segment; return the ids of the segments that, in
        this order, do the same to anybody's map."""
        added = []
        for stored in [segment] if isinstance(segment, StoredSegment) else self._merge(segment):
            self._map.apply(stored.segment_id, stored.extents)
            self._to_replay += 1
            self._extents_to_replay += len(stored.extents)
            added.append(stored.segment_id)
        return added

    def _merge(self, segment: DecodedSegment) -> Iterator[StoredSegment]:
        """Store the blocks that a segment of sectors changes, each with its old rest.

        Old is the map's newest state: what is yielded is applied before the next is asked for.
        """
        data = np.frombuffer(segment.data(), np.uint8).reshape(-1, SECTORS)
        header = segment.header
        for extents in _groups(segment.extents):
            sectors, positions = _expand(extents)
            blocks, rows = np.unique(sectors // SECTORS_PER_BLOCK, return_inverse=True)
            content = self._old.read(blocks).reshape(-1, SECTORS_PER_BLOCK, SECTORS)
            columns = sectors % SECTORS_PER_BLOCK
            zero = positions < 0
            content[rows[zero], columns[zero]] = 0
            content[rows[~zero], columns[~zero]] = data[positions[~zero]]
            yield self._store_blocks(header, blocks, content.reshape(-1, BLOCKS))

    def checkpoint(self, epoch: int) -> str:
        """Store the map as it is now and return the checkpoint's name."""
        claim, number = self._numbers.claim, self._numbers.take()
        name = checkpoint_name(self._map.item_id, self._map.disk, claim, number)
        self._map.write_checkpoint(self._store, name, epoch=epoch)
        self._to_replay = self._extents_to_replay = 0
        return name

    def _store_blocks(
        self, header: SegmentHeader, blocks: NDArray[np.int64], content: NDArray[np.uint8]
    ) -> StoredSegment:
        has_data = np.asarray(content.view(np.uint64).any(axis=1))
        extents = _block_extents(blocks, has_data)
        return self._store_extents(header, extents, content[has_data].tobytes())

    def _store_extents(
        self, header: SegmentHeader, extents: NDArray[np.void], data: bytes
    ) -> StoredSegment:
        encoded = encode_segment(
            SegmentHeader(header.item_id, header.disk, header.epoch, header.sequence, BLOCKS),
            extents,
            data,
            compression=self._compression,
            key=keys_of(self._store).writing,
        )
        return _create(
            self._store, self._map.item_id, self._map.disk, self._numbers, encoded.parts, extents
        )


def is_replay_long(segments: int, extents: int) -> bool:
    """Say whether a map is to be stored rather than that many segments be replayed."""
    return segments >= CHECKPOINT_SEGMENTS or extents >= CHECKPOINT_EXTENTS


def open_replica(
    catalog: Catalog,
    store: ObjectStore,
    disk: str,
    numbers: Numbers,
    *,
    compression: Compression = "zstd",
) -> DiskReplica:
    """Return the disk's replica at the catalog's newest cut that has it; one of 0 bytes before the
    first.

    Raises: ObjectMissing, SegmentCorrupt, Unavailable.
    """
    checkpoint, segment_ids = catalog.newest_disk_log(disk)
    size_bytes = max((e.size_bytes for _, e in catalog.state.disk_entries(disk)), default=0)
    to_replay, is_anew = len(segment_ids), False
    awaits_restart, whole = catalog.healing
    try:
        block_map = replay_map(store, catalog.item_id, disk, size_bytes, checkpoint, segment_ids)
        if awaits_restart:
            block_map.load_all()
    except DataIntegrity:
        if not awaits_restart:
            raise
        # Nothing but a sweep of everything can follow: begin with nothing, and store the map soon.
        block_map = BlockMap(catalog.item_id, disk, size_bytes)
        to_replay, is_anew = CHECKPOINT_SEGMENTS, True
    return DiskReplica(
        store,
        block_map,
        numbers,
        to_replay=to_replay,
        compression=compression,
        is_forgiven=nothing_forgiven if whole is None else _older_than(numbers.newest_id, whole),
        is_anew=is_anew,
    )


def _older_than(newest_id: int, whole: frozenset[int]) -> Callable[[int], bool]:
    return lambda segment_id: segment_id <= newest_id and segment_id not in whole


def store_segment(
    store: ObjectStore, item_id: str, disk: str, numbers: Numbers, segment: DecodedSegment
) -> StoredSegment:
    """Store a segment of whole blocks as it is, under a name of our own. Thread-safe."""
    return _create(store, item_id, disk, numbers, [segment.stored], segment.extents)


def _create(
    store: ObjectStore,
    item_id: str,
    disk: str,
    numbers: Numbers,
    parts: Sequence[Buffer],
    extents: NDArray[np.void],
) -> StoredSegment:
    segment_id = make_segment_id(numbers.claim, numbers.take())
    store.create(segment_name(item_id, disk, segment_id), parts)
    return StoredSegment(segment_id, extents)


def check_extents(segment: DecodedSegment, size_bytes: int) -> None:
    """Return if every extent lies on the disk and can be applied. Raises: SegmentCorrupt."""
    extents, unit = segment.extents, segment.header.unit
    if not len(extents):
        return
    last = int(extents["start"][-1]) + int(extents["count"][-1])
    if last > -(-size_bytes // unit):
        raise SegmentCorrupt(f"a segment reaches beyond the end of disk {segment.header.disk}")
    if unit == SECTORS and int(extents["count"].max()) > RAGGED_EXTENT_MAX:
        raise SegmentCorrupt("a segment of sectors has an extent that belongs into blocks")


def _groups(extents: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Yield the extents in groups that touch at most about MERGE_BLOCKS blocks each."""
    touched = extents["count"].astype(np.int64) // SECTORS_PER_BLOCK + 2
    group = (np.cumsum(touched) - touched) // MERGE_BLOCKS
    borders = np.flatnonzero(np.diff(group)) + 1
    yield from (part for part in np.split(extents, borders) if len(part))


def _expand(extents: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each sector's number and its position in the data, -1 for zeros."""
    counts = extents["count"].astype(np.int64)
    within = np.arange(int(counts.sum()), dtype=np.int64)
    within -= np.repeat(np.cumsum(counts) - counts, counts)
    sectors = np.repeat(extents["start"].astype(np.int64), counts) + within
    first = np.repeat(extents["position"].astype(np.int64), counts)
    return sectors, np.where(first == ZEROES, -1, first + within)


def _block_extents(blocks: NDArray[np.int64], has_data: NDArray[np.bool_]) -> NDArray[np.void]:
    """Return sorted single blocks as extents, data packed one block after the other."""
    breaks = (blocks[1:] != blocks[:-1] + 1) | (has_data[1:] != has_data[:-1])
    first = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(breaks) + 1))
    position: NDArray[np.int64] = np.cumsum(has_data) - has_data.astype(np.int64)
    extents = np.zeros(first.size, EXTENT_DTYPE)
    extents["start"] = blocks[first]
    extents["count"] = np.diff(np.append(first, blocks.size))
    extents["position"] = np.where(has_data[first], position[first], ZEROES)
    return extents
