"""Big replicas made in a moment, to measure and test readers with.

Owns: a fully mapped disk whose map entries share a few real segments. Must not know: cuts of real
VMs. Used by benchmarks and tests only; what it writes is valid in every respect.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np

from leeward.core.errors import InvalidRequest
from leeward.core.units import BLOCK
from leeward.model.recovery import Consistency, RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.replica.block_map import BlockMap
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.layout import checkpoint_name, make_segment_id, segment_name
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    SEGMENT_DATA_MAX,
    SegmentHeader,
    encode_segment,
)

_SEGMENT_BLOCKS = SEGMENT_DATA_MAX // BLOCK


def write_full_item(
    catalog_store: ObjectStore,
    stores_by_disk: Mapping[str, ObjectStore],
    item_id: str,
    sizes: Mapping[str, int],
    *,
    vm_config: dict[str, object] | None = None,
    segment_count: int = 4,
    time_ns: int = 1,
) -> RecoveryPoint:
    """Make a new item with one recovery point whose disks are mapped from end to end, and return
    the point.

    Block b of a disk holds the bytes that `synthetic_block(disk, b, segment_count)` returns.
    """
    catalog = Catalog.open(catalog_store, item_id)
    if catalog.newest_cut is not None:
        raise InvalidRequest(f"item {item_id} exists already", field="item")
    urls = {disk: store.url for disk, store in stores_by_disk.items()}
    claim = catalog.take_over(1, owner="synthetic", disk_urls=urls)
    disks = []
    for disk, size_bytes in sizes.items():
        store = stores_by_disk[disk]
        checkpoint = write_full_map(store, item_id, disk, size_bytes, claim, segment_count)
        disks.append(AppliedDisk(disk=disk, size_bytes=size_bytes, checkpoint=checkpoint))
    cut = AppliedCut(
        epoch=1,
        sequence=1,
        manifest_sha256="0" * 64,
        time_ns=time_ns,
        consistency=Consistency.CRASH,
        disks=tuple(disks),
        vm_config=vm_config or {},
    )
    catalog.append_cuts([cut])
    return catalog.points[-1]


def write_full_map(
    store: ObjectStore, item_id: str, disk: str, size_bytes: int, claim: int, segment_count: int
) -> str:
    """Store a few segments and a checkpoint that maps every block to one of them; return the
    checkpoint's name."""
    for number in range(segment_count):
        data = b"".join(
            synthetic_block(disk, number * _SEGMENT_BLOCKS + index, segment_count)
            for index in range(_SEGMENT_BLOCKS)
        )
        header = SegmentHeader(item_id, disk, 1, 1, BLOCKS)
        extents = np.array([(number * _SEGMENT_BLOCKS, _SEGMENT_BLOCKS, 0)], EXTENT_DTYPE)
        segment = encode_segment(header, extents, data, compression="zstd")
        name = segment_name(item_id, disk, make_segment_id(claim, number))
        store.create(name, segment.parts)
    block_map = BlockMap(item_id, disk, size_bytes)
    starts = np.arange(0, block_map.block_count, _SEGMENT_BLOCKS)
    for number in range(segment_count):
        mine = starts[number::segment_count]
        extents = np.zeros(len(mine), EXTENT_DTYPE)
        extents["start"] = mine
        extents["count"] = np.minimum(_SEGMENT_BLOCKS, block_map.block_count - mine)
        block_map.apply(make_segment_id(claim, number), extents)
    name = checkpoint_name(item_id, disk, claim, 0)
    block_map.write_checkpoint(store, name, epoch=1)
    return name


def synthetic_block(disk: str, block: int, segment_count: int) -> bytes:
    """Return what block `block` of a synthetic disk holds: half of it compressible."""
    source = random.Random(f"{disk}:{block % (segment_count * _SEGMENT_BLOCKS)}")
    return source.randbytes(BLOCK // 2) + bytes(BLOCK // 2)
