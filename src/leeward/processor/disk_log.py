"""A disk's log in the catalog as a compaction sees it, and what becomes of it.

Owns: windows, and whether a compacted log still fits the log there is. Must not know: stores, what
is dead. Pure; compaction.py makes the objects, item.py appends the result to the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leeward.replica.catalog_state import LoggedCut, State

Position = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a cut's record says of the disk. is_end: somebody may want the disk as after it."""

    position: Position
    size_bytes: int
    segments: tuple[int, ...]
    checkpoint: str
    is_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCompaction:
    """A disk's log as it is to be, everything it names stored; valid under `claim` only.

    before: the segments that the cuts listed when it was made.
    """

    disk: str
    claim: int
    before: Mapping[Position, tuple[int, ...]]
    log: Mapping[Position, LoggedCut]
    victims: int
    moved_bytes: int
    written_bytes: int


def log_of(state: State, disk: str) -> list[LogEntry]:
    """Return a disk's log, oldest cut first."""
    ends = state.ends()
    return [
        LogEntry(
            cut.position,
            entry.size_bytes,
            entry.segments,
            entry.checkpoint,
            cut.position in ends,
        )
        for cut, entry in state.disk_entries(disk)
    ]


def compacted_log(state: State, made: DiskCompaction) -> list[LoggedCut] | None:
    """Return all that the disk's log is to have of the cuts there are now, those that came since
    without the maps they stored: these refer to victims. None if it is not the log that was
    compacted any more, or if the chain has been restarted since: the map stored then may be all
    that tells how to pass over something damaged."""
    if any(cut.restarts and cut.position > max(made.before) for cut in state.cuts):
        return None
    log: list[LoggedCut] = []
    left = dict(made.log)
    for entry in log_of(state, made.disk):
        planned = left.pop(entry.position, None)
        if planned is None:
            planned = LoggedCut(
                epoch=entry.position[0], sequence=entry.position[1], segments=entry.segments
            )
        elif made.before[entry.position] != entry.segments:
            return None
        if planned.segments or planned.checkpoint:
            log.append(planned)
    return None if any(planned.segments for planned in left.values()) else log


def windows_of(log: Sequence[LogEntry]) -> Iterator[slice]:
    """Yield what lies between the ends, each with the end it leads to."""
    first = 0
    for index, entry in enumerate(log):
        if entry.is_end:
            yield slice(first, index + 1)
            first = index + 1
