"""Deleting catalog records that a snapshot covers: the floor first, the records after it.

Owns: when a floor is raised, what is verified before, how many records are deleted at a time. Must
not know: how a catalog is read. Runs beside the item's steps, in one thread; item.py says what it
owns. Decision 69.

The floor is one of the newest snapshots, and records are deleted below the floor before it: from
there on all stays that it takes to read the log without the newest floor's snapshot. Whoever
deletes need not own the item any more: what lies below a floor counts for nobody, for ever.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from leeward.core.errors import DataIntegrity, NotFound, SegmentCorrupt
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.processor.garbage import Stand
from leeward.replica.catalog_state import Floor, State
from leeward.replica.envelope import read_small_object
from leeward.replica.layout import (
    catalog_prefix,
    floors_prefix,
    parse_record_version,
    record_name,
    snapshots_prefix,
)
from leeward.replica.snapshots import SNAPSHOTS_KEPT, read_snapshot, snapshot_versions

FLOOR_VERSIONS = 4096
"""So many versions lie between two floors, at least: floors are never deleted."""
RECORDS_MAX = 1024
"""Deleted in one round, one after the other: at a round a minute far more than cuts can come."""


class CatalogOwner(Protocol):
    """The item's one writer, as far as this needs it."""

    def stand(self) -> Stand: ...
    def raise_floor(self, version: int, sha256: str) -> bool: ...


class CatalogTrimmer:
    """Keeps one item's catalog short. Used by one thread at a time."""

    def __init__(self, owner: CatalogOwner, item_id: str, store: ObjectStore) -> None:
        self._owner = owner
        self._item_id = item_id
        self._store = store
        self._end = 0
        self._waiting: deque[int] = deque()
        """Versions below the end that are stored yet, oldest first."""
        self._log = get_logger(item=item_id)

    @property
    def is_waiting(self) -> bool:
        """Say whether there are records to be deleted yet, as far as is known."""
        return bool(self._waiting)

    def stored_bytes(self) -> int:
        """Return how much the catalog has stored: records, snapshots and floors. Raises:
        Unavailable."""
        prefixes = (catalog_prefix, snapshots_prefix, floors_prefix)
        sizes = [self._store.sizes(prefix(self._item_id)) for prefix in prefixes]
        return sum(sum(each.values()) for each in sizes)

    def trim(
        self, *, is_thorough: bool = False, is_stopping: Callable[[], bool] = lambda: False
    ) -> int:
        """Raise the floor if it is time, delete what lies below the one before, and return how many
        records that were. is_thorough: all of them.

        Raises: Unavailable; Fenced: the item has been lost.
        """
        state = self._owner.stand().state
        if state.version - state.floor.version >= FLOOR_VERSIONS:
            state = self._raise_floor(state)
        return self._clear(state.floor, is_thorough=is_thorough, is_stopping=is_stopping)

    def _raise_floor(self, state: State) -> State:
        kept = snapshot_versions(self._store, self._item_id)[-SNAPSHOTS_KEPT:]
        if not kept or kept[0] <= state.floor.version:
            return state
        try:
            sha256 = self._verified(kept[0])
        except (DataIntegrity, NotFound) as error:
            self._log.warning("floor_not_raised", version=kept[0], problem=str(error))
            return state
        if not self._owner.raise_floor(kept[0], sha256):
            return state
        self._log.info("floor_raised", version=kept[0])
        return self._owner.stand().state

    def _verified(self, version: int) -> str:
        """Return the sha256 of a version whose snapshot, as it is stored, is good and of just that
        version. Raises: NotFound, DataIntegrity, Unavailable."""
        state = read_snapshot(self._store, self._item_id, version)
        record = read_small_object(self._store, record_name(self._item_id, version))
        if hashlib.sha256(record).hexdigest() != state.sha256:
            raise SegmentCorrupt(f"snapshot {version} is not of the version that is stored")
        return state.sha256

    def _clear(self, floor: Floor, *, is_thorough: bool, is_stopping: Callable[[], bool]) -> int:
        if floor.previous > self._end:
            names = self._store.list(catalog_prefix(self._item_id))
            stored = sorted(filter(None, map(parse_record_version, names)))
            self._waiting = deque(each for each in stored if each < floor.previous)
            self._end = floor.previous
        deleted = 0
        while self._waiting and (is_thorough or deleted < RECORDS_MAX) and not is_stopping():
            self._store.delete(record_name(self._item_id, self._waiting[0]))
            self._waiting.popleft()
            deleted += 1
        return deleted
