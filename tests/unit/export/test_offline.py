"""Points found in stores alone, of an item that has been replicated in both directions."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from leeward.core.errors import NotFound
from leeward.core.units import BLOCK
from leeward.export.offline import FoundPoint, export_to_raw, find_point, list_points
from leeward.model.recovery import Consistency
from leeward.object_store.memory import shared_memory_store
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.layout import make_segment_id, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

ITEM = "item-1"


@dataclass
class Direction:
    """A log of one block, in stores of its own; every direction gives its objects the same names.
    catalog, disk: URLs."""

    catalog: str
    disk: str
    content: bytes
    point: str


def replicate(epoch: int, *, points: int = 1) -> Direction:
    names = [f"{secrets.token_hex(4)}-{part}" for part in ("system", "data")]
    system, data = map(shared_memory_store, names)
    content = bytes([epoch]) * BLOCK
    catalog = Catalog.open(system, ITEM)
    claim = catalog.take_over(epoch, disk_urls={"data": data.url})
    segment_id = make_segment_id(claim, 1)
    store_block(data, segment_id, epoch, content)
    for sequence in range(1, points + 1):
        segments = (segment_id,) if sequence == 1 else ()
        entry = AppliedDisk(disk="data", size_bytes=BLOCK, segments=segments)
        cut = AppliedCut(
            epoch=epoch,
            sequence=sequence,
            manifest_sha256="",
            time_ns=sequence,
            consistency=Consistency.CRASH,
            disks=(entry,),
        )
        catalog.append_cuts([cut])
    newest = catalog.points[-1].id if points else ""
    return Direction(system.url, data.url, content, newest)


def store_block(store: ObjectStore, segment_id: int, epoch: int, content: bytes) -> None:
    extents = np.array([(0, 1, 0)], EXTENT_DTYPE)
    header = SegmentHeader(ITEM, "data", epoch, 1, BLOCKS)
    encoded = encode_segment(header, extents, content, compression="none")
    store.create(segment_name(ITEM, "data", segment_id), encoded.parts)


def read(found: FoundPoint, directory: Path) -> bytes:
    file = directory / secrets.token_hex(4)
    export_to_raw(found, "data", file)
    return file.read_bytes()


def test_the_newer_direction_is_read_from_its_own_stores_in_whatever_order_they_are_named(
    tmp_path: Path,
) -> None:
    west, east = replicate(1), replicate(4)
    for urls in itertools.permutations([west.catalog, west.disk, east.catalog, east.disk]):
        found = find_point(urls, ITEM, "latest")
        assert (found.point.id, found.catalog_url) == (east.point, east.catalog)
        assert read(found, tmp_path) == east.content
        assert [point.id for point in list_points(urls, ITEM)] == [east.point]


def test_a_point_of_the_older_direction_is_found_by_its_id(tmp_path: Path) -> None:
    west, east = replicate(1), replicate(4)
    urls = [east.catalog, east.disk, west.catalog, west.disk]
    found = find_point(urls, ITEM, west.point)
    assert read(found, tmp_path) == west.content
    with pytest.raises(NotFound, match="rp-0009-00000001"):
        find_point(urls, ITEM, "rp-0009-00000001")


def test_a_direction_without_points_is_not_the_newest_yet(tmp_path: Path) -> None:
    west, east = replicate(1), replicate(4, points=0)
    found = find_point([east.catalog, east.disk, west.catalog, west.disk], ITEM, "latest")
    assert read(found, tmp_path) == west.content


def test_a_replica_in_none_of_the_stores_named_is_where_the_catalog_says(tmp_path: Path) -> None:
    west, east = replicate(1), replicate(4)
    found = find_point([east.catalog, west.disk], ITEM, "latest")
    assert read(found, tmp_path) == east.content
