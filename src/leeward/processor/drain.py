"""The cache, as the worker sees it: the next cut, its segments, and what it may remove.

Owns: believing nothing that the cache gives before it is verified, and telling the source what has
been applied. Must not know: catalogs, maps, the target. Sits between the cache and apply.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from leeward.core.errors import (
    ChainBroken,
    DataIntegrity,
    NotFound,
    ObjectExists,
    SegmentCorrupt,
    Unavailable,
)
from leeward.object_store.store import ObjectStore, create_same
from leeward.replica.digests import digests_prefix
from leeward.replica.envelope import read_small_object
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    Refusal,
    SegmentRef,
    applied_name,
    applied_prefix,
    cache_segments_prefix,
    cut_name,
    cuts_prefix,
    decode_manifest,
    encode_applied,
    encode_refused,
    manifest_sha256,
    parse_segment_sequence,
    refused_name,
    refused_prefix,
    with_sequences,
)
from leeward.replica.sealing import keys_of
from leeward.replica.segment import DecodedSegment, SegmentHeader, decode_segment

MARKERS_KEPT = 2
"""Applied markers left in the cache: who has just listed the older one still finds it."""
HEALS = "the source sends again what is missing"


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The newest cut applied of an epoch; sequence 0 and "" before the first."""

    sequence: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class ArrivedCut:
    """A cut in the cache whose place in the chain is verified; its segments are not, yet."""

    manifest: CutManifest
    manifest_sha256: str

    @property
    def head(self) -> ChainHead:
        return ChainHead(self.manifest.sequence, self.manifest_sha256)

    @property
    def segments(self) -> list[tuple[str, SegmentRef]]:
        """(disk, segment) in the order in which they are to be applied."""
        return [(disk.disk, ref) for disk in self.manifest.disks for ref in disk.segments]

    def size_bytes(self, disk: str) -> int:
        """Return the size of one of the cut's disks."""
        return next(entry.size_bytes for entry in self.manifest.disks if entry.disk == disk)

    @property
    def stored_bytes(self) -> int:
        return sum(ref.bytes for _, ref in self.segments)


def erase_cache(store: ObjectStore, item_id: str) -> None:
    """Have nothing in the store that an item has in its cache; its replica may lie there, too.

    Idempotent. Manifests go before what they name.
    """
    for prefix in (
        cuts_prefix(item_id),
        cache_segments_prefix(item_id),
        applied_prefix(item_id),
        refused_prefix(item_id),
        digests_prefix(item_id),
    ):
        for name in store.list(prefix):
            store.delete(name)


class Cache:
    """One item's part of a cache store, at one epoch. Thread-safe as its store is."""

    def __init__(self, store: ObjectStore, item_id: str, epoch: int) -> None:
        self._store = store
        self._keys = keys_of(store)
        self._item_id = item_id
        self._epoch = epoch

    # -------------------------------------------------------------------------- reading

    def next_cut(self, after: ChainHead, disks: Iterable[str]) -> ArrivedCut | None:
        """Return the cut that follows `after`, or None if it has not arrived.

        One request. disks: those the target has replicas of; the VM may have fewer just now.
        Raises: ChainBroken when it is not what the chain says; DataIntegrity when its disks are
        others; Unavailable.
        """
        return self._read_cut(after.sequence + 1, after, disks)

    def next_beyond_gap(self, after: ChainHead, disks: Iterable[str]) -> ArrivedCut | None:
        """Return the cut with which the source has restarted the chain from `after`, or None if
        nothing later than `after` is there. Raises: as `next_cut`, also for a gap without one."""
        later = [
            sequence
            for _, epoch, sequence in with_sequences(self._store.list(cuts_prefix(self._item_id)))
            if epoch == self._epoch and sequence > after.sequence
        ]
        return self._read_cut(min(later), after, disks) if later else None

    def _read_cut(self, sequence: int, after: ChainHead, disks: Iterable[str]) -> ArrivedCut | None:
        try:
            data = read_small_object(self._store, cut_name(self._item_id, self._epoch, sequence))
            manifest = decode_manifest(data, self._keys)
        except NotFound:
            return None
        except SegmentCorrupt as error:
            raise ChainBroken(f"cut {sequence}: {error.message}") from error
        found = (manifest.item_id, manifest.epoch, manifest.sequence)
        if found != (self._item_id, self._epoch, sequence):
            raise ChainBroken(f"cut {sequence} says that it is cut {found[2]} of {found[0]}")
        if sequence != after.sequence + 1 and not manifest.restarts:
            raise ChainBroken(
                f"cut {after.sequence + 1} is missing from the cache, later ones are there",
                hint=HEALS,
            )
        if manifest.parent_sha256 != after.manifest_sha256:
            raise ChainBroken(
                f"cut {sequence} does not follow the cut {after.sequence} that was applied",
                hint=HEALS,
            )
        unknown = {disk.disk for disk in manifest.disks} - set(disks)
        if unknown:
            raise DataIntegrity(
                f"disk {min(unknown)} is in cut {sequence} and not among the replicas",
                hint="disable replication and enable it with the disks wanted",
            )
        return ArrivedCut(manifest, manifest_sha256(data))

    def read_segment(self, disk: str, sequence: int, ref: SegmentRef) -> DecodedSegment:
        """Return a segment, verified down to every frame's content.

        Raises: ChainBroken, Unavailable.
        """
        try:
            data = self._store.get_range(ref.name, 0, ref.bytes + 1)
        except NotFound as error:
            raise ChainBroken(
                f"cut {sequence} names segment {ref.name}, not there", hint=HEALS
            ) from error
        if len(data) != ref.bytes:
            raise ChainBroken(f"segment {ref.name} is not {ref.bytes} bytes long", hint=HEALS)
        try:
            segment = decode_segment(data, sha256=ref.sha256, keys=self._keys)
            for _ in segment.frames():
                pass  # gives the bytes it promises
        except SegmentCorrupt as error:
            raise ChainBroken(f"segment {ref.name}: {error.message}", hint=HEALS) from error
        expected = SegmentHeader(self._item_id, disk, self._epoch, sequence, ref.unit)
        if segment.header != expected:
            raise ChainBroken(f"segment {ref.name} belongs elsewhere: {segment.header}")
        return segment

    # -------------------------------------------------------------------------- answers, removing

    def refuse(self, head: ChainHead, *, is_damaged: bool = False) -> None:
        """Tell the source that nothing can follow `head` but a cut that restarts the chain there.

        Idempotent; the source takes the refusal away when it has restarted.
        """
        refusal = Refusal(
            sequence=head.sequence, manifest_sha256=head.manifest_sha256, is_damaged=is_damaged
        )
        name = refused_name(self._item_id, self._epoch, head.sequence)
        try:
            self._store_refusal(name, encode_refused(self._epoch, refusal, self._keys.writing))
        except Unavailable:  # a full cache can take it once something useless has been removed
            self._remove_segments(head.sequence + 1)
            self._store_refusal(name, encode_refused(self._epoch, refusal, self._keys.writing))

    def _store_refusal(self, name: str, data: bytes) -> None:
        with suppress(ObjectExists):
            self._store.create(name, data)

    def _remove_segments(self, sequence: int) -> None:
        for name in self._store.list(cache_segments_prefix(self._item_id)):
            if parse_segment_sequence(name) == (self._epoch, sequence):
                self._store.delete(name)

    def mark_applied(self, head: ChainHead) -> None:
        """Tell the source that the target has durably applied everything up to `head`."""
        if not head.sequence:
            return
        marker = AppliedMarker(sequence=head.sequence, manifest_sha256=head.manifest_sha256)
        name = applied_name(self._item_id, self._epoch, head.sequence)
        data = encode_applied(self._epoch, marker, self._keys.writing)
        try:
            create_same(self._store, name, data)
        except ObjectExists:  # an epoch has one chain: what says anything else is damaged
            self._store.delete(name)
            self._store.create(name, data)

    def remove_cuts(self, cuts: Sequence[ArrivedCut]) -> None:
        """Remove cuts that `mark_applied` covers, and their segments."""
        for cut in cuts:
            for _, ref in cut.segments:
                self._store.delete(ref.name)
            self._store.delete(cut_name(self._item_id, self._epoch, cut.manifest.sequence))

    def remove_marker(self, sequence: int) -> None:
        """Remove an applied marker that newer ones have replaced."""
        self._store.delete(applied_name(self._item_id, self._epoch, sequence))

    def remove_leftovers(self, applied: ChainHead) -> list[int]:
        """Remove everything that `applied` covers, and older epochs; return the markers kept.

        Also what uploaders that died have left. Segments go before the marker is written: a full
        cache cannot take the marker before something has been removed.
        """
        for name in self._store.list(cache_segments_prefix(self._item_id)):
            position = parse_segment_sequence(name)
            if position and self._is_covered(*position, applied):
                self._store.delete(name)
        self.mark_applied(applied)
        for name, epoch, sequence in with_sequences(self._store.list(cuts_prefix(self._item_id))):
            if self._is_covered(epoch, sequence, applied):
                self._store.delete(name)
        refusals = self._store.list(refused_prefix(self._item_id))
        for name, epoch, sequence in with_sequences(refusals):
            if (epoch, sequence) < (self._epoch, applied.sequence):  # something has followed it
                self._store.delete(name)
        markers = list(with_sequences(self._store.list(applied_prefix(self._item_id))))
        kept = [number for _, epoch, number in markers if epoch == self._epoch][-MARKERS_KEPT:]
        for name, epoch, number in markers:
            if epoch < self._epoch or (epoch == self._epoch and number not in kept):
                self._store.delete(name)
        return kept

    def _is_covered(self, epoch: int, sequence: int, applied: ChainHead) -> bool:
        return epoch < self._epoch or (epoch == self._epoch and sequence <= applied.sequence)
