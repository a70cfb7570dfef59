"""Seeding a replica: the disks of a stopped VM become the newest state of its log.

Owns: comparing them with what the log holds, and the one cut that makes them equal. Must not know:
where the disks are read from. Run by an agent inside the region of both, before the worker begins:
so a reprotected VM's old disks need not travel, only what has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leeward.core.clock import Clock
from leeward.core.units import BLOCK, MIB
from leeward.model.recovery import Consistency
from leeward.object_store.store import ObjectStore
from leeward.processor.apply import DiskReplica, Numbers, open_replica
from leeward.protocol.fabric import SeedResult, SeedSpec
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.segment import BLOCKS, SegmentHeader

WINDOW_BYTES = 8 * MIB
"""Compared, and stored as one segment at most."""
SEQUENCE = 1
"""Of the one cut of a seed's epoch."""


class SeedDisk(Protocol):
    """A disk that nobody writes to."""

    @property
    def size_bytes(self) -> int: ...
    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]: ...
    def read_into(self, offset: int, view: memoryview) -> None: ...


@dataclass(slots=True)
class _Seeded:
    segments: list[int]
    bytes_stored: int = 0


def seed_replica(
    spec: SeedSpec,
    open_store: Callable[[str], ObjectStore],
    disks: Mapping[str, SeedDisk],
    clock: Clock,
) -> SeedResult:
    """Return what it took. From then on the newest state of the item's log is what `disks` hold.

    Idempotent: a cut of that epoch says that it has been done. Killed on the way it is begun anew;
    what it had stored is orphaned. Raises: Fenced when the item has a newer epoch or somebody else
    took it over meanwhile; SegmentCorrupt; Unavailable.
    """
    catalog = Catalog.open(open_store(spec.catalog_url), spec.item_id)
    if catalog.newest_cut and catalog.newest_cut.position == (spec.epoch, SEQUENCE):
        return SeedResult(is_seeded=True)
    urls = {replica.disk: replica.target_url for replica in spec.replicas}
    numbers = Numbers(catalog.take_over(spec.epoch, owner="seed", disk_urls=urls))
    entries, stored = [], 0
    for name, url in urls.items():
        replica = open_replica(catalog, open_store(url), name, numbers)
        try:
            replica.grow(disks[name].size_bytes)
            seeded = _seed_disk(replica, disks[name], _header(spec, name))
            checkpoint = replica.checkpoint(spec.epoch) if replica.needs_checkpoint else ""
        finally:
            replica.close()
        stored += seeded.bytes_stored
        entries.append(
            AppliedDisk(
                disk=name,
                size_bytes=disks[name].size_bytes,
                segments=tuple(seeded.segments),
                checkpoint=checkpoint,
            )
        )
    catalog.append_cuts(
        [
            AppliedCut(
                epoch=spec.epoch,
                sequence=SEQUENCE,
                manifest_sha256="",
                time_ns=clock.now_ns(),
                consistency=Consistency.NONE,
                disks=tuple(entries),
            )
        ]
    )
    return SeedResult(is_seeded=True, bytes_stored=stored)


def _header(spec: SeedSpec, disk: str) -> SegmentHeader:
    return SegmentHeader(
        item_id=spec.item_id, disk=disk, epoch=spec.epoch, sequence=SEQUENCE, unit=BLOCKS
    )


def _seed_disk(replica: DiskReplica, disk: SeedDisk, header: SegmentHeader) -> _Seeded:
    seeded = _Seeded(replica.begin(header))
    for offset, length in _windows(replica, disk):
        data = bytearray(-(-length // BLOCK) * BLOCK)
        disk.read_into(offset, memoryview(data)[:length])
        content = np.frombuffer(data, np.uint8).reshape(-1, BLOCK)
        stored = replica.bring_to(header, offset // BLOCK, content)
        if stored is not None:
            seeded.segments.append(stored.segment_id)
            seeded.bytes_stored += int(stored.extents["count"].sum()) * BLOCK
    return seeded


def _windows(replica: DiskReplica, disk: SeedDisk) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the windows in which disk or log have data."""
    for offset in range(0, disk.size_bytes, WINDOW_BYTES):
        length = min(WINDOW_BYTES, disk.size_bytes - offset)
        has_data = any(has for _, has in disk.extents(offset, length))
        if has_data or replica.holds_data(offset // BLOCK, -(-length // BLOCK)):
            yield offset, length
