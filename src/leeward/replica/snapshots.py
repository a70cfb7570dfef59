"""Snapshots of a catalog: what all versions up to one say together, so that nobody begins at 1.

Owns: storing the state now and then, which snapshots stay, and reading the newest that is good.
Must not know: the log. A snapshot only saves time, but for those from the last floors on: they are
what is left of the versions before. FORMAT.md 6.
"""

from __future__ import annotations

from leeward.core.errors import (
    DataIntegrity,
    LeewardError,
    NotFound,
    ObjectExists,
    SegmentCorrupt,
)
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.replica.catalog_state import State
from leeward.replica.envelope import (
    KIND_SNAPSHOT,
    parse_envelope,
    read_small_object,
    seal_envelope,
)
from leeward.replica.layout import parse_snapshot_version, snapshot_name, snapshots_prefix
from leeward.replica.sealing import keys_of

SNAPSHOT_VERSIONS = 256
"""An owner stores the full state whenever the last one is this many versions old."""
SNAPSHOTS_KEPT = 3
"""The newest; those of the last two floors stay besides."""

log = get_logger()


class Snapshots:
    """One item's snapshots, as last listed. One thread at a time."""

    def __init__(self, store: ObjectStore, item_id: str) -> None:
        self._store = store
        self._item_id = item_id
        self._versions: list[int] = []
        self._tried = 0
        """The newest version of which one was to be stored."""
        self._floor_number = 0
        """Of the newest floor that one of them says or was to say."""

    def newest_state(self) -> State:
        """Return the state in the newest snapshot that can be read, the empty one if none can.

        Lists them. Raises: KeyMissing, Unavailable.
        """
        self._versions = snapshot_versions(self._store, self._item_id)
        for version in reversed(self._versions):
            try:
                state = read_snapshot(self._store, self._item_id, version)
            except (NotFound, DataIntegrity) as error:
                log.warning(
                    "catalog_snapshot_skipped",
                    item=self._item_id,
                    version=version,
                    problem=str(error),
                )
                continue
            self._floor_number = state.floor.number
            return state
        self._floor_number = 0
        return State(item_id=self._item_id, is_complete=True)

    def has(self, version: int) -> bool:
        """Say whether there is one of that version, as far as is known."""
        return version in self._versions

    def store(self, state: State) -> None:
        """Store the full state if it is time, and delete the snapshots that nobody needs any more.
        Failing to is no failure."""
        newest = self._versions[-1] if self._versions else 0
        is_floor_known = state.floor.number == self._floor_number
        if state.version - max(newest, self._tried) < SNAPSHOT_VERSIONS and is_floor_known:
            return
        self._tried, self._floor_number = state.version, state.floor.number
        key = keys_of(self._store).writing
        try:
            data = seal_envelope(KIND_SNAPSHOT, state.epoch, state, key)
            self._store.create(snapshot_name(self._item_id, state.version), data)
        except ObjectExists:
            pass
        except LeewardError as error:
            log.warning("catalog_snapshot_failed", item=self._item_id, problem=str(error))
            return
        if state.version not in self._versions:
            self._versions.append(state.version)
        self._delete_old({state.floor.version, state.floor.previous})

    def _delete_old(self, of_floors: set[int]) -> None:
        for version in self._versions[:-SNAPSHOTS_KEPT]:
            if version in of_floors:
                continue
            try:
                self._store.delete(snapshot_name(self._item_id, version))
            except LeewardError as error:
                log.warning("catalog_snapshot_not_deleted", item=self._item_id, problem=str(error))
                return
            self._versions.remove(version)


def snapshot_versions(store: ObjectStore, item_id: str) -> list[int]:
    """Return the versions that there are snapshots of, oldest first. Raises: Unavailable."""
    names = store.list(snapshots_prefix(item_id))
    return sorted(filter(None, map(parse_snapshot_version, names)))


def read_snapshot(store: ObjectStore, item_id: str, version: int) -> State:
    """Return the state after a version.

    Raises: NotFound, SegmentCorrupt, KeyMissing, Unavailable.
    """
    data = read_small_object(store, snapshot_name(item_id, version))
    _, state = parse_envelope(data, KIND_SNAPSHOT, State, keys_of(store))
    if (state.item_id, state.version) != (item_id, version) or not state.is_complete:
        raise SegmentCorrupt(f"snapshot {version} of item {item_id} is misplaced or not complete")
    if state.floor.version > version:
        raise SegmentCorrupt(f"snapshot {version} of item {item_id} lies below its floor")
    return state
