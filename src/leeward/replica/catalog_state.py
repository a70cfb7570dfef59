"""The catalog's records, and the state that replaying them gives.

Owns: what each record means. Must not know: stores, owners, retries. Pure; the catalog's log is
replayed through `follow`, and snapshots are this state stored whole. FORMAT.md 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from leeward.core.codec import to_json
from leeward.core.errors import Conflict, InvalidRequest, NotFound, SegmentCorrupt
from leeward.model.recovery import Consistency, FrozenTime, RecoveryPoint, SharedMark, point_id
from leeward.replica.layout import check_segment_id

KIND_CLAIM = "claim"
KIND_APPLY = "apply"
KIND_SEAL = "seal"
KIND_RETAIN = "retain"
KIND_QUARANTINE = "quarantine"
KIND_COMPACT = "compact"
KIND_FREE = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedDisk:
    """What a cut added to one disk's log.

    segments: ids, applied in this order. checkpoint: name of a stored map that holds everything up
    to and including this cut, or "".
    """

    disk: str
    size_bytes: int
    segments: tuple[int, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedCut:
    """One cut in the replica log. disks: every disk of the item, also those without changes.

    vm_config: as the cut brought it. The catalog stores it once, under its digest, and fills in
    config_sha256 instead. restarts: sequences between the cut before and this one never counted.
    """

    epoch: int
    sequence: int
    manifest_sha256: str
    time_ns: int
    consistency: Consistency
    disks: tuple[AppliedDisk, ...]
    vm_config: dict[str, object] = field(default_factory=dict)
    config_sha256: str = ""
    restarts: bool = False
    shared: SharedMark | None = None
    frozen: FrozenTime | None = None

    @property
    def position(self) -> tuple[int, int]:
        return (self.epoch, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCut:
    """What a compaction makes a cut's part of one disk's log."""

    epoch: int
    sequence: int
    segments: tuple[int, ...] = ()
    checkpoint: str = ""

    @property
    def position(self) -> tuple[int, int]:
        return (self.epoch, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One version of the catalog. kind says which of the last fields count.

    claim: of the owner who wrote it. epoch: of the item from this version on. nonce: makes every
    record different, so that its writer recognises it after a lost reply.
    """

    item_id: str
    version: int
    claim: int
    epoch: int
    parent_sha256: str
    nonce: str
    kind: str
    owner: str = ""
    disk_urls: dict[str, str] = field(default_factory=dict)
    cuts: tuple[AppliedCut, ...] = ()
    configs: dict[str, dict[str, object]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    about: dict[str, object] = field(default_factory=dict)
    """What the item is to the service: enough to make its vault anew from the stores alone."""
    quarantined: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    disk: str = ""
    log: tuple[LoggedCut, ...] = ()
    """compact: all that the disk's log has of the cuts of earlier versions."""
    freed_objects: int = 0
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Where the catalog begins to count: no version below `version` does, those below `previous`
    may have been deleted. number: floors are counted from 1; 0 is none at all, all versions count.

    sha256: of that version, as in the record that follows it. previous: version of the floor
    before, 0 if there is none.
    """

    item_id: str = ""
    number: int = 0
    version: int = 0
    sha256: str = ""
    previous: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The catalog after a version. cuts: those still needed, oldest first, the newest always there.

    The segments that all cuts of a disk list, applied in order, are all that the disk's maps refer
    to: checkpoints save time, nothing else. is_complete: this is known to hold.

    kept: positions (epoch, sequence) of the cuts that are recovery points. quarantined: those of
    them that touch something damaged. configs: VM configurations by digest. floor: the newest one
    that whoever made this state knew; it is not part of the log.
    """

    item_id: str
    version: int = 0
    sha256: str = ""
    claim: int = 0
    owner: str = ""
    epoch: int = 0
    disk_urls: dict[str, str] = field(default_factory=dict)
    cuts: tuple[AppliedCut, ...] = ()
    configs: dict[str, dict[str, object]] = field(default_factory=dict)
    kept: tuple[tuple[int, int], ...] = ()
    about: dict[str, object] = field(default_factory=dict)
    quarantined: tuple[tuple[int, int], ...] = ()
    is_complete: bool = False
    floor: Floor = Floor()

    @property
    def newest_cut(self) -> AppliedCut | None:
        return self.cuts[-1] if self.cuts else None

    def points(self) -> tuple[RecoveryPoint, ...]:
        """Return the recovery points, oldest first."""
        kept = set(self.kept)
        damaged = set(self.quarantined)
        return tuple(
            _point(cut, is_quarantined=cut.position in damaged)
            for cut in self.cuts
            if cut.position in kept
        )

    def healing(self) -> tuple[bool, frozenset[int] | None]:
        """Return (whether nothing but a cut that restarts the chain may follow, the segments that
        came since the newest recovery point): that point is damaged. (False, None) otherwise."""
        restarted = False
        later: list[int] = []
        for cut in reversed(self.cuts):
            if cut.position in self.kept:
                if cut.position not in self.quarantined:
                    return False, None
                return not restarted, frozenset(later)
            restarted = restarted or cut.restarts
            later += [segment_id for disk in cut.disks for segment_id in disk.segments]
        return False, None

    def disk_entries(self, disk: str) -> list[tuple[AppliedCut, AppliedDisk]]:
        """Return the cuts that have something to say of the disk, and what, oldest first."""
        found = [(cut, _disk(cut, disk)) for cut in self.cuts]
        return [(cut, entry) for cut, entry in found if entry is not None]

    def ends(self) -> frozenset[tuple[int, int]]:
        """Return the positions of the cuts after which somebody may want a disk as it was."""
        newest = (self.cuts[-1].position,) if self.cuts else ()
        return frozenset((*self.kept, *newest))

    def cut_of(self, wanted: str) -> int:
        """Return the index in `cuts` of a recovery point's cut. Raises: NotFound."""
        kept = set(self.kept)
        for index, cut in enumerate(self.cuts):
            if cut.position in kept and point_id(*cut.position) == wanted:
                return index
        raise NotFound(f"there is no recovery point {wanted}", field="recovery_point")

    def disk_log(self, disk: str, index: int) -> tuple[str, tuple[int, ...]]:
        """Return (checkpoint name or "", ids of the segments to apply to it in order) that give
        `disk` after cuts[index]. Raises: NotFound if that cut has no such disk."""
        found: list[tuple[int, ...]] = []
        entry = _disk(self.cuts[index], disk)
        if entry is None:
            raise NotFound(f"the recovery point has no disk {disk}", field="disk")
        for cut in reversed(self.cuts[: index + 1]):
            entry = _disk(cut, disk)
            if entry is None:
                continue
            if entry.checkpoint:
                return entry.checkpoint, _flat(reversed(found))
            found.append(entry.segments)
        return "", _flat(reversed(found))


def share_configs(
    cuts: Iterable[AppliedCut],
) -> tuple[tuple[AppliedCut, ...], dict[str, dict[str, object]]]:
    """Return the cuts with their configurations replaced by digests, and those by digest."""
    stored: list[AppliedCut] = []
    configs: dict[str, dict[str, object]] = {}
    for cut in cuts:
        digest = hashlib.sha256(to_json(cut.vm_config)).hexdigest()
        configs[digest] = cut.vm_config
        stored.append(replace(cut, vm_config={}, config_sha256=digest))
    return tuple(stored), configs


def follow(state: State, record: Record, sha256: str) -> State:
    """Return the state after `record`, whose stored bytes have that sha256.

    Raises: SegmentCorrupt if it does not belong there: the log is never repaired by guessing.
    """
    is_next = record.item_id == state.item_id and record.version == state.version + 1
    if not is_next or record.parent_sha256 != state.sha256:
        raise SegmentCorrupt(f"catalog version {record.version} does not follow the one before")
    if record.claim < state.claim or record.epoch < state.epoch:
        raise SegmentCorrupt(f"catalog version {record.version} has an old claim or epoch")
    after = replace(
        state,
        version=record.version,
        sha256=sha256,
        claim=record.claim,
        epoch=record.epoch,
    )
    if record.kind == KIND_CLAIM:
        urls = {**state.disk_urls, **record.disk_urls}
        about = record.about or state.about
        return replace(after, owner=record.owner, disk_urls=urls, about=about)
    if record.kind == KIND_APPLY:
        return _follow_cuts(after, record)
    if record.kind == KIND_RETAIN:
        return _follow_retain(after, record.dropped)
    if record.kind == KIND_QUARANTINE:
        return _follow_quarantine(after, record)
    if record.kind == KIND_COMPACT:
        return _follow_compact(after, record)
    if record.kind in (KIND_SEAL, KIND_FREE):
        return after
    raise SegmentCorrupt(f"catalog version {record.version} is of unknown kind {record.kind!r}")


def check_cuts(state: State, cuts: Iterable[AppliedCut]) -> None:
    """Return if `cuts` may be appended to `state`.

    Raises: Conflict if they do not continue its newest cut; InvalidRequest.
    """
    epoch, sequence = state.newest_cut.position if state.newest_cut else (0, 0)
    for cut in cuts:
        expected = sequence + 1 if cut.epoch == epoch else 1
        follows = cut.sequence >= expected if cut.restarts else cut.sequence == expected
        if cut.epoch != state.epoch or not follows:
            raise Conflict(
                f"cut {cut.epoch}-{cut.sequence} does not follow {epoch}-{sequence}",
                hint="read the catalog again",
            )
        for disk in cut.disks:
            for segment_id in disk.segments:
                check_segment_id(segment_id)
        epoch, sequence = cut.position


def _follow_cuts(state: State, record: Record) -> State:
    try:
        check_cuts(state, record.cuts)
    except (Conflict, InvalidRequest) as error:
        raise SegmentCorrupt(f"catalog version {record.version}: {error.message}") from error
    new = tuple(c.position for c in record.cuts if c.consistency is not Consistency.NONE)
    configs = {**state.configs, **record.configs}
    if any(cut.config_sha256 not in configs for cut in record.cuts):
        raise SegmentCorrupt(f"catalog version {record.version} lacks a VM's configuration")
    return replace(state, cuts=state.cuts + record.cuts, configs=configs, kept=state.kept + new)


def _follow_retain(state: State, dropped: tuple[str, ...]) -> State:
    gone = set(dropped)
    kept = tuple(position for position in state.kept if point_id(*position) not in gone)
    cuts = _needed(state.cuts, set(kept))
    configs = {cut.config_sha256: state.configs[cut.config_sha256] for cut in cuts}
    quarantined = tuple(position for position in state.quarantined if position in kept)
    return replace(state, cuts=cuts, configs=configs, kept=kept, quarantined=quarantined)


def _follow_quarantine(state: State, record: Record) -> State:
    added, gone = set(record.quarantined), set(record.released)
    was = set(state.quarantined)
    quarantined = tuple(
        position
        for position in state.kept
        if point_id(*position) in added or (position in was and point_id(*position) not in gone)
    )
    return replace(state, quarantined=quarantined)


def _follow_compact(state: State, record: Record) -> State:
    log = {logged.position: logged for logged in record.log}
    known = {cut.position for cut, _ in state.disk_entries(record.disk)}
    if len(log) != len(record.log) or not log.keys() <= known:
        raise SegmentCorrupt(f"catalog version {record.version} compacts cuts that are not there")
    cuts = tuple(_compacted(cut, record.disk, log.get(cut.position)) for cut in state.cuts)
    return replace(state, cuts=_needed(cuts, set(state.kept)))


def _compacted(cut: AppliedCut, disk: str, logged: LoggedCut | None) -> AppliedCut:
    segments, checkpoint = (logged.segments, logged.checkpoint) if logged else ((), "")
    disks = tuple(
        replace(entry, segments=segments, checkpoint=checkpoint) if entry.disk == disk else entry
        for entry in cut.disks
    )
    return replace(cut, disks=disks)


def _needed(cuts: tuple[AppliedCut, ...], kept: set[tuple[int, int]]) -> tuple[AppliedCut, ...]:
    """Return the ends (kept points and the newest cut) and the cuts that have segments, without the
    checkpoints that no end is opened from. Going back in time, a disk is `open` while the
    checkpoint before an end has not been met."""
    wanted: list[AppliedCut] = []
    open_disks: set[str] = set()
    for index in range(len(cuts) - 1, -1, -1):
        cut = cuts[index]
        is_end = index == len(cuts) - 1 or cut.position in kept
        if is_end:
            open_disks.update(entry.disk for entry in cut.disks)
        disks = tuple(
            entry if entry.disk in open_disks or not entry.checkpoint else _without_map(entry)
            for entry in cut.disks
        )
        open_disks.difference_update(entry.disk for entry in disks if entry.checkpoint)
        if not is_end:
            disks = tuple(entry for entry in disks if entry.segments or entry.checkpoint)
        if disks != cut.disks:
            cut = replace(cut, disks=disks)
        if is_end or disks:
            wanted.append(cut)
    return tuple(reversed(wanted))


def _without_map(entry: AppliedDisk) -> AppliedDisk:
    return replace(entry, checkpoint="")


def _disk(cut: AppliedCut, disk: str) -> AppliedDisk | None:
    return next((entry for entry in cut.disks if entry.disk == disk), None)


def _flat(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(segment_id for group in groups for segment_id in group)


def _point(cut: AppliedCut, *, is_quarantined: bool) -> RecoveryPoint:
    return RecoveryPoint(
        id=point_id(*cut.position),
        epoch=cut.epoch,
        sequence=cut.sequence,
        time_ns=cut.time_ns,
        consistency=cut.consistency,
        is_quarantined=is_quarantined,
        shared=cut.shared,
        frozen=cut.frozen,
    )
