"""Where each block of a disk's replica lies: which segment, at which position.

Owns: the map in memory and its vectorised changes and questions. Must not know: catalogs, cuts.
Kept by the worker (apply, checkpoint); opened read-only for a recovery point. FORMAT.md 5.

A chunk of 64 KiB is one reference if its 16 blocks follow each other in one segment, else an index
into a pool of 16 references. The entries of the whole disk are one sparse array that the kernel
backs page by page, so that every operation is one numpy expression, however far its extents lie
apart.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.core.units import BLOCK
from leeward.object_store.store import ObjectStore, create_same
from leeward.replica.checkpoint import (
    CHUNK_BLOCKS,
    DISK_BYTES_MAX,
    PAGE_BYTES,
    PAGE_CHUNKS,
    CheckpointHead,
    Page,
    encode_checkpoint,
    read_checkpoint_head,
    read_pages,
)
from leeward.replica.fragment_pool import FragmentPool
from leeward.replica.layout import FRAGMENTED, POSITION_BITS, check_segment_id
from leeward.replica.runs import (
    FLAG,
    POSITION_MASK,
    POSITION_SHIFT,
    RUN_DTYPE,
    Indexes,
    References,
    clip_pieces,
    cut_to_range,
    join_pieces,
    make_runs,
    ramp,
    split_by_cost,
)
from leeward.replica.sealing import keys_of
from leeward.replica.segment import EXTENT_DTYPE, ZEROES

PAGE_BLOCKS = PAGE_CHUNKS * CHUNK_BLOCKS
_ABSENT, _STORED, _LOADED = 0, 1, 2
_STEPS = np.arange(CHUNK_BLOCKS, dtype=np.uint64)
_MAP_NORESERVE = 0x4000
_CHUNK_SHIFT = CHUNK_BLOCKS.bit_length() - 1
_RESOLVE_PAGES = 16
_LOOKUP_BLOCKS = 1 << 15
_APPLY_COST = 1 << 14
"""Chunks changed in one step: its temporaries stay in the processor's cache."""


class BlockMap:
    """The map of one disk. Thread-safe; pages of a checkpoint are loaded when first needed."""

    def __init__(self, item_id: str, disk: str, size_bytes: int) -> None:
        self.item_id = item_id
        self.disk = disk
        self._lock = threading.RLock()
        self._store: ObjectStore | None = None
        self._head = CheckpointHead(item_id, disk, 0, size_bytes, {})
        self._state = np.zeros(0, np.uint8)
        self._dirty = np.zeros(0, np.bool_)
        self._entries = np.zeros(0, np.uint64)
        self._pool = FragmentPool()
        self._deferred: list[tuple[Indexes, Indexes, References]] = []
        self._size_bytes = 0
        self.grow(size_bytes)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def block_count(self) -> int:
        return -(-self._size_bytes // BLOCK)

    @property
    def dirty_page_count(self) -> int:
        """Pages the next checkpoint will hold itself."""
        return int(np.count_nonzero(self._dirty))

    @property
    def memory_bytes(self) -> int:
        """Bytes the map itself occupies for the pages it has loaded."""
        return (
            int(np.count_nonzero(self._state == _LOADED)) * PAGE_CHUNKS * 8
            + self._pool.memory_bytes
        )

    def grow(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long; what is new reads as zeros. Raises: InvalidRequest if
        it would shrink."""
        if not self._size_bytes <= size_bytes <= DISK_BYTES_MAX:
            raise InvalidRequest(
                f"disk {self.disk} cannot go from {self._size_bytes} to {size_bytes} bytes"
            )
        with self._lock:
            missing = -(-size_bytes // PAGE_BYTES) - len(self._state)
            if missing > 0:
                state = np.concatenate([self._state, np.zeros(missing, np.uint8)])
                entries = _sparse_array(len(state) * PAGE_CHUNKS)
                for page in np.flatnonzero(self._state == _LOADED).tolist():
                    entries[_page_slice(page)] = self._entries[_page_slice(page)]
                self._entries, self._state = entries, state
                self._dirty = np.concatenate([self._dirty, np.zeros(missing, np.bool_)])
            self._size_bytes = size_bytes

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    def apply(self, segment_id: int, extents: NDArray[np.void]) -> None:
        """Make the extents' blocks refer to the segment, or read as zeros where position is ZEROES.

        extents: EXTENT_DTYPE in BLOCKS, sorted, not overlapping, as a segment holds them. All or
        nothing. Raises: SegmentCorrupt if they reach beyond the disk; what loading a page raises.
        """
        starts, counts, references = self._checked(segment_id, extents)
        self._load(self._pages_of(starts, counts))
        with self._lock:
            self._change(starts, counts, references)

    def apply_later(self, segment_id: int, extents: NDArray[np.void]) -> None:
        """Do what `apply` does, but load no page for it: one that is only stored is changed when
        it is loaded, if ever. Opening a point thus costs what was written, wherever that lies.

        Raises: SegmentCorrupt if they reach beyond the disk.
        """
        group = self._checked(segment_id, extents)
        with self._lock:
            touched = self._pages_of(*group[:2])
            stored = touched[self._state[touched] == _STORED]
            if len(stored):
                self._deferred.append(group)
                self._dirty[stored] = True
                for page in touched[self._state[touched] != _STORED].tolist():
                    self._change(*cut_to_range(*group, *_page_range(page)))
            else:
                self._change(*group)

    def _change(self, starts: Indexes, counts: Indexes, references: References) -> None:
        starts, counts, references = self._clear_whole_pages(starts, counts, references)
        touched = self._pages_of(starts, counts)
        self._state[touched] = _LOADED
        self._dirty[touched] = True
        for part in split_by_cost(counts // CHUNK_BLOCKS + 1, _APPLY_COST):
            self._set_chunks(starts[part], counts[part], references[part])
            self._set_parts(starts[part], counts[part], references[part])

    def _checked(
        self, segment_id: int, extents: NDArray[np.void]
    ) -> tuple[Indexes, Indexes, References]:
        check_segment_id(segment_id)
        if extents.dtype != EXTENT_DTYPE:
            raise InvalidRequest(f"extents of {extents.dtype}")
        starts = extents["start"].astype(np.int64)
        counts = extents["count"].astype(np.int64)
        ends = starts + counts
        if len(starts) == 0:
            return starts, counts, starts.view(np.uint64)
        if starts[0] < 0 or (counts < 1).any() or (starts[1:] < ends[:-1]).any():
            raise InvalidRequest("extents overlap, are empty or are not sorted")
        if int(ends[-1]) > self.block_count:
            raise SegmentCorrupt(f"a segment reaches beyond the end of disk {self.disk}")
        positions = extents["position"].astype(np.int64)
        has_data = positions != ZEROES
        if ((positions + counts)[has_data] >= 1 << POSITION_BITS).any():
            raise InvalidRequest("an extent lies beyond what a segment can hold")
        base = np.uint64(segment_id << POSITION_BITS)
        return starts, counts, np.where(has_data, base + positions.astype(np.uint64), np.uint64(0))

    def _pages_of(self, starts: Indexes, counts: Indexes) -> Indexes:
        """Return the pages the extents touch, ascending."""
        edges = np.zeros(len(self._state) + 1, np.int64)
        np.add.at(edges, starts // PAGE_BLOCKS, 1)
        np.add.at(edges, (starts + counts - 1) // PAGE_BLOCKS + 1, -1)
        return np.flatnonzero(np.cumsum(edges)[:-1]).astype(np.int64)

    def _clear_whole_pages(
        self, starts: Indexes, counts: Indexes, references: References
    ) -> tuple[Indexes, Indexes, References]:
        """Make absent the pages that zero extents cover whole; return what is left to apply."""
        long = np.flatnonzero((counts >= PAGE_BLOCKS) & (references == 0))
        if len(long) == 0:
            return starts, counts, references
        rest: list[tuple[int, int]] = []
        for index in long.tolist():
            start, end = int(starts[index]), int(starts[index] + counts[index])
            first, last = -(-start // PAGE_BLOCKS), end // PAGE_BLOCKS
            if end == self.block_count:
                last = len(self._state)
            if first >= last:
                rest.append((start, end))
                continue
            self._clear_pages(first, last)
            rest += [(start, first * PAGE_BLOCKS), (last * PAGE_BLOCKS, end)]
        left = [(start, end) for start, end in rest if end > start]
        keep = np.ones(len(starts), np.bool_)
        keep[long] = False
        new_starts = np.concatenate([starts[keep], np.array([s for s, _ in left], np.int64)])
        new_counts = np.concatenate([counts[keep], np.array([e - s for s, e in left], np.int64)])
        new_references = np.concatenate([references[keep], np.zeros(len(left), np.uint64)])
        order = np.argsort(new_starts)
        return new_starts[order], new_counts[order], new_references[order]

    def _clear_pages(self, first: int, last: int) -> None:
        for page in (first + np.flatnonzero(self._state[first:last] == _LOADED)).tolist():
            entries = self._entries[_page_slice(page)]
            self._pool.release(entries)
            entries[:] = 0
        self._dirty[first:last] |= self._state[first:last] != _ABSENT
        self._state[first:last] = _ABSENT

    def _set_chunks(self, starts: Indexes, counts: Indexes, references: References) -> None:
        """Write the entries of the chunks that extents cover whole."""
        first = (starts + CHUNK_BLOCKS - 1) // CHUNK_BLOCKS
        whole = np.maximum((starts + counts) // CHUNK_BLOCKS - first, 0)
        has_data = references != 0
        skipped = (first * CHUNK_BLOCKS - starts).astype(np.uint64)
        base = np.where(has_data, references + skipped, np.uint64(0))
        within = ramp(whole)
        chunks = np.repeat(first, whole) + within
        step = np.repeat(np.where(has_data, np.uint64(CHUNK_BLOCKS), np.uint64(0)), whole)
        self._pool.release(self._entries[chunks])
        self._entries[chunks] = np.repeat(base, whole) + within.astype(np.uint64) * step

    def _set_parts(self, starts: Indexes, counts: Indexes, references: References) -> None:
        """Write the blocks of the chunks that extents cover in part: heads and tails."""
        ends = starts + counts
        head_chunk, tail_chunk = starts // CHUNK_BLOCKS, ends // CHUNK_BLOCKS
        low = starts % CHUNK_BLOCKS
        head = (low != 0) | (tail_chunk == head_chunk)
        tail = (ends % CHUNK_BLOCKS != 0) & (tail_chunk != head_chunk)
        tail_reference = references + (tail_chunk * CHUNK_BLOCKS - starts).astype(np.uint64)
        tail_reference[references == 0] = 0
        high = np.minimum(ends - head_chunk * CHUNK_BLOCKS, CHUNK_BLOCKS)
        chunks = np.concatenate([head_chunk[head], tail_chunk[tail]])
        if len(chunks) == 0:
            return
        lows = np.concatenate([low[head], np.zeros(np.count_nonzero(tail), np.int64)])
        lengths = np.concatenate([high[head], ends[tail] % CHUNK_BLOCKS]) - lows
        values = np.concatenate([references[head], tail_reference[tail]])
        distinct, rows_of = np.unique(chunks, return_inverse=True)
        rows = self._rows(distinct)
        within = ramp(lengths)
        blocks = np.repeat(values, lengths)
        blocks[blocks != 0] += within[blocks != 0].astype(np.uint64)
        rows[np.repeat(rows_of, lengths), np.repeat(lows, lengths) + within] = blocks
        self._put_rows(distinct, rows)

    def _rows(self, chunks: Indexes) -> References:
        """Return each chunk's 16 references."""
        entries = self._entries[chunks]
        rows = entries[:, None] + _STEPS
        rows[entries == 0] = 0
        fragmented = entries >= FLAG
        rows[fragmented] = self._pool.get(entries[fragmented])
        return rows

    def _put_rows(self, chunks: Indexes, rows: References) -> None:
        """Store each chunk's 16 references in the smallest form."""
        self._pool.release(self._entries[chunks])
        base = rows[:, 0]
        is_run = (base != 0) & (rows == base[:, None] + _STEPS).all(axis=1)
        entries = np.where(is_run, base, np.uint64(0))
        fragmented = ~is_run & rows.any(axis=1)
        entries[fragmented] = self._pool.put(rows[fragmented])
        self._entries[chunks] = entries

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    def resolve(self, first_block: int, count: int) -> NDArray[np.void]:
        """Return the runs (RUN_DTYPE) that make up `count` blocks from `first_block` on, in order,
        without gaps, none joinable with the next.

        Raises: InvalidRequest beyond the disk's end; what loading a page raises.
        """
        if first_block < 0 or count < 0 or first_block + count > self.block_count:
            raise InvalidRequest(f"{count} blocks at {first_block} reach beyond disk {self.disk}")
        if count == 0:
            return np.zeros(0, RUN_DTYPE)
        end = first_block + count
        if first_block // CHUNK_BLOCKS == (end - 1) // CHUNK_BLOCKS:
            run = self._resolve_in_chunk(first_block, count)
            if run is not None:
                return run
        found = [
            self._resolve_pages(max(first_block, low), min(end, high), is_absent)
            for low, high, is_absent in self._spans(first_block, end)
        ]
        blocks, lengths, references = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        return make_runs(*join_pieces(blocks, lengths, references, 1))

    def _resolve_in_chunk(self, first_block: int, count: int) -> NDArray[np.void] | None:
        """Return the one run of a small read, None if its chunk is fragmented: the common case of
        a guest reading a few KiB, without the cost of a dozen tiny arrays."""
        chunk, within = divmod(first_block, CHUNK_BLOCKS)
        if self._state[chunk // PAGE_CHUNKS] == _STORED:
            self._load(np.array([chunk // PAGE_CHUNKS]))
        with self._lock:
            # Not before a page just loaded has had its later changes too.
            entry = int(self._entries[chunk])
        if entry >= FRAGMENTED:
            return None
        reference = entry + within if entry else 0
        segment_id, position = reference >> POSITION_BITS, reference & int(POSITION_MASK)
        return np.array([(first_block, count, segment_id, position)], RUN_DTYPE)

    def lookup(self, blocks: NDArray[np.integer]) -> tuple[References, NDArray[np.uint32]]:
        """Return (segment ids, positions) of single blocks in any order; segment 0 is zeros."""
        wanted = blocks.astype(np.int64, copy=False)
        if len(wanted) and (int(wanted.min()) < 0 or int(wanted.max()) >= self.block_count):
            raise InvalidRequest(f"a block lies beyond disk {self.disk}")
        segments = np.empty(len(wanted), np.uint64)
        positions = np.empty(len(wanted), np.uint32)
        for start in range(0, len(wanted), _LOOKUP_BLOCKS):
            part = slice(start, start + _LOOKUP_BLOCKS)
            references = self._references(wanted[part])
            np.right_shift(references, POSITION_SHIFT, out=segments[part])
            positions[part] = references & POSITION_MASK
        return segments, positions

    def _references(self, blocks: Indexes) -> References:
        """Return the blocks' references; few enough of them that all temporaries stay in cache."""
        chunks = blocks >> _CHUNK_SHIFT
        self._load(np.flatnonzero(np.bincount(chunks // PAGE_CHUNKS)).astype(np.int64))
        within = blocks & (CHUNK_BLOCKS - 1)
        with self._lock:
            entries = self._entries[chunks]
            references: References = entries + within.view(np.uint64)
            references[entries == 0] = 0
            fragmented = np.flatnonzero(entries >= FLAG)
            if len(fragmented):
                references[fragmented] = self._pool.get_blocks(
                    entries[fragmented], within[fragmented]
                )
        return references

    def _spans(self, first_block: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield block ranges of whole pages, each absent throughout or of bounded length."""
        low, last = first_block // PAGE_BLOCKS, (end - 1) // PAGE_BLOCKS + 1
        absent = self._state[low:last] == _ABSENT
        changes = (np.flatnonzero(absent[1:] != absent[:-1]) + 1).tolist()
        for start, stop in zip([0, *changes], [*changes, len(absent)], strict=True):
            is_absent = bool(absent[start])
            step = stop - start if is_absent else _RESOLVE_PAGES
            for page in range(low + start, low + stop, step):
                high = min(page + step, low + stop)
                yield page * PAGE_BLOCKS, high * PAGE_BLOCKS, is_absent

    def _resolve_pages(
        self, low: int, high: int, is_absent: bool
    ) -> tuple[Indexes, Indexes, References]:
        """Return [low, high) as pieces (block, count, reference), chunk by chunk or finer."""
        if is_absent:
            return np.array([low]), np.array([high - low]), np.zeros(1, np.uint64)
        self._load(np.arange(low // PAGE_BLOCKS, (high - 1) // PAGE_BLOCKS + 1))
        first, last = low // CHUNK_BLOCKS, (high - 1) // CHUNK_BLOCKS + 1
        with self._lock:
            entries = self._entries[first:last].copy()
            rows = self._pool.get(entries[entries >= FLAG])
        _, lengths, references = join_pieces(
            np.arange(first, last), np.ones(last - first, np.int64), entries, CHUNK_BLOCKS
        )
        fragmented = references >= FLAG
        pieces = np.where(fragmented, CHUNK_BLOCKS, 1)
        is_block = np.repeat(fragmented, pieces)
        references = np.repeat(references, pieces)
        references[is_block] = rows.ravel()
        lengths = np.where(is_block, 1, np.repeat(lengths * CHUNK_BLOCKS, pieces))
        blocks = first * CHUNK_BLOCKS + np.cumsum(lengths) - lengths
        return clip_pieces(blocks, lengths, references, low, high)

    # ── storage ──────────────────────────────────────────────────────────────────────────────────

    def load_all(self) -> None:
        """Have every page in memory. Raises: ObjectMissing, SegmentCorrupt, Unavailable."""
        self._load(np.arange(len(self._state)))

    def write_checkpoint(self, store: ObjectStore, name: str, *, epoch: int) -> None:
        """Make the map as it is now openable as `name`: changed pages stored in that object, the
        others referred to where older checkpoints in the same store hold them. Idempotent."""
        with self._lock:
            self._load(np.flatnonzero(self._dirty))
            self._deferred.clear()
            changed, dropped = {}, set()
            for page in np.flatnonzero(self._dirty).tolist():
                content = self._page(page)
                if content is None:
                    dropped.add(page)
                else:
                    changed[page] = content
            kept = {page: at for page, at in self._head.pages.items() if page not in dropped}
            head = CheckpointHead(self.item_id, self.disk, epoch, self._size_bytes, kept)
            encoded = encode_checkpoint(name, head, changed, keys_of(store).writing)
            create_same(store, name, encoded.parts)
            self._head, self._store = encoded.head, store
            self._dirty[:] = False

    def _page(self, page: int) -> Page | None:
        """Return a loaded page with indexes into its own fragments, None if it is all zeros."""
        entries = self._entries[_page_slice(page)].copy()
        if self._state[page] != _LOADED or not entries.any():
            return None
        fragmented = entries >= FLAG
        fragments = self._pool.get(entries[fragmented])
        entries[fragmented] = np.arange(len(fragments), dtype=np.uint64) + FLAG
        return Page(entries, fragments)

    def _open_stored(self, store: ObjectStore, head: CheckpointHead) -> None:
        self._store, self._head = store, head
        if head.pages:
            self._state[np.fromiter(head.pages, np.int64, len(head.pages))] = _STORED

    def _load(self, pages: Indexes) -> None:
        """Make every one of `pages` that is still only stored usable in memory."""
        missing = pages[self._state[pages] == _STORED].tolist()
        if not missing or self._store is None:
            return
        found = read_pages(self._store, {page: self._head.pages[page] for page in missing})
        with self._lock:
            for page, content in found.items():
                if self._state[page] == _STORED:
                    self._install(page, content)

    def _install(self, page: int, content: Page) -> None:
        entries = content.entries.copy()
        fragmented = entries >= FLAG
        rows = content.fragments[(entries[fragmented] - FLAG).astype(np.int64)]
        entries[fragmented] = self._pool.put(rows)
        self._entries[_page_slice(page)] = entries
        self._state[page] = _LOADED
        for group in self._deferred:
            part = cut_to_range(*group, *_page_range(page))
            if len(part[0]):
                self._change(*part)


def open_checkpoint(store: ObjectStore, name: str) -> BlockMap:
    """Return the map stored as `name`: one or two ranged reads now, pages when needed.

    Raises: ObjectMissing, SegmentCorrupt.
    """
    head = read_checkpoint_head(store, name)
    block_map = BlockMap(head.item_id, head.disk, head.size_bytes)
    block_map._open_stored(store, head)
    return block_map


def _sparse_array(length: int) -> References:
    """Return zeros that occupy memory only where they are written."""
    if length == 0:
        return np.zeros(0, np.uint64)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, length * 8, flags=flags), np.uint64)


def _page_range(page: int) -> tuple[int, int]:
    return page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS


def _page_slice(page: int) -> slice:
    return slice(page * PAGE_CHUNKS, (page + 1) * PAGE_CHUNKS)
