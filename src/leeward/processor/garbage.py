"""Deleting what no catalog version names any more: segments and maps of one item.

Owns: what is garbage, for how long it has been, and who may still read it. Must not know: how a
log is compacted. Runs beside the item's steps, in one thread; item.py says what it owns.

An object is garbage when the newest catalog version does not name it and its owner can never make
a version that does: it was made under an older claim, or under this one and given up. It is deleted
when this process has seen it so for GRACE_SECONDS, by a clock that does not step, when no reader
has pinned a version from before that, and after a version of ours says so: whoever has lost the
item finds out there, and an append of ours whose reply was lost cannot take effect any more.
Names are never used twice: whatever a paused collector deletes late is garbage still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from leeward.core.clock import Clock
from leeward.object_store.store import ObjectStore
from leeward.processor.apply import Numbers
from leeward.processor.stored_maps import StoredMaps
from leeward.replica.catalog_state import State
from leeward.replica.layout import NUMBER_BITS, disk_prefix, parse_replica_object, segment_name
from leeward.replica.pins import PinWatch

GRACE_SECONDS = 600.0
"""For readers that do not pin."""

Name = tuple[str, str]
"""(disk, object name)."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How an item's log stands, and what its owner may still put into it.

    numbers: of the owner's claim. settled: the last number of it that has been used or given up.
    copied: segments stored but not in the log yet.
    """

    state: State
    numbers: Numbers
    settled: int
    copied: frozenset[int]

    def may_become_named(self, segment_or_map: int) -> bool:
        """Say whether an object of that claim and number may yet be put into the log."""
        claim, number = segment_or_map >> NUMBER_BITS, segment_or_map & ((1 << NUMBER_BITS) - 1)
        if segment_or_map in self.copied:
            return True
        return (claim, number) > (self.numbers.claim, self.settled)


@dataclass(frozen=True, slots=True)
class Garbage:
    """names: what may be deleted, and its bytes."""

    names: Mapping[Name, int]

    @property
    def bytes(self) -> int:
        return sum(self.names.values())


class LogOwner(Protocol):
    """The item's one writer, as far as deleting needs it."""

    def stand(self) -> Stand: ...
    def free(self, choose: Callable[[Stand], Garbage]) -> Garbage: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    since: float
    version: int


@dataclass(frozen=True, slots=True)
class Collected:
    """stored_bytes: of all segments and maps. garbage_bytes: of those that are to be deleted yet.
    pins: readers found, if there was anything to delete."""

    stored_bytes: int = 0
    garbage_bytes: int = 0
    freed_objects: int = 0
    freed_bytes: int = 0
    pins: int = 0


class Collector:
    """Deletes one item's garbage. Used by one thread at a time."""

    def __init__(
        self,
        owner: LogOwner,
        item_id: str,
        catalog_store: ObjectStore,
        stores: Mapping[str, ObjectStore],
        clock: Clock,
    ) -> None:
        self._owner = owner
        self._item_id = item_id
        self._stores = stores
        self._clock = clock
        self._pins = PinWatch(catalog_store, item_id, clock.monotonic)
        self._seen: dict[Name, _Seen] = {}
        self._maps = {disk: StoredMaps(store) for disk, store in stores.items()}

    @property
    def is_waiting(self) -> bool:
        """Say whether there is garbage that is too young to be deleted, or pinned."""
        return bool(self._seen)

    def collect(
        self,
        *,
        dry_run: bool = False,
        held_version: int | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> Collected:
        """Delete what is due and return what is stored.

        held_version: somebody in this process reads as of that version. dry_run: change nothing.
        Raises: Unavailable; DataIntegrity when a map that is named cannot be read; Fenced.
        """
        stand = self._owner.stand()
        sizes = {
            (disk, name): size
            for disk, store in self._stores.items()
            for name, size in store.sizes(disk_prefix(self._item_id, disk)).items()
        }
        named = _listed(self._item_id, stand.state)
        garbage = {name: size for name, size in sizes.items() if _is_garbage(name, named, stand)}
        for disk, maps in self._maps.items():
            maps.follow(name for where, name in named if where == disk)
            needed = maps.needed([name for where, name in garbage if where == disk])
            garbage = {name: size for name, size in garbage.items() if name[1] not in needed}
        now = self._clock.monotonic()
        self._seen = {
            name: self._seen.get(name, _Seen(now, stand.state.version)) for name in garbage
        }
        due = [name for name in garbage if now - self._seen[name].since >= GRACE_SECONDS]
        pins: list[int] = []
        freed: dict[Name, int] = {}
        if due and not dry_run:
            pins = self._pins.versions()
            oldest = min(
                [*pins, *([held_version] if held_version is not None else [])], default=None
            )
            free = {
                name: garbage[name]
                for name in due
                if oldest is None or oldest >= self._seen[name].version
            }
            freed = self._delete(free, is_stopping)
        return Collected(
            stored_bytes=sum(sizes.values()) - sum(freed.values()),
            garbage_bytes=sum(garbage.values()) - sum(freed.values()),
            freed_objects=len(freed),
            freed_bytes=sum(freed.values()),
            pins=len(pins),
        )

    def _delete(self, free: Mapping[Name, int], is_stopping: Callable[[], bool]) -> dict[Name, int]:
        """Delete of these objects what is garbage still once a version says so."""
        if not free or is_stopping():
            return {}

        def choose(stand: Stand) -> Garbage:
            named = _listed(self._item_id, stand.state)
            return Garbage(
                {name: size for name, size in free.items() if _is_garbage(name, named, stand)}
            )

        condemned = self._owner.free(choose)
        deleted: dict[Name, int] = {}
        for (disk, name), size in condemned.names.items():
            if is_stopping():
                break
            self._stores[disk].delete(name)
            deleted[disk, name] = size
            del self._seen[disk, name]
        return deleted


def _listed(item_id: str, state: State) -> set[Name]:
    """Return the objects that a version itself names."""
    named: set[Name] = set()
    for cut in state.cuts:
        for entry in cut.disks:
            named.update(
                (entry.disk, segment_name(item_id, entry.disk, each)) for each in entry.segments
            )
            if entry.checkpoint:
                named.add((entry.disk, entry.checkpoint))
    return named


def _is_garbage(name: Name, named: set[Name], stand: Stand) -> bool:
    parsed = parse_replica_object(name[1])
    return parsed is not None and name not in named and not stand.may_become_named(parsed[1])
