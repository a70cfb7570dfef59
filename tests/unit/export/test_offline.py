"""Points found in stores alone, of an item that has been replicated in both directions."""

from __future__ import annotations

import itertools
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeward.core.errors import Conflict, NotFound
from leeward.core.units import BLOCK
from leeward.export import offline
from leeward.export.block_cache import BlockCache
from leeward.export.cached_store import CachedStore
from leeward.export.copying import copy_data
from leeward.export.offline import FoundPoint, export_to_raw, find_point, list_points
from leeward.model.recovery import Consistency
from leeward.object_store.memory import shared_memory_store
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.disk import open_point
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


def replicate(epoch: int, *, points: int = 1, at: Direction | None = None) -> Direction:
    """at: in whose stores, else in new ones."""
    names = [f"{secrets.token_hex(4)}-{part}" for part in ("system", "data")]
    if at is not None:
        names = [url.removeprefix("memory://") for url in (at.catalog, at.disk)]
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


def test_a_file_that_has_appeared_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    west, file = replicate(1), tmp_path / "data.raw"
    found = find_point([west.catalog, west.disk], ITEM, "latest")

    def copy(*arguments: Any, **more: Any) -> None:
        copy_data(*arguments, **more)
        file.write_bytes(b"somebody's")

    monkeypatch.setattr(offline, "copy_data", copy)
    with pytest.raises(Conflict, match="exists already"):
        export_to_raw(found, "data", file)
    assert file.read_bytes() == b"somebody's"
    assert list(tmp_path.iterdir()) == [file]


def test_two_exports_to_one_file_do_not_write_into_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    west, file = replicate(1), tmp_path / "data.raw"
    found = find_point([west.catalog, west.disk], ITEM, "latest")
    (tmp_path / "data.raw.partial").write_bytes(b"of one that was killed" * 1000)

    def copy(*arguments: Any, **more: Any) -> None:
        copy_data(*arguments, **more)
        with pytest.raises(Conflict, match="is being written"):
            export_to_raw(found, "data", file)

    monkeypatch.setattr(offline, "copy_data", copy)
    export_to_raw(found, "data", file)
    assert file.read_bytes() == west.content
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_written_out_is_there_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are synced, then its name."""
    west, file, synced = replicate(1), tmp_path / "data.raw", list[tuple[int, bool]]()

    def sync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, file.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    export_to_raw(find_point([west.catalog, west.disk], ITEM, "latest"), "data", file)
    assert synced == [(file.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_what_is_cached_of_a_store_that_was_lost_is_not_taken_for_what_it_holds_now(
    tmp_path: Path,
) -> None:
    """A region's store is made anew, at the same URL, and replicated to again."""
    cache = BlockCache(tmp_path / "cache", 1 << 24)
    west = replicate(1)
    assert read_cached(west, cache) == west.content
    for url in (west.catalog, west.disk):
        store = shared_memory_store(url.removeprefix("memory://"))
        for name in store.list(""):
            store.delete(name)
    for epoch in (3, 5):
        anew = replicate(epoch, at=west)
        assert read_cached(anew, cache) == anew.content
        for name in shared_memory_store(west.catalog.removeprefix("memory://")).list(""):
            shared_memory_store(west.catalog.removeprefix("memory://")).delete(name)


def read_cached(direction: Direction, cache: BlockCache) -> bytes:
    catalog, disk = (
        shared_memory_store(url.removeprefix("memory://"))
        for url in (direction.catalog, direction.disk)
    )
    stores = {"data": CachedStore(disk, cache)}
    with open_point(catalog, stores, ITEM, direction.point)["data"] as opened:
        return opened.read(0, BLOCK)
