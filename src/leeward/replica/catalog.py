"""The catalog of an item's recovery points: a linear log of create-only objects.

Owns: appending to it as its one owner, and reading it. Must not know: bytes of disks. Lies in the
target's store; the worker appends, whoever opens a recovery point reads. FORMAT.md 6.

Version n + 1 is created only by somebody who has read version n, and creating it fails if it
exists. So whoever took over later is seen by the earlier owner at its next append: it is Fenced.

Old versions are deleted, below a floor that was created before (floors.py). Whoever has read or
created versions looks for a newer floor before it believes them: as long as none lies above the
version it began with, none of those after it has ever been deleted, so each was created only once.
Decision 69.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from leeward.core.errors import (
    Conflict,
    DataIntegrity,
    Fenced,
    NotFound,
    ObjectExists,
    SegmentCorrupt,
    Unavailable,
)
from leeward.model.recovery import Consistency, RecoveryPoint, point_id
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog_state import (
    KIND_APPLY,
    KIND_CLAIM,
    KIND_COMPACT,
    KIND_FREE,
    KIND_QUARANTINE,
    KIND_RETAIN,
    KIND_SEAL,
    AppliedCut,
    Floor,
    LoggedCut,
    Record,
    State,
    check_cuts,
    follow,
    share_configs,
)
from leeward.replica.envelope import KIND_RECORD, read_small_object, seal_envelope
from leeward.replica.floors import create_floor, newest_floor
from leeward.replica.layout import (
    CLAIM_MAX,
    catalog_prefix,
    claims_before,
    parse_record_version,
    record_name,
)
from leeward.replica.records import parse_record, read_on, says_the_same
from leeward.replica.sealing import keys_of
from leeward.replica.snapshots import Snapshots

LATEST = "latest"
LATEST_APP_CONSISTENT = "latest-app-consistent"

_TAKE_OVER_ATTEMPTS = 32
_READ_ATTEMPTS = 32


class Catalog:
    """An item's catalog as last read. One thread at a time."""

    def __init__(self, store: ObjectStore, item_id: str) -> None:
        self._store = store
        self._keys = keys_of(store)
        self._snapshots = Snapshots(store, item_id)
        self._state = self._snapshots.newest_state()
        self._claim = 0
        self._doubted = 0
        """A version that was to be created and may be there, durably or not; 0: none."""

    @classmethod
    def open(cls, store: ObjectStore, item_id: str) -> Catalog:
        """Return the item's catalog, up to date; an item nobody has claimed has an empty one.

        Reads the newest snapshot and what follows it. Raises: SegmentCorrupt, Unavailable.
        """
        catalog = cls(store, item_id)
        catalog.refresh()
        return catalog

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    @property
    def item_id(self) -> str:
        return self._state.item_id

    @property
    def version(self) -> int:
        return self._state.version

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def claim(self) -> int:
        """This object's own claim, 0 if it has made none."""
        return self._claim

    @property
    def disk_urls(self) -> dict[str, str]:
        """Where each disk's replica is, as the owner said when it took over."""
        return dict(self._state.disk_urls)

    @property
    def points(self) -> tuple[RecoveryPoint, ...]:
        """The recovery points, oldest first."""
        return self._state.points()

    @property
    def about(self) -> dict[str, object]:
        """What the item is to the service, as the owner said when it took over."""
        return dict(self._state.about)

    @property
    def quarantined(self) -> frozenset[str]:
        """Ids of the points that touch something damaged: no failover is to use them."""
        return frozenset(point_id(*position) for position in self._state.quarantined)

    @property
    def state(self) -> State:
        """All that it says; later changes make another one."""
        return self._state

    @property
    def healing(self) -> tuple[bool, frozenset[int] | None]:
        """As State.healing."""
        return self._state.healing()

    @property
    def newest_cut(self) -> AppliedCut | None:
        """The newest cut applied, recovery point or not."""
        return self._state.newest_cut

    def find_point(self, wanted: str) -> RecoveryPoint:
        """Return the point with that id; the newest that is not damaged for "latest", of those that
        are application-consistent for "latest-app-consistent". Raises: NotFound.
        """
        points = self.points
        if wanted == LATEST and points:
            damaged = self.quarantined
            return next((p for p in reversed(points) if p.id not in damaged), points[-1])
        if wanted == LATEST_APP_CONSISTENT:
            damaged = self.quarantined
            whole = [p for p in reversed(points) if p.id not in damaged]
            points = tuple(p for p in whole if p.consistency is Consistency.APPLICATION)[:1]
            wanted = points[0].id if points else wanted
        for point in points:
            if point.id == wanted:
                return point
        raise NotFound(
            f"there is no recovery point {wanted}",
            field="recovery_point",
            hint="`leeward recovery-point list ITEM` lists them",
        )

    def disk_sizes(self, point: RecoveryPoint | str) -> dict[str, int]:
        """Return the bytes of each disk that the point has. Raises: NotFound."""
        return {entry.disk: entry.size_bytes for entry in self._cut(point).disks}

    def vm_config(self, point: RecoveryPoint | str) -> dict[str, object]:
        """Return the VM's configuration at the point. Raises: NotFound."""
        return dict(self._state.configs[self._cut(point).config_sha256])

    def disk_log(self, disk: str, point: RecoveryPoint | str) -> tuple[str, tuple[int, ...]]:
        """Return (checkpoint name or "", ids of the segments to apply after it) of a disk at a
        point. Raises: NotFound."""
        return self._state.disk_log(disk, self._state.cut_of(_id(point)))

    def newest_disk_log(self, disk: str) -> tuple[str, tuple[int, ...]]:
        """Return the same for the newest cut that has the disk; ("", ()) if none has."""
        for index in range(len(self._state.cuts) - 1, -1, -1):
            with suppress(NotFound):
                return self._state.disk_log(disk, index)
        return "", ()

    def _cut(self, point: RecoveryPoint | str) -> AppliedCut:
        return self._state.cuts[self._state.cut_of(_id(point))]

    # ── reading on ───────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> None:
        """Read the versions written since, and believe them once no newer floor lies above the
        version it began with: two requests when there is nothing new.

        Raises: SegmentCorrupt, KeyMissing, Unavailable.
        """
        for _ in range(_READ_ATTEMPTS):
            if self._read_to_the_end():
                break
        else:
            raise Unavailable(f"the catalog of item {self.item_id} cannot be read to its end")
        if 0 < self._doubted <= self._state.version:
            name = record_name(self.item_id, self._state.version)
            with suppress(NotFound):  # it lies below a floor by now: nobody needs it
                self._make_durable(name, read_small_object(self._store, name))
            self._doubted = 0

    def _read_to_the_end(self) -> bool:
        """Read on; False if there is a better place to begin at, from which to read on anew."""
        began = self._state
        read, shas, problem = read_on(self._store, began)
        floor: Floor | None = None
        try:
            floor = newest_floor(self._store, self.item_id, began.floor)
        except DataIntegrity as error:
            problem = error
        if floor and (floor.version <= began.version or shas.get(floor.version) == floor.sha256):
            self._state = replace(read, floor=floor)
            if problem is not None:
                raise problem
            return self._state.version > 0 or self._is_empty()
        # what was read may be what somebody wrote where versions had been deleted
        newest = self._snapshots.newest_state()
        if newest.version <= began.version:
            raise problem or SegmentCorrupt(
                f"no snapshot of item {self.item_id} from version {floor.version if floor else 0} "
                "on can be read, and the versions before it do not count any more"
            )
        self._state = newest
        return False

    def _is_empty(self) -> bool:
        """Say whether there is no version at all where the first one was not found.

        Raises: SegmentCorrupt: there are others, which cannot be read from nowhere.
        """
        names = self._store.list(catalog_prefix(self.item_id))
        versions = {version for version in map(parse_record_version, names) if version}
        if versions and 1 not in versions:
            raise SegmentCorrupt(
                f"the catalog of item {self.item_id} has no beginning: neither a snapshot that can "
                f"be read nor version 1 is there, though version {max(versions)} is"
            )
        return not versions

    # ── appending ────────────────────────────────────────────────────────────────────────────────

    def take_over(
        self,
        epoch: int,
        *,
        owner: str = "",
        disk_urls: Mapping[str, str] | None = None,
        about: Mapping[str, object] | None = None,
        is_resumed: bool = False,
    ) -> int:
        """Become the item's only owner and return the claim number, never used before: names made
        with it are nobody else's.

        owner: who. disk_urls: disk → object store URL of its replica, kept for recovery.
        about: what the item is to the service, kept for making a lost vault anew. is_resumed: only
        if the last owner was the same, or has not said who it was.
        Raises: Fenced if the item has a newer epoch, or another owner where it must not; Conflict,
        Unavailable.
        """
        for _ in range(_TAKE_OVER_ATTEMPTS):
            self.refresh()
            self._check_epoch(epoch)
            if is_resumed and self._state.owner not in ("", owner):
                raise Fenced(
                    f"item {self.item_id} has been given to {self._state.owner}",
                    hint="the service says who goes on with it",
                )
            claim = (self._state.claim if self._state.version else claims_before(epoch)) + 1
            if claim > CLAIM_MAX:
                raise Conflict(f"item {self.item_id} has used up its claims")
            record = self._record(
                KIND_CLAIM,
                claim=claim,
                epoch=epoch,
                owner=owner,
                disk_urls=dict(disk_urls or {}),
                about=dict(about or {}),
            )
            data = self._seal(record)
            if self._create(record, data) == data and self._counts(record.version):
                self._state = follow(self._state, record, hashlib.sha256(data).hexdigest())
                self._claim = claim
                return claim
        raise Conflict(f"too many others are taking over item {self.item_id}")

    def check_owner(self) -> None:
        """Return if, as far as has been read, nobody has taken over from this owner.

        Raises: Fenced; Conflict if it never took over.
        """
        if self._claim == 0:
            raise Conflict(f"item {self.item_id} has not been taken over")
        if self._state.claim != self._claim:
            raise Fenced(
                f"item {self.item_id} has been taken over",
                hint=f"claim {self._state.claim} ({self._state.owner}) is newer than {self._claim}",
            )

    def append_cuts(self, cuts: Iterable[AppliedCut]) -> None:
        """Make the cuts part of the log, all or none; from then on their points are listed.

        Everything they name must be stored already. Raises: Fenced; Conflict if they do not follow
        the newest cut or the log has moved; Unavailable: unknown whether appended, ask again with
        the same cuts.
        """
        self.check_owner()
        stored, configs = share_configs(cuts)
        if not stored:
            return
        if stored[0].epoch < self.epoch:
            self._check_epoch(stored[0].epoch)
        check_cuts(self._state, stored)
        new = {key: value for key, value in configs.items() if key not in self._state.configs}
        self._append(self._record(KIND_APPLY, cuts=stored, configs=new))

    def seal(self, new_epoch: int) -> None:
        """Raise the item's epoch: cuts of older ones are refused from then on. Idempotent.

        Raises: Fenced if the epoch is newer already; Conflict, Unavailable.
        """
        self.check_owner()
        self._check_epoch(new_epoch)
        if new_epoch != self.epoch:
            self._append(self._record(KIND_SEAL, epoch=new_epoch))

    def drop_points(self, ids: Iterable[str]) -> None:
        """Make these recovery points not exist; ids of none are ignored.

        Raises: Fenced, Conflict, Unavailable.
        """
        self.check_owner()
        known = {point.id for point in self.points}
        dropped = tuple(sorted(known.intersection(ids)))
        if dropped:
            self._append(self._record(KIND_RETAIN, dropped=dropped))

    def quarantine(self, damaged: Iterable[str], *, released: Iterable[str] = ()) -> None:
        """Make the `damaged` points known as such and the `released` ones whole again; ids of no
        point are ignored. Raises: Fenced, Conflict, Unavailable.
        """
        self.check_owner()
        known = {point.id for point in self.points}
        was = {point_id(*position) for position in self._state.quarantined}
        added = tuple(sorted(known.intersection(damaged) - was))
        gone = tuple(sorted(was.intersection(released) - set(damaged)))
        if added or gone:
            self._append(self._record(KIND_QUARANTINE, quarantined=added, released=gone))

    def compact(self, disk: str, log: Iterable[LoggedCut]) -> None:
        """Make `log` all that the disk's log has of the cuts there are: the disk at every recovery
        point must be what it was. What only the log before named is garbage from then on.

        Raises: Fenced, Conflict, Unavailable.
        """
        self.check_owner()
        self._append(self._record(KIND_COMPACT, disk=disk, log=tuple(log)))

    def free(self, *, objects: int, bytes: int) -> None:
        """Note that objects which this version does not name are being deleted: no version after
        it can name them. Raises: Fenced, Conflict, Unavailable: then none may be deleted.
        """
        self.check_owner()
        self._append(self._record(KIND_FREE, freed_objects=objects, freed_bytes=bytes))

    def raise_floor(self, version: int, sha256: str) -> bool:
        """Have all readers begin at that version from now on, one that a snapshot is kept of: those
        below the floor before it may be deleted then. Says whether it has been done.

        sha256: of that version.
        Raises: Fenced, Conflict, SegmentCorrupt; Unavailable: unknown whether it has been done.
        """
        self.check_owner()
        before = self._state.floor
        is_higher = before.version < version <= self._state.version
        if not is_higher or not self._snapshots.has(version):
            return False
        if before.number:
            create_floor(self._store, self.epoch, before)
        floor = Floor(
            item_id=self.item_id,
            number=before.number + 1,
            version=version,
            sha256=sha256,
            previous=before.version,
        )
        if not create_floor(self._store, self.epoch, floor):
            self.refresh()
            self.check_owner()
            return False
        self._state = replace(self._state, floor=floor)
        return True

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise Fenced(f"item {self.item_id} is at epoch {self.epoch}, newer than {epoch}")

    def _record(self, kind: str, **fields: Any) -> Record:
        state = self._state
        return Record(
            item_id=state.item_id,
            version=state.version + 1,
            claim=fields.pop("claim", self._claim),
            epoch=fields.pop("epoch", state.epoch),
            parent_sha256=state.sha256,
            nonce=secrets.token_hex(16),
            kind=kind,
            **fields,
        )

    def _seal(self, record: Record) -> bytes:
        return seal_envelope(KIND_RECORD, record.epoch, record, self._keys.writing)

    def _append(self, record: Record) -> None:
        data = self._seal(record)
        after = follow(self._state, record, hashlib.sha256(data).hexdigest())
        found = self._create(record, data)
        if found == data and self._counts(record.version):
            self._state = replace(after, floor=self._state.floor)
        else:
            self.refresh()
            self.check_owner()
            is_below = record.version <= self._state.floor.version
            if is_below or not says_the_same(record, parse_record(found, self._keys)):
                raise Conflict(
                    f"catalog version {record.version} of item {self.item_id} is another one",
                    hint="an append whose reply was lost has taken place; read the catalog again",
                )
        self._snapshots.store(self._state)

    def _counts(self, version: int) -> bool:
        """Say whether the version after the one last read, which this owner has just created, is
        the catalog's: no floor lies above the one before it. Else it is taken away again, if it
        lies where versions are deleted. Raises: SegmentCorrupt, Unavailable: unknown.
        """
        floor = newest_floor(self._store, self.item_id, self._state.floor)
        if floor.version < version:
            self._state = replace(self._state, floor=floor)
            return True
        if version < floor.previous:
            with suppress(Unavailable):
                self._store.delete(record_name(self.item_id, version))
        return False

    def _create(self, record: Record, data: bytes) -> bytes:
        """Return the bytes that the record's version has now, durably: `data`, or what came before
        it. Raises: Unavailable when that cannot be found out.
        """
        name = record_name(self.item_id, record.version)
        self._doubted = record.version
        try:
            self._store.create(name, data)
            found = data
        except (ObjectExists, Unavailable) as error:
            try:
                found = read_small_object(self._store, name)
            except NotFound:
                raise Unavailable(f"the catalog cannot be written: {error.message}") from error
            if isinstance(error, Unavailable):
                self._make_durable(name, found)
        self._doubted = 0
        return found

    def _make_durable(self, name: str, data: bytes) -> None:
        """Have an object that can be read be there after a power cut, too: a local store that could
        not sync its directory shows what it would lose; what a create says is there is."""
        with suppress(ObjectExists):
            self._store.create(name, data)


def _id(point: RecoveryPoint | str) -> str:
    return point if isinstance(point, str) else point.id
