"""The maps of an item's disks at the newest cut of its catalog, and what a cut makes of them.

Owns: which are open, and what of a cut goes into a catalog record. Must not know: the cache, when
the catalog takes the cuts. Between apply.py and the steps of item.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from leeward.object_store.store import ObjectStore
from leeward.processor.apply import DiskReplica, Fetched, Numbers, open_replica
from leeward.processor.drain import ArrivedCut
from leeward.processor.fetching import FetchedCut
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.segment import BLOCKS, Compression, SegmentHeader


class Replicas:
    """Used by one thread at a time. After an error the maps may be ahead of the catalog: `forget`
    them."""

    def __init__(self, stores: Mapping[str, ObjectStore], compression: Compression) -> None:
        self._stores = stores
        self._compression: Compression = compression
        self._open: dict[str, DiskReplica] = {}

    def forget(self) -> None:
        """Throw the maps away. Idempotent."""
        for replica in self._open.values():
            replica.close()
        self._open = {}

    def opened(
        self, catalog: Catalog, numbers: Numbers, disks: Iterable[str]
    ) -> Mapping[str, DiskReplica]:
        """Return the replicas that are open, those of `disks` among them; a disk that the VM has
        lost, or that nobody knows, is left alone. Raises: as open_replica."""
        for disk in disks:
            if disk in self._stores and disk not in self._open:
                self._open[disk] = open_replica(
                    catalog, self._stores[disk], disk, numbers, compression=self._compression
                )
        return self._open

    def apply(
        self, catalog: Catalog, numbers: Numbers, cuts: Sequence[FetchedCut]
    ) -> list[AppliedCut]:
        """Bring the maps from the state before the cuts to the state after them; return what the
        catalog is to take, everything it names stored. Raises: as open_replica; SegmentCorrupt."""
        disks = dict.fromkeys(disk.disk for cut, _ in cuts for disk in cut.manifest.disks)
        replicas = self.opened(catalog, numbers, disks)
        applied = [_applied(replicas, cut, fetched) for cut, fetched in cuts]
        applied[-1] = _with_checkpoints(replicas, applied[-1])
        return applied


def _applied(
    replicas: Mapping[str, DiskReplica], cut: ArrivedCut, fetched: Sequence[Fetched]
) -> AppliedCut:
    manifest = cut.manifest
    added: dict[str, list[int]] = {}
    for disk in manifest.disks:
        replicas[disk.disk].grow(disk.size_bytes)
        added[disk.disk] = replicas[disk.disk].begin(
            SegmentHeader(manifest.item_id, disk.disk, manifest.epoch, manifest.sequence, BLOCKS)
        )
    for (disk_name, _), segment in zip(cut.segments, fetched, strict=True):
        added[disk_name] += replicas[disk_name].take(segment)
    return AppliedCut(
        epoch=manifest.epoch,
        sequence=manifest.sequence,
        manifest_sha256=cut.manifest_sha256,
        time_ns=manifest.time_ns,
        consistency=manifest.consistency,
        disks=tuple(
            AppliedDisk(
                disk=disk.disk, size_bytes=disk.size_bytes, segments=tuple(added[disk.disk])
            )
            for disk in manifest.disks
        ),
        vm_config=manifest.vm_config,
        restarts=manifest.restarts,
        shared=manifest.shared,
        frozen=manifest.frozen,
    )


def _with_checkpoints(replicas: Mapping[str, DiskReplica], cut: AppliedCut) -> AppliedCut:
    """Return the newest cut with a map stored for every disk that needs one."""
    disks = tuple(
        replace(disk, checkpoint=replicas[disk.disk].checkpoint(cut.epoch))
        if replicas[disk.disk].needs_checkpoint
        else disk
        for disk in cut.disks
    )
    return replace(cut, disks=disks)
