"""What the block map costs: memory for each mapped chunk, lookups, opening big and sparse disks.

Owns: metrics `bytes_per_chunk` (a disk mapped from end to end by whole segments),
`bytes_per_chunk_fragmented` (the same with 4 KiB overwritten in 5 % of the chunks),
`bytes_per_chunk_shredded` (… in every chunk), `lookup_ms` (1 000 000 random blocks of the second),
`first_read_s` (1 TiB mapped from end to end, `POINTS_MIN` points: catalog, map and first block, in
a running process), `sparse_s` (the same of 64 TiB with a written block here and there).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np

from bench.common import Invalid, Result, scratch
from bench.rto import CUTS, DISK, POINTS_MIN, Item, make_item
from leeward.core.units import BLOCK, GIB, TIB
from leeward.model.recovery import Consistency
from leeward.object_store.file import create_file_store
from leeward.replica.block_map import BlockMap
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.checkpoint import CHUNK_BLOCKS
from leeward.replica.disk import open_point
from leeward.replica.layout import checkpoint_name, make_segment_id, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

RUNS = 5
MAPPED_BYTES = 64 * GIB
SEGMENT_BLOCKS = 4096
FRAGMENTED_SHARE = 0.05
LOOKUPS = 1_000_000
SPARSE_BYTES = 64 * TIB
SPARSE_STEP_BYTES = 16 * GIB


def run(runs: float = RUNS) -> Result:
    """Measure each figure `runs` times."""
    count = int(runs)
    metrics: dict[str, list[float]] = {}
    whole = _mapped(overwritten=0.0)
    metrics["bytes_per_chunk"] = [_bytes_per_chunk(whole)]
    del whole
    fragmented = _mapped(overwritten=FRAGMENTED_SHARE)
    metrics["bytes_per_chunk_fragmented"] = [_bytes_per_chunk(fragmented)]
    metrics["lookup_ms"] = [_lookup_ms(fragmented, number) for number in range(count)]
    del fragmented
    metrics["bytes_per_chunk_shredded"] = [_bytes_per_chunk(_mapped(overwritten=1.0))]
    with scratch() as root:
        large = make_item(root, TIB)
        sparse = _make_sparse_item(root)
        metrics["first_read_s"] = [_first_read(large) for _ in range(count)]
        metrics["sparse_s"] = [_first_read(sparse) for _ in range(count)]
    targets = {
        "bytes_per_chunk": "≤ 24",
        "bytes_per_chunk_fragmented": "≤ 24",
        "lookup_ms": "≤ 50",
        "first_read_s": "≤ 1",
        "sparse_s": "≤ 2",
    }
    return Result(metrics, targets)


def _mapped(*, overwritten: float) -> BlockMap:
    """Return a map of `MAPPED_BYTES`, every block mapped, and of that share of the chunks one
    block overwritten since, each by another place of a later segment."""
    block_map = BlockMap("item", DISK, MAPPED_BYTES)
    starts = np.arange(0, block_map.block_count, SEGMENT_BLOCKS)
    for number, start in enumerate(starts.tolist()):
        extents = np.array([(start, SEGMENT_BLOCKS, 0)], EXTENT_DTYPE)
        block_map.apply(make_segment_id(1, number), extents)
    chunk_count = block_map.block_count // CHUNK_BLOCKS
    source = np.random.default_rng(1)
    chunks = np.sort(source.permutation(chunk_count)[: int(chunk_count * overwritten)])
    blocks = chunks * CHUNK_BLOCKS + source.integers(0, CHUNK_BLOCKS, len(chunks))
    for number in range(0, len(blocks), SEGMENT_BLOCKS):
        part = blocks[number : number + SEGMENT_BLOCKS]
        extents = np.zeros(len(part), EXTENT_DTYPE)
        extents["start"], extents["count"] = part, 1
        extents["position"] = np.arange(len(part))
        block_map.apply(make_segment_id(2, number), extents)
    return block_map


def _bytes_per_chunk(block_map: BlockMap) -> float:
    return block_map.memory_bytes / (block_map.block_count // CHUNK_BLOCKS)


def _lookup_ms(block_map: BlockMap, seed: int) -> float:
    blocks = np.random.default_rng(seed).integers(0, block_map.block_count, LOOKUPS)
    began = time.perf_counter()
    segments, _ = block_map.lookup(blocks)
    elapsed = time.perf_counter() - began
    if not segments.all():
        raise Invalid("a block of a fully mapped disk reads as zeros")
    return elapsed * 1000


def _first_read(item: Item) -> float:
    """Return seconds from nothing known to a block's bytes, in this process."""
    began = time.perf_counter()
    disks = open_point(item.store, {DISK: item.store}, item.item_id, "latest")
    with disks[DISK] as disk:
        if len(disk.read(0, BLOCK)) != BLOCK:
            raise Invalid("no block")
    return time.perf_counter() - began


def _make_sparse_item(root: Path) -> Item:
    """Return an item of `SPARSE_BYTES` with `CUTS` points, 16 blocks written all over it in each
    of them and a stored map now and then."""
    store, item_id = create_file_store(root / "sparse"), "item-sparse"
    catalog = Catalog.open(store, item_id)
    claim = catalog.take_over(1, disk_urls={DISK: store.url})
    block_map, source = BlockMap(item_id, DISK, SPARSE_BYTES), random.Random(1)
    places = range(0, block_map.block_count, SPARSE_STEP_BYTES // BLOCK)
    for number in range(1, CUTS + 1):
        extents = np.zeros(16, EXTENT_DTYPE)
        extents["start"] = sorted(source.sample(places, 16))
        extents["count"], extents["position"] = 1, np.arange(16)
        segment_id = make_segment_id(claim, number)
        header = SegmentHeader(item_id, DISK, 1, number, BLOCKS)
        segment = encode_segment(header, extents, source.randbytes(16 * BLOCK), compression="zstd")
        store.create(segment_name(item_id, DISK, segment_id), segment.parts)
        block_map.apply(segment_id, extents)
        checkpoint = ""
        if number % 128 == 0:
            checkpoint = checkpoint_name(item_id, DISK, claim, number)
            block_map.write_checkpoint(store, checkpoint, epoch=1)
        disk = AppliedDisk(
            disk=DISK, size_bytes=SPARSE_BYTES, segments=(segment_id,), checkpoint=checkpoint
        )
        cut = AppliedCut(
            epoch=1,
            sequence=number,
            manifest_sha256="0" * 64,
            time_ns=number * 10**9,
            consistency=Consistency.CRASH,
            disks=(disk,),
        )
        catalog.append_cuts([cut])
    if len(catalog.points) < POINTS_MIN:
        raise Invalid(f"only {len(catalog.points)} recovery points")
    return Item(SPARSE_BYTES, item_id, store)
