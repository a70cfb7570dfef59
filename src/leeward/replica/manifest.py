"""Cut manifests: what a cut consists of, made visible by one object written last.

Owns: their shape, their names, and those of cache segments and of the target's answers. Must not
know: how cuts are made or applied. Manifests are written by the source's uploader and read by the
target's worker, answers the other way round.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.core.ids import check_name
from leeward.model.recovery import Consistency, FrozenTime, SharedMark
from leeward.object_store.names import check_object_name
from leeward.object_store.store import Buffer
from leeward.replica.envelope import (
    KIND_APPLIED,
    KIND_CUT,
    KIND_REFUSED,
    parse_envelope,
    seal_envelope,
)
from leeward.replica.sealing import NO_KEYS, Key, Keyring
from leeward.replica.segment import BLOCKS, SECTORS, SEGMENT_BYTES_MAX

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEGMENT = re.compile(r"items/[^/]+/segments/(\d{8,})-(\d{12,})-.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRef:
    """A segment in the cache: bytes and sha256 are those of the stored object."""

    name: str
    bytes: int
    sha256: str
    unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCut:
    """What changed on one disk; segments are applied in this order, later ones win."""

    disk: str
    size_bytes: int
    segments: tuple[SegmentRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRequest:
    """The source asks what the target holds of a disk from a chunk on, once it has the cut that
    says so: replica/digests.py."""

    disk: str
    first_chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutManifest:
    """One cut of all disks of an item. sequence starts at 1 in each epoch and has no gaps, but for
    those that a cut which restarts the chain leaves behind it.

    restarts: the cut before it is not the one with the sequence before, but the newest that the
    target has applied; what lies between is void, and a new sweep makes up for it.
    """

    item_id: str
    epoch: int
    sequence: int
    parent_sha256: str
    """Of the bytes of the manifest before; "" if there is none in this epoch."""
    consistency: Consistency
    time_ns: int
    disks: tuple[DiskCut, ...]
    vm_config: dict[str, object] = field(default_factory=dict)
    bytes_written: int = 0
    bytes_shipped: int = 0
    restarts: bool = False
    digests: tuple[DigestRequest, ...] = ()
    shared: SharedMark | None = None
    frozen: FrozenTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedMarker:
    """The target has durably applied the cuts of an epoch up to this sequence."""

    sequence: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The target has applied up to this sequence (0 and "": nothing of the epoch) and can apply
    nothing that follows: it waits for a cut that restarts the chain from there. is_damaged: what it
    has applied is damaged too; the sweep must be of everything."""

    sequence: int
    manifest_sha256: str
    is_damaged: bool = False


def cuts_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/cuts/"


def cut_name(item_id: str, epoch: int, sequence: int) -> str:
    return f"{cuts_prefix(item_id)}{epoch:08d}-{sequence:012d}"


def cache_segments_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/segments/"


def cache_segment_name(
    item_id: str, epoch: int, sequence: int, disk: str, index: int, nonce: str
) -> str:
    """nonce: makes the name fresh when a cut is uploaded again after a crash."""
    prefix = cache_segments_prefix(item_id)
    return f"{prefix}{epoch:08d}-{sequence:012d}-{check_name(disk, field='disk')}-{index}-{nonce}"


def applied_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/applied/"


def applied_name(item_id: str, epoch: int, sequence: int) -> str:
    return f"{applied_prefix(item_id)}{epoch:08d}-{sequence:012d}"


def refused_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/refused/"


def refused_name(item_id: str, epoch: int, sequence: int) -> str:
    return f"{refused_prefix(item_id)}{epoch:08d}-{sequence:012d}"


def parse_segment_sequence(name: str) -> tuple[int, int] | None:
    """Return (epoch, sequence) of a cache segment's name, None if it is no such name."""
    match = _SEGMENT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def parse_sequence(name: str) -> tuple[int, int]:
    """Return (epoch, sequence) of the name of a cut, applied marker or refusal.

    Raises: InvalidRequest.
    """
    match = re.fullmatch(r"items/[^/]+/(?:cuts|applied|refused)/(\d{8,})-(\d{12,})", name)
    if not match:
        raise InvalidRequest(f"{name} does not name a cut", field="name")
    return int(match[1]), int(match[2])


def with_sequences(names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, epoch, sequence) of those names of cuts, applied markers or refusals that are
    one: what else lies there (a copying program's temporary file, a file that NFS has renamed) is
    none of ours."""
    for name in names:
        with suppress(InvalidRequest):
            yield (name, *parse_sequence(name))


def encode_manifest(manifest: CutManifest, key: Key | None = None) -> bytes:
    """Return the manifest's stored form. Raises: InvalidRequest if it breaks a rule."""
    if problem := _problem(manifest):
        raise InvalidRequest(f"a cut manifest {problem}")
    return seal_envelope(KIND_CUT, manifest.epoch, manifest, key)


def decode_manifest(data: Buffer, keys: Keyring = NO_KEYS) -> CutManifest:
    """Return a stored manifest, every field checked. Raises: SegmentCorrupt, KeyMissing."""
    epoch, manifest = parse_envelope(data, KIND_CUT, CutManifest, keys)
    problem = _problem(manifest)
    if problem or epoch != manifest.epoch:
        raise SegmentCorrupt(f"a cut manifest {problem or 'has two epochs'}")
    return manifest


def manifest_sha256(data: Buffer) -> str:
    """Return what the next manifest and the applied marker call this one."""
    return hashlib.sha256(data).hexdigest()


def encode_applied(epoch: int, marker: AppliedMarker, key: Key | None = None) -> bytes:
    return seal_envelope(KIND_APPLIED, epoch, marker, key)


def decode_applied(data: Buffer, keys: Keyring = NO_KEYS) -> tuple[int, AppliedMarker]:
    """Return (epoch, marker). Raises: SegmentCorrupt, KeyMissing."""
    return parse_envelope(data, KIND_APPLIED, AppliedMarker, keys)


def encode_refused(epoch: int, refusal: Refusal, key: Key | None = None) -> bytes:
    return seal_envelope(KIND_REFUSED, epoch, refusal, key)


def decode_refused(data: Buffer, keys: Keyring = NO_KEYS) -> tuple[int, Refusal]:
    """Return (epoch, refusal). Raises: SegmentCorrupt, KeyMissing."""
    return parse_envelope(data, KIND_REFUSED, Refusal, keys)


def _problem(manifest: CutManifest) -> str:
    """Return which rule the manifest breaks, "" if none."""
    names = [cut.disk for cut in manifest.disks]
    numbers = (manifest.epoch, manifest.time_ns, manifest.bytes_written, manifest.bytes_shipped)
    if min(numbers) < 0 or max(numbers) >= 1 << 63:
        return "has a number out of range"
    if manifest.sequence < 1:
        return f"has sequence {manifest.sequence}"
    if not manifest.restarts and bool(manifest.parent_sha256) != (manifest.sequence > 1):
        return "has a parent where there is none, or none where there is one"
    if manifest.parent_sha256 and not _SHA256.fullmatch(manifest.parent_sha256):
        return "has a parent that is no sha256"
    if len(set(names)) != len(names):
        return "names a disk twice"
    if any(ask.disk not in names or not 0 <= ask.first_chunk < 1 << 40 for ask in manifest.digests):
        return "asks for digests of what it has not"
    if manifest.shared and (
        manifest.consistency is Consistency.NONE or manifest.item_id not in manifest.shared.members
    ):
        return "shares a point that is none, or not its item's"
    if manifest.frozen is not None and (
        manifest.consistency is not Consistency.APPLICATION
        or not 0 <= manifest.frozen.ours_ns <= manifest.frozen.total_ns < 1 << 63
    ):
        return "was not frozen for so long"
    try:
        check_name(manifest.item_id, field="item")
        for cut in manifest.disks:
            _check_disk(manifest, cut)
    except InvalidRequest as error:
        return f"is not valid: {error.message}"
    return ""


def _check_disk(manifest: CutManifest, cut: DiskCut) -> None:
    check_name(cut.disk, field="disk")
    if cut.size_bytes <= 0 or cut.size_bytes % SECTORS:
        raise InvalidRequest(f"disk {cut.disk} has {cut.size_bytes} bytes")
    for segment in cut.segments:
        check_object_name(segment.name)
        if not segment.name.startswith(cache_segments_prefix(manifest.item_id)):
            raise InvalidRequest(f"segment {segment.name} lies outside the item")
        if segment.unit not in (BLOCKS, SECTORS) or not _SHA256.fullmatch(segment.sha256):
            raise InvalidRequest(f"segment {segment.name} has no valid unit or sha256")
        if not 0 < segment.bytes <= SEGMENT_BYTES_MAX:
            raise InvalidRequest(f"segment {segment.name} has {segment.bytes} bytes")
