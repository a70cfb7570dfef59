"""A replica that holds given disk images, stored as an initial replication stores them.

Owns: full segments of what is not zero, compressed with zstd level 1, and one recovery point. Must
not know: what is measured with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from leeward.core.units import BLOCK
from leeward.model.recovery import Consistency
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


def write_replica(store: ObjectStore, item_id: str, images: Mapping[str, Path]) -> str:
    """Make a new item whose only recovery point holds the raw images, disk by disk; return the
    point's id."""
    catalog = Catalog.open(store, item_id)
    claim = catalog.take_over(1, disk_urls=dict.fromkeys(images, store.url))
    disks = [_write_disk(store, item_id, disk, image, claim) for disk, image in images.items()]
    cut = AppliedCut(
        epoch=1,
        sequence=1,
        manifest_sha256="0" * 64,
        time_ns=1,
        consistency=Consistency.CRASH,
        disks=tuple(disks),
    )
    catalog.append_cuts([cut])
    return catalog.points[-1].id


def _write_disk(
    store: ObjectStore, item_id: str, disk: str, image: Path, claim: int
) -> AppliedDisk:
    size_bytes = image.stat().st_size
    block_map = BlockMap(item_id, disk, size_bytes)
    numbers = itertools.count(1)
    with image.open("rb") as source:
        for at in range(0, size_bytes, SEGMENT_DATA_MAX):
            source.seek(at)
            segment_id = make_segment_id(claim, next(numbers))
            _write_segment(store, block_map, segment_id, at, source.read(SEGMENT_DATA_MAX))
    checkpoint = checkpoint_name(item_id, disk, claim, 0)
    block_map.write_checkpoint(store, checkpoint, epoch=1)
    return AppliedDisk(disk=disk, size_bytes=size_bytes, checkpoint=checkpoint)


def _write_segment(
    store: ObjectStore, block_map: BlockMap, segment_id: int, at: int, content: bytes
) -> None:
    """Store what of the content is not zero as one segment, and have the map know it."""
    content = content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")
    blocks = np.frombuffer(content, np.uint8).reshape(-1, BLOCK)
    used = np.flatnonzero(blocks.any(axis=1))
    if not len(used):
        return
    firsts = np.flatnonzero(np.diff(used, prepend=-2) != 1)
    extents = np.zeros(len(firsts), EXTENT_DTYPE)
    extents["start"] = at // BLOCK + used[firsts]
    extents["count"] = np.diff(np.append(firsts, len(used)))
    extents["position"] = firsts
    header = SegmentHeader(block_map.item_id, block_map.disk, 1, 1, BLOCKS)
    segment = encode_segment(header, extents, blocks[used].tobytes(), compression="zstd")
    store.create(segment_name(block_map.item_id, block_map.disk, segment_id), segment.parts)
    block_map.apply(segment_id, extents)
