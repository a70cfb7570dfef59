"""Which store holds a disk's replica log, told by what lies there.

Owns: telling one log's objects from another's of the same name. Must not know: who asks. An item
that was reprotected has a log in each direction, and both number their objects from the first
claim on: a name says nothing, the epoch in the object does.
"""

from __future__ import annotations

from dataclasses import dataclass

from leeward.core.errors import ObjectMissing, SegmentCorrupt
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog import Catalog
from leeward.replica.checkpoint import read_checkpoint_head
from leeward.replica.layout import parse_replica_object, segment_name
from leeward.replica.segment import read_table


@dataclass(frozen=True, slots=True)
class LogObject:
    """One object that a disk's log names, and the epoch it was written under."""

    name: str
    epoch: int


def newest_object(
    catalog: Catalog, disk: str, point: RecoveryPoint | None = None
) -> LogObject | None:
    """Return the newest object that the disk's log names, of those up to `point` if one is given;
    None if it names none: then any store will do."""
    for cut, entry in reversed(catalog.state.disk_entries(disk)):
        if point is not None and cut.position > (point.epoch, point.sequence):
            continue
        if entry.checkpoint:
            return LogObject(entry.checkpoint, cut.epoch)
        if entry.segments:
            return LogObject(segment_name(catalog.item_id, disk, entry.segments[-1]), cut.epoch)
    return None


def has_object(store: ObjectStore, wanted: LogObject) -> bool:
    """Say whether that very object is there. One that is damaged counts: who reads it will say so.

    Raises: KeyMissing, Unavailable.
    """
    try:
        return _epoch_of(store, wanted.name) == wanted.epoch
    except ObjectMissing:
        return False
    except SegmentCorrupt:
        return True


def _epoch_of(store: ObjectStore, name: str) -> int:
    if (parse_replica_object(name) or ("",))[0] == "maps":
        return read_checkpoint_head(store, name).epoch
    return read_table(store, name).header.epoch
