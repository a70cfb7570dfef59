"""Everything stored of an item, read and verified; which recovery points what is damaged touches.

Owns: looking, twice before anything is called damaged. Must not know: what is done about it, that
is item.py's. Reads the target's stores alone, at half of what they can give.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from leeward.core.errors import DataIntegrity, NotFound, SegmentCorrupt, Unavailable
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.protocol.messages import ScrubReport
from leeward.replica.catalog import Catalog
from leeward.replica.checkpoint import read_checkpoint_head, read_pages
from leeward.replica.disk import open_map
from leeward.replica.layout import NUMBER_BITS, disk_prefix, segment_name
from leeward.replica.sealing import keys_of
from leeward.replica.segment import decode_segment

_NAME = re.compile(r".*/(segments|maps)/([0-9a-f]{5})-([0-9a-f]{7})")
_RESOLVE_BLOCKS = 1 << 22


@dataclass(slots=True)
class Damage:
    """What is wrong with one disk's objects. names: object → what is wrong with it."""

    segments: set[int] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """What a scrub found. newest: the newest point it knew, if any; report.heals: that one is
    damaged. segments: disk → ids of those that are damaged, of disks with nothing else damaged."""

    report: ScrubReport
    newest: RecoveryPoint | None
    segments: dict[str, frozenset[int]]

    def lie_upon_damage(self, points: Sequence[RecoveryPoint]) -> set[str]:
        """Return the ids of those of the points that came while the scrub read and
        lie upon the newest one it knew, damaged: that one may have been dropped meanwhile."""
        if self.newest is None or not self.report.heals:
            return set()
        newest = (self.newest.epoch, self.newest.sequence)
        return {point.id for point in points if (point.epoch, point.sequence) > newest}


def read_everything(
    catalog: Catalog, stores: Mapping[str, ObjectStore], *, is_stopping: Callable[[], bool]
) -> Findings:
    """Return what is damaged of all disks, and which points that touches.

    stores: by disk. Raises: Unavailable, also when told to stop; KeyMissing.
    """
    damages = {
        disk: find_damage(catalog, store, disk, is_stopping=is_stopping)
        for disk, store in stores.items()
    }
    if is_stopping():
        raise Unavailable("the worker stops; the scrub begins again with the next one")
    catalog.refresh()
    affected = damaged_points(catalog, stores, damages)
    newest = catalog.points[-1] if catalog.points else None
    report = ScrubReport(
        item_id=catalog.item_id,
        objects=sum(damage.objects for damage in damages.values()),
        bytes=sum(damage.bytes for damage in damages.values()),
        damaged=tuple(
            f"{name}: {problem}"
            for damage in damages.values()
            for name, problem in sorted(damage.names.items())
        ),
        quarantined=tuple(sorted(affected)),
        heals=newest is not None and newest.id in affected,
    )
    segments = {
        disk: frozenset(damage.segments)
        for disk, damage in damages.items()
        if len(damage.segments) == len(damage.names)
    }
    return Findings(report, newest, segments)


def find_damage(
    catalog: Catalog, store: ObjectStore, disk: str, *, is_stopping: Callable[[], bool]
) -> Damage:
    """Return what of the disk's stored objects is damaged or missing, every byte of them read.

    catalog: as of the beginning: what came since is not looked for.
    Raises: Unavailable, KeyMissing.
    """
    damage = Damage()
    prefix = disk_prefix(catalog.item_id, disk)
    sizes = store.sizes(prefix)
    for name, size in sizes.items():
        match = _NAME.fullmatch(name)
        if match is None or is_stopping():
            continue
        began = time.monotonic()
        check = _check_segment if match[1] == "segments" else _check_checkpoint
        problem = _problem(check, store, name, catalog.item_id, disk)
        damage.objects += 1
        damage.bytes += size
        if problem:
            damage.names[name] = problem
            if match[1] == "segments":
                damage.segments.add(int(match[2], 16) << NUMBER_BITS | int(match[3], 16))
        time.sleep(min(time.monotonic() - began, 1.0))
    for segment_id in _referenced(catalog, store, disk, damage):
        name = segment_name(catalog.item_id, disk, segment_id)
        if name not in sizes and not _exists(store, name):
            damage.segments.add(segment_id)
            damage.names[name] = "is missing"
    return damage


def damaged_points(
    catalog: Catalog, stores: Mapping[str, ObjectStore], damages: Mapping[str, Damage]
) -> set[str]:
    """Return the ids of the recovery points that cannot be read whole."""
    return {
        point.id
        for point in catalog.points
        for disk in catalog.disk_sizes(point)
        if disk in damages
        and damages[disk].names
        and _is_touched(catalog, stores[disk], disk, point.id, damages[disk])
    }


def _is_touched(
    catalog: Catalog, store: ObjectStore, disk: str, point: str, damage: Damage
) -> bool:
    try:
        block_map = open_map(store, catalog, disk, point)
        wanted = np.array(sorted(damage.segments), np.uint64)
        return any(
            np.isin(block_map.resolve(low, count)["segment"], wanted).any()
            for low, count in _windows(block_map.block_count)
        )
    except DataIntegrity:
        return True


def _referenced(catalog: Catalog, store: ObjectStore, disk: str, damage: Damage) -> set[int]:
    """Return the segments that the points need for the disk, as far as it can be told."""
    found: set[int] = set()
    seen: set[str] = set()
    for point in catalog.points:
        if disk not in catalog.disk_sizes(point):
            continue
        checkpoint, segments = catalog.disk_log(disk, point)
        found.update(segments)
        if checkpoint in seen:
            continue
        seen.add(checkpoint)
        try:
            block_map = open_map(store, catalog, disk, point)
            for low, count in _windows(block_map.block_count):
                ids = np.unique(block_map.resolve(low, count)["segment"]).tolist()
                found.update(segment_id for segment_id in ids if segment_id)
        except DataIntegrity as error:
            if checkpoint and not _exists(store, checkpoint):
                damage.names[checkpoint] = f"is missing: {error.message}"
    return found


def _windows(block_count: int) -> list[tuple[int, int]]:
    return [
        (low, min(_RESOLVE_BLOCKS, block_count - low))
        for low in range(0, block_count, _RESOLVE_BLOCKS)
    ]


def _exists(store: ObjectStore, name: str) -> bool:
    try:
        store.size(name)
    except NotFound:
        return False
    return True


def _problem(
    check: Callable[[ObjectStore, str, str, str], None],
    store: ObjectStore,
    name: str,
    item_id: str,
    disk: str,
) -> str:
    """Return what is wrong with an object, found so twice; "" if it is whole or has just gone."""
    problem = ""
    for _ in range(2):
        try:
            check(store, name, item_id, disk)
            return ""
        except NotFound:
            return ""  # deleted since it was listed, or reported as missing
        except DataIntegrity as error:
            problem = error.message
    return problem


def _check_segment(store: ObjectStore, name: str, item_id: str, disk: str) -> None:
    segment = decode_segment(store.get(name), keys=keys_of(store))
    if (segment.header.item_id, segment.header.disk) != (item_id, disk):
        raise SegmentCorrupt("belongs to another disk")
    for _ in segment.frames():
        pass


def _check_checkpoint(store: ObjectStore, name: str, item_id: str, disk: str) -> None:
    store.size(name)  # one that is gone is NotFound, not damaged
    head = read_checkpoint_head(store, name)
    if (head.item_id, head.disk) != (item_id, disk):
        raise SegmentCorrupt("belongs to another disk")
    own = {page: at for page, at in head.pages.items() if at.object_name == name}
    for page, at in own.items():
        read_pages(store, {page: at})
