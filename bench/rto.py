"""How soon a recovery point can be read, whether that depends on the disk's size, and how soon a
guest has booted from it.

Owns: metrics first_read_s (start_export called → first NBD read answered, 1 TiB disk) and
size_ratio (that ÷ the same for a 1 GiB disk): both disks are mapped from end to end, both items
have the same number of recovery points and of segments written since the last checkpoint.
boot_ratio (boot from an export ÷ boot from a local disk, in turn), boot_ratio_20ms (the same over a
SeaweedFS 20 ms away, after one recorded boot, nothing cached on the host). For people also the
first boot there, which records; boots with the host's cache kept; and boots while hydration makes
the disks local, which on this small guest has read them whole before it is up.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from tests.contracts.servers import s3_url

from bench.common import Invalid, Result, scratch
from bench.far_store import FarProxy
from bench.guest_boot import Replica, boot_from_export, boot_local, build_images
from bench.image_replica import write_replica
from leeward.core.units import BLOCK, GIB, TIB
from leeward.export.start import start_export
from leeward.model.recovery import Consistency
from leeward.nbd.client import NbdClient
from leeward.object_store.file import FileStore, create_file_store
from leeward.object_store.open import open_store
from leeward.object_store.store import ObjectStore
from leeward.protocol.fabric import ReplicaDisk
from leeward.replica.block_map import BlockMap
from leeward.replica.boot_trace import read_trace
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.disk import open_map
from leeward.replica.layout import checkpoint_name, make_segment_id, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment
from leeward.replica.synthetic import write_full_item

RUNS = 11
BOOT_RUNS = 3
FAR_SECONDS = 0.020
CUTS = 376
CHECKPOINT_CUTS = 128
"""As often as the worker stores a map; 376 cuts leave 120 to replay, nearly the most it allows."""
POINTS_MIN = 300
SEGMENT_BLOCKS = 16
DISK = "disk"
ITEM = "item-boot"


@dataclass(frozen=True, slots=True)
class Item:
    """A synthetic item: its disk's size, its id, where it is."""

    size_bytes: int
    item_id: str
    store: FileStore


def run(runs: float = RUNS, boots: float = BOOT_RUNS) -> Result:
    """Measure both sizes `runs` times, in turn; then boot `boots` times each way, in turn."""
    opening = measure_opening(int(runs)) if runs else {}
    booting = measure_boots(int(boots)) if boots else {}
    return Result(
        {**opening, **booting},
        {
            "first_read_s": "≤ 1",
            "size_ratio": "≤ 1.2",
            "boot_ratio": "≤ 1.3",
            "boot_ratio_20ms": "≤ 1.5",
        },
    )


def measure_opening(runs: int) -> dict[str, list[float]]:
    """Return first_read_s, first_read_1gib_s and size_ratio."""
    with scratch() as root:
        small = make_item(root, GIB)
        large = make_item(root, TIB)
        first_read(root, small)  # the interpreter's compiled files are not part of the figure
        seconds: dict[int, list[float]] = {GIB: [], TIB: []}
        for _ in range(runs):
            for item in (small, large):
                seconds[item.size_bytes].append(first_read(root, item))
    ratio = statistics.median(seconds[TIB]) / statistics.median(seconds[GIB])
    return {
        "first_read_s": seconds[TIB],
        "first_read_1gib_s": seconds[GIB],
        "size_ratio": [ratio],
    }


def measure_boots(runs: int) -> dict[str, list[float]]:
    """Return seconds and ratios of boots, each ratio against the local boot of its own round.

    Raises: Invalid.
    """
    kinds: dict[str, list[float]] = {name: [] for name in ("local", "near", "hydrating")}
    kinds |= {"20ms": [], "20ms_cached": []}
    with scratch() as root:
        images = build_images(root)
        near = _replica(create_file_store(root / "near"), images)
        url = s3_url()
        upstream = urlsplit(dict(parse_qsl(urlsplit(url).query))["endpoint"])
        stored = _replica(open_store(url), images)
        with FarProxy(upstream.port or 0, delay_seconds=FAR_SECONDS) as proxy:
            far = replace(stored, url=url.replace(upstream.netloc, f"127.0.0.1:{proxy.port}"))
            boot_local(root, images)  # page cache, compiled files
            boot_from_export(root, near)
            first = boot_from_export(root, far)
            if not read_trace(open_store(url), ITEM).disks.get("system"):
                raise Invalid("the first boot was not recorded")
            for _ in range(runs):
                kinds["local"].append(boot_local(root, images))
                kinds["near"].append(boot_from_export(root, near))
                kinds["hydrating"].append(boot_from_export(root, near, is_hydrated=True))
                shutil.rmtree(root / "host" / "export-cache")
                kinds["20ms"].append(boot_from_export(root, far))
                kinds["20ms_cached"].append(boot_from_export(root, far))
    ratios = {
        name: [seconds / usual for seconds, usual in zip(values, kinds["local"], strict=True)]
        for name, values in kinds.items()
    }
    return {
        "boot_local_s": kinds["local"],
        "boot_ratio": ratios["near"],
        "boot_ratio_hydrating": ratios["hydrating"],
        "boot_ratio_20ms": ratios["20ms"],
        "boot_ratio_20ms_cached": ratios["20ms_cached"],
        "boot_ratio_20ms_first": [first / kinds["local"][0]],
    }


def _replica(store: ObjectStore, images: Mapping[str, Path]) -> Replica:
    point_id = write_replica(store, ITEM, images)
    sizes = {disk: image.stat().st_size for disk, image in images.items()}
    return Replica(store.url, ITEM, point_id, sizes)


def make_item(root: Path, size_bytes: int) -> Item:
    """Return an item with one fully mapped disk and `CUTS` recovery points more."""
    store = create_file_store(root / f"store-{size_bytes}")
    item_id = f"item-{size_bytes // GIB}"
    point = write_full_item(store, {DISK: store}, item_id, {DISK: size_bytes})
    catalog = Catalog.open(store, item_id)
    block_map = open_map(store, catalog, DISK, point)
    claim = catalog.take_over(1, disk_urls={DISK: store.url})
    source = random.Random(size_bytes)
    for number in range(1, CUTS + 1):
        segment_id = make_segment_id(claim, number)
        _write_segment(store, item_id, segment_id, block_map, source)
        checkpoint = ""
        if number % CHECKPOINT_CUTS == 0:
            checkpoint = checkpoint_name(item_id, DISK, claim, number)
            block_map.write_checkpoint(store, checkpoint, epoch=1)
        catalog.append_cuts([_cut(size_bytes, number + 1, segment_id, checkpoint)])
    if len(catalog.points) < POINTS_MIN:
        raise Invalid(f"only {len(catalog.points)} recovery points")
    return Item(size_bytes, item_id, store)


def _write_segment(
    store: FileStore, item_id: str, segment_id: int, block_map: BlockMap, source: random.Random
) -> None:
    """Store a segment of random blocks at random places, and have the map know it."""
    starts = sorted(source.sample(range(block_map.block_count), SEGMENT_BLOCKS))
    extents = np.zeros(SEGMENT_BLOCKS, EXTENT_DTYPE)
    extents["start"] = starts
    extents["count"] = 1
    extents["position"] = np.arange(SEGMENT_BLOCKS)
    data = source.randbytes(SEGMENT_BLOCKS * BLOCK // 2) + bytes(SEGMENT_BLOCKS * BLOCK // 2)
    header = SegmentHeader(item_id, DISK, 1, 1, BLOCKS)
    segment = encode_segment(header, extents, data, compression="zstd")
    store.create(segment_name(item_id, DISK, segment_id), segment.parts)
    block_map.apply(segment_id, extents)


def _cut(size_bytes: int, sequence: int, segment_id: int, checkpoint: str) -> AppliedCut:
    disk = AppliedDisk(
        disk=DISK, size_bytes=size_bytes, segments=(segment_id,), checkpoint=checkpoint
    )
    return AppliedCut(
        epoch=1,
        sequence=sequence,
        manifest_sha256="0" * 64,
        time_ns=sequence * 10**9,
        consistency=Consistency.CRASH,
        disks=(disk,),
    )


def first_read(root: Path, item: Item) -> float:
    """Return seconds from the call that starts an export to the first disk read's answer."""
    newest = Catalog.open(item.store, item.item_id).points[-1]
    replica = ReplicaDisk(disk=DISK, size_bytes=item.size_bytes, target_url=item.store.url)
    began = time.monotonic()
    export = start_export(
        root / "run",
        root / "data",
        "bench",
        item.store.url,
        item.item_id,
        newest.id,
        [replica],
    )
    try:
        with NbdClient.connect(export.socket, DISK) as client:
            client.read(0, BLOCK)
        return time.monotonic() - began
    finally:
        export.stop()
