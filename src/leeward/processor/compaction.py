"""Writing anew what is live of segments that are mostly dead, and the log that follows from it.

Owns: the objects a compaction stores, and proving before anything counts that every window and the
newest map show what they showed. Must not know: locks, schedules, deleting. Runs beside the item's
steps; item.py makes the result part of the catalog. Killed anywhere it leaves orphans only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from leeward.core.errors import Conflict, DataIntegrity, SegmentCorrupt, Unavailable
from leeward.core.units import BLOCK, MIB
from leeward.object_store.store import ObjectStore, join
from leeward.observability.log import get_logger
from leeward.processor.apply import Numbers, is_replay_long
from leeward.processor.compaction_plan import (
    DEAD_PERCENT_MIN,
    DiskFigures,
    Group,
    LogSegment,
    WindowPlan,
    check_maps,
    check_window,
    figures_of,
    percent_to_free,
    plan_window,
    replace_victims,
    sum_figures,
)
from leeward.processor.disk_log import DiskCompaction, LogEntry, Position, log_of, windows_of
from leeward.processor.old_blocks import BlockReader
from leeward.replica.block_map import BlockMap, open_checkpoint
from leeward.replica.catalog_state import LoggedCut, State
from leeward.replica.disk import replay_map
from leeward.replica.layout import checkpoint_name, make_segment_id, segment_name
from leeward.replica.sealing import keys_of
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    Compression,
    SegmentHeader,
    encode_segment,
    read_table,
)

MOVED_BYTES_MAX = 512 * MIB
"""Live data that one round writes anew, about, for a disk."""
DEAD_SHARE_MAX = 0.09
"""Of a disk's data: with more than that dead there is a round."""
DEAD_SHARE_AFTER = 0.075
"""So much dead a round leaves: what lies beyond may be deader, thus cheaper, once windows merge."""
CROWDED_MAX = 256
"""With more segments that are too many and too small there is a round as well."""
EXTENTS_MAX = 1 << 24
"""Extents held in memory at once, about: a window of more is not compacted."""
READERS = 8
_TABLES_AT_ONCE = 64
"""Read when a map is made of them."""
_UNREAD = DiskFigures()
"""Of a window of one cut: nothing is dead in it, and how much it has nobody has asked yet."""


@dataclass(slots=True)
class _Round:
    """What one round has planned and made for a disk."""

    plans: dict[int, WindowPlan] = field(default_factory=dict)
    moved: dict[int, Group] = field(default_factory=dict)
    written_bytes: int = 0


class DiskCompactor:
    """Plans and makes compactions of one disk. Used by one thread at a time."""

    def __init__(
        self,
        store: ObjectStore,
        item_id: str,
        disk: str,
        *,
        compression: Compression,
        sleep: Callable[[float], None],
    ) -> None:
        self._store = store
        self._item_id = item_id
        self._disk = disk
        self._compression = compression
        self._sleep = sleep
        self._known: dict[tuple[int, ...], DiskFigures] = {}
        self._tables: dict[int, LogSegment] = {}
        self._unreadable: dict[int, DataIntegrity] = {}
        self._spared: set[int] = set()
        self.figures = DiskFigures()
        """Of the log when it was last planned."""

    def survey(self, state: State) -> DiskFigures:
        """Return how much of the disk's log is dead; only windows that have changed are read, and
        one with a damaged table that something may be seen of, or too long, is passed over. Those
        of one cut are read, oldest first, only while what is dead seems worth a round.
        Raises: Unavailable.
        """
        log = log_of(state, self._disk)
        known, self._known = self._known, {}
        for window in windows_of(log):
            ids = _ids(log[window])
            figures = known.get(ids)
            if figures is None and _is_one_cut(log[window]):
                figures = _UNREAD  # what a cut brings lies side by side
            if figures is None:
                figures = self._look_at(log[window])
            self._known[ids] = figures
        self.figures = sum_figures(self._known.values())
        for ids, figures in self._known.items():
            if not self.is_worthwhile():
                break
            if figures is _UNREAD:  # the first copy of the disk, perhaps: much to compare with
                self._known[ids] = DiskFigures(live=self._data_blocks(ids))
                self.figures = sum_figures([self.figures, self._known[ids]])
        return self.figures

    def _data_blocks(self, ids: Sequence[int]) -> int:
        """Return how much data these segments have, those with damaged tables none."""
        with ThreadPoolExecutor(READERS) as readers:
            found = readers.map(self._try_table, ids)
            return sum(each.data_blocks for each in found if isinstance(each, LogSegment))

    def plan(
        self,
        state: State,
        *,
        is_thorough: bool = False,
        moved_bytes_max: int = MOVED_BYTES_MAX,
    ) -> dict[int, WindowPlan]:
        """Return what to do in one round, by the windows' first entries in the log. Only windows
        that the last survey found to have candidates; unless thorough, only what is cheapest to
        free, until little enough is dead. Raises: as `survey`."""
        log = log_of(state, self._disk)
        plans: dict[int, WindowPlan] = {}
        blocks = moved_bytes_max // BLOCK
        percent = DEAD_PERCENT_MIN if is_thorough else self._percent_to_free()
        for window in windows_of(log):
            ids = _ids(log[window])
            if blocks <= 0 or not self._known.get(ids, DiskFigures()).candidates:
                continue
            plan = self._planned(log[window], percent, blocks)
            self._known[ids] = figures_of(plan)
            if plan.victims:
                plans[window.start] = plan
                blocks -= plan.moved_blocks
        return plans

    def _look_at(self, window: Sequence[LogEntry]) -> DiskFigures:
        try:
            return figures_of(self._planned(window, DEAD_PERCENT_MIN, 1 << 62))
        except (DataIntegrity, Conflict) as error:
            # Nobody knows what would show if it were left out: the window stays until it changes.
            get_logger().warning("window_not_compacted", disk=self._disk, problem=str(error))
            return DiskFigures()

    def _planned(
        self, window: Sequence[LogEntry], dead_percent_min: int, moved_blocks_max: int
    ) -> WindowPlan:
        return plan_window(
            self._segments(window),
            spared=frozenset(self._spared),
            dead_percent_min=dead_percent_min,
            moved_blocks_max=moved_blocks_max,
        )

    def _percent_to_free(self) -> int:
        figures = self.figures
        left = int(DEAD_SHARE_AFTER * (figures.live + figures.dead))
        return percent_to_free(figures.dead_by_percent, figures.dead - left)

    def is_worthwhile(self) -> bool:
        """Say whether what was last surveyed is worth the maps that have to be written anew."""
        figures = self.figures
        data = figures.live + figures.dead
        return figures.crowded >= CROWDED_MAX or (
            figures.dead > DEAD_SHARE_MAX * data
            and figures.freeable > (DEAD_SHARE_MAX - DEAD_SHARE_AFTER) * data
        )

    def forget(self) -> None:
        """Keep nothing in memory but figures."""
        self._tables.clear()
        self._unreadable.clear()

    def make(
        self,
        state: State,
        plans: Mapping[int, WindowPlan],
        numbers: Numbers,
        *,
        is_stopping: Callable[[], bool],
    ) -> DiskCompaction:
        """Return the log that the plans lead to, everything it names stored and verified.

        Raises: Unavailable, also when told to stop; DataIntegrity when a victim cannot be read (it
        is spared from then on) or a check fails: then nothing counts.
        """
        log = log_of(state, self._disk)
        done = _Round(dict(plans))
        new = list(log)
        for window in windows_of(log):
            plan = plans.get(window.start)
            if plan is None:
                continue
            place = _last_victim(log[window], plan)
            ids = [
                self._store_group(group, place, numbers, done, is_stopping) for group in plan.groups
            ]
            lists = replace_victims([entry.segments for entry in log[window]], plan, ids)
            new[window] = [
                replace(entry, segments=listed)
                for entry, listed in zip(log[window], lists, strict=True)
            ]
            check_window(self._segments(log[window]), self._segments(new[window]), done.moved)
        gone = {each for plan in plans.values() for each in plan.victims}
        first = next(at for at, entry in enumerate(log) if not gone.isdisjoint(entry.segments))
        new = self._store_maps(log, new, first, numbers, done, is_stopping)
        return DiskCompaction(
            disk=self._disk,
            claim=numbers.claim,
            before={entry.position: entry.segments for entry in log},
            log={
                entry.position: LoggedCut(
                    epoch=entry.position[0],
                    sequence=entry.position[1],
                    segments=entry.segments,
                    checkpoint=entry.checkpoint,
                )
                for entry in new
            },
            victims=len(gone),
            moved_bytes=sum(plan.moved_blocks for plan in plans.values()) * BLOCK,
            written_bytes=done.written_bytes,
        )

    # -------------------------------------------------------------------------- tables

    def _segments(self, window: Sequence[LogEntry]) -> list[LogSegment]:
        """Return a window's segments, those whose tables are damaged as if they had nothing where
        that cannot be told: under a later one that covers the whole disk. Raises: DataIntegrity;
        Conflict when they are too long.
        """
        self._load(_ids(window))
        found: list[LogSegment] = []
        is_covered = False
        for entry in reversed(window):
            for each in reversed(entry.segments):
                if is_covered and each in self._unreadable:
                    found.append(LogSegment(each, np.zeros(0, EXTENT_DTYPE), 0))
                    continue
                found.append(self._table(each))
                is_covered = is_covered or found[-1].covers(-(-entry.size_bytes // BLOCK))
        return found[::-1]

    def _table(self, segment_id: int) -> LogSegment:
        if segment_id in self._unreadable:
            raise self._unreadable[segment_id]
        return self._tables[segment_id]

    def _load(self, ids: Sequence[int]) -> None:
        """Have the tables of these segments in memory, or why they cannot be read; others as long
        as there is room. Raises: Conflict when there is none for these alone."""
        if self._extents_held > EXTENTS_MAX // 2:
            wanted = frozenset(ids)
            self._tables = {each: it for each, it in self._tables.items() if each in wanted}
        missing = [
            each for each in ids if each not in self._tables and each not in self._unreadable
        ]
        with ThreadPoolExecutor(READERS) as readers:
            for segment_id, found in zip(
                missing, readers.map(self._try_table, missing), strict=True
            ):
                if isinstance(found, LogSegment):
                    self._tables[segment_id] = found
                else:
                    self._unreadable[segment_id] = found
        if sum(len(self._tables[each].extents) for each in ids if each in self._tables) > (
            EXTENTS_MAX
        ):
            self._tables.clear()
            raise Conflict(f"disk {self._disk} has too many extents to be compacted at once")

    @property
    def _extents_held(self) -> int:
        return sum(len(each.extents) for each in self._tables.values())

    def _read_in_turn(self, ids: Sequence[int]) -> Iterator[LogSegment]:
        """Yield the segments' tables, keeping none. Raises: DataIntegrity."""

        def known_or_read(segment_id: int) -> LogSegment | DataIntegrity:
            known = self._tables.get(segment_id) or self._unreadable.get(segment_id)
            return known or self._try_table(segment_id)

        with ThreadPoolExecutor(READERS) as readers:
            for low in range(0, len(ids), _TABLES_AT_ONCE):
                for found in readers.map(known_or_read, ids[low : low + _TABLES_AT_ONCE]):
                    if isinstance(found, DataIntegrity):
                        raise found
                    yield found

    def _try_table(self, segment_id: int) -> LogSegment | DataIntegrity:
        try:
            return self._read_table(segment_id)
        except DataIntegrity as error:
            return error

    def _read_table(self, segment_id: int) -> LogSegment:
        table = read_table(self._store, segment_name(self._item_id, self._disk, segment_id))
        header = table.header
        if (header.item_id, header.disk, header.unit) != (self._item_id, self._disk, BLOCKS):
            raise SegmentCorrupt(f"segment {segment_id:x} belongs to another disk")
        return LogSegment(segment_id, table.extents, table.data_bytes // BLOCK)

    # -------------------------------------------------------------------------- new segments

    def _store_group(
        self,
        group: Group,
        place: Position,
        numbers: Numbers,
        done: _Round,
        is_stopping: Callable[[], bool],
    ) -> int:
        """Store one new segment, read it back, and return its id."""
        self._check_running(is_stopping)
        began = time.monotonic()
        content = self._read(group)
        encoded = encode_segment(
            SegmentHeader(self._item_id, self._disk, place[0], place[1], BLOCKS),
            group.extents,
            content,
            compression=self._compression,
            key=keys_of(self._store).writing,
        )
        segment_id = make_segment_id(numbers.claim, numbers.take())
        name = segment_name(self._item_id, self._disk, segment_id)
        self._store.create(name, encoded.parts)
        if self._store.get(name) != join(encoded.parts):
            raise SegmentCorrupt(f"segment {name} is not what was stored")
        done.moved[segment_id] = group
        done.written_bytes += encoded.bytes
        self._tables[segment_id] = LogSegment(segment_id, group.extents, len(group.segments))
        self._sleep(min(time.monotonic() - began, 1.0))
        return segment_id

    def _read(self, group: Group) -> bytes:
        reader = BlockReader(self._store, self._item_id, self._disk)
        try:
            return reader.read(group.segments, group.positions).tobytes()
        except DataIntegrity as error:
            self._spared.update(_damaged(reader, group))
            get_logger().warning("compaction_met_damage", disk=self._disk, problem=str(error))
            raise
        finally:
            reader.close()

    def _check_running(self, is_stopping: Callable[[], bool]) -> None:
        if is_stopping():
            raise Unavailable("the worker stops; what was begun is begun again by the next one")

    # -------------------------------------------------------------------------- new maps

    def _store_maps(
        self,
        log: Sequence[LogEntry],
        new: Sequence[LogEntry],
        first: int,
        numbers: Numbers,
        done: _Round,
        is_stopping: Callable[[], bool],
    ) -> list[LogEntry]:
        """Return the new log with maps stored where replaying would be long. Those from the first
        victim on refer to victims: they go; those before stay."""
        kept = list(new[:first])
        start = max((at for at, entry in enumerate(kept) if entry.checkpoint), default=-1)
        block_map = BlockMap(self._item_id, self._disk, 0)
        if start >= 0:
            block_map = open_checkpoint(self._store, kept[start].checkpoint)
        tables = self._read_in_turn(_ids(new[start + 1 :]))
        segments = extents = 0
        for at, entry in enumerate(new[start + 1 :], start + 1):
            block_map.grow(max(entry.size_bytes, block_map.size_bytes))
            for each in entry.segments:
                table = next(tables)
                block_map.apply(each, table.extents)
                segments += 1
                extents += len(table.extents)
            if at < first:
                continue
            checkpoint = ""
            if entry.is_end and is_replay_long(segments, extents):
                self._check_running(is_stopping)
                checkpoint = self._store_map(block_map, entry, numbers, done)
                segments = extents = 0
            kept.append(replace(entry, checkpoint=checkpoint))
        self._check_newest(log, block_map, done)
        return kept

    def _store_map(
        self, block_map: BlockMap, entry: LogEntry, numbers: Numbers, done: _Round
    ) -> str:
        name = checkpoint_name(self._item_id, self._disk, numbers.claim, numbers.take())
        block_map.write_checkpoint(self._store, name, epoch=entry.position[0])
        done.written_bytes += self._store.size(name)
        return name

    def _check_newest(self, log: Sequence[LogEntry], block_map: BlockMap, done: _Round) -> None:
        """Return if the newest map shows what the old log makes of the disk."""
        start = max((at for at, entry in enumerate(log) if entry.checkpoint), default=-1)
        old = replay_map(
            self._store,
            self._item_id,
            self._disk,
            log[-1].size_bytes,
            log[start].checkpoint if start >= 0 else "",
            [each for entry in log[start + 1 :] for each in entry.segments],
        )
        check_maps(old, block_map, done.moved)


def _damaged(reader: BlockReader, group: Group) -> Iterator[int]:
    """Yield the segments of which what is wanted cannot be read."""
    for each in np.unique(group.segments).tolist():
        mine = group.segments == each
        try:
            reader.read(group.segments[mine], group.positions[mine])
        except DataIntegrity:
            yield each


def _ids(entries: Sequence[LogEntry]) -> tuple[int, ...]:
    return tuple(each for entry in entries for each in entry.segments)


def _is_one_cut(entries: Sequence[LogEntry]) -> bool:
    return sum(bool(entry.segments) for entry in entries) < 2


def _last_victim(entries: Sequence[LogEntry], plan: WindowPlan) -> Position:
    return next(entry.position for entry in entries if plan.victims[-1] in entry.segments)
