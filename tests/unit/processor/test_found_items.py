"""An item with catalogs in both regions, as stores tell of it: the newer direction is the item."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from tests.properties.test_catalog_floor import Worker

from leeward.core.codec import to_plain
from leeward.core.errors import Unavailable
from leeward.model.recovery import (
    Consistency,
    DiskMapping,
    ItemState,
    Policy,
    ReplicatedItem,
    Vault,
)
from leeward.model.resources import StorageAccount, VirtualMachine
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor import trimming
from leeward.processor.found_items import find_items
from leeward.protocol.rebuild import AboutItem
from leeward.replica import snapshots
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.layout import record_name, segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

S = TypeVar("S", bound=ObjectStore)


def _about(source: str, target: str, disk: str = "d") -> dict[str, object]:
    item = ReplicatedItem(
        id="item-1",
        name="web-1",
        vault="main",
        policy="default",
        state=ItemState.PROTECTED,
        epoch=1,
        source_region=source,
        source_vm="web-1",
        target_region=target,
        target_resource_group="rg",
        disks=(DiskMapping(disk=disk, source_account="data", target_account="data"),),
    )
    about: dict[str, object] = to_plain(
        AboutItem(
            vault=Vault(name="main"),
            policy=Policy(name="default"),
            item=item,
            target_vm=VirtualMachine(region=target, name="web-1", resource_group="rg"),
            cache_region=source,
            cache=StorageAccount(region=source, name="cache", resource_group="rg"),
        )
    )
    return about


def _store(url: str, epoch: int, source: str, target: str) -> MemoryStore:
    """Return a target's store; every direction gives its first segment the same name."""
    return fill_store(MemoryStore(), url, epoch, source, target)


def fill_store(
    store: S, url: str, epoch: int, source: str, target: str, *, has_now: str = "d"
) -> S:
    """item-1 has one recovery point in the store, of disk d. has_now: the VM's disk of today."""
    catalog = Catalog.open(store, "item-1")
    about = _about(source, target, has_now)
    catalog.take_over(epoch, disk_urls={"d": url, "empty": url}, about=about)
    header = SegmentHeader("item-1", "d", epoch, 1, BLOCKS)
    segment = encode_segment(header, np.zeros(0, EXTENT_DTYPE), b"", compression="none")
    store.create(segment_name("item-1", "d", 1 << 28), segment.parts)
    catalog.append_cuts(
        [
            AppliedCut(
                epoch=epoch,
                sequence=1,
                manifest_sha256="",
                time_ns=1,
                consistency=Consistency.CRASH,
                disks=(AppliedDisk(disk="d", size_bytes=4096, segments=(1 << 28,)),),
            )
        ]
    )
    return store


def trim_catalog(store: ObjectStore, item_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the item's catalog go on until its first records have been deleted."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_VERSIONS", 2)
    monkeypatch.setattr(trimming, "FLOOR_VERSIONS", 5)
    worker = Worker(store, item_id)
    worker.catalog.take_over(worker.catalog.epoch)
    for _ in range(30):
        worker.catalog.free(objects=0, bytes=0)
        worker.trimmer.trim()


def test_a_vault_is_found_in_stores_whose_catalogs_are_trimmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "memory://west"
    store = _store(url, 2, "east", "west")
    (before,) = find_items([url], {url: store}.__getitem__).items
    trim_catalog(store, "item-1", monkeypatch)
    assert record_name("item-1", 1) not in store.list("")
    (after,) = find_items([url], {url: store}.__getitem__).items
    assert after == before
    assert after.about is not None
    assert (after.problem, after.urls, after.point_count) == ("", {"d": url}, 1)


def test_the_newer_direction_comes_first_each_with_its_own_store() -> None:
    stores = {
        "memory://west": _store("memory://west", 1, "east", "west"),
        "memory://east": _store("memory://east", 4, "west", "east"),
    }
    for urls in (list(stores), list(reversed(stores))):
        newer, older = find_items(urls, stores.__getitem__).items
        assert newer.about is not None
        assert (newer.epoch, newer.about.item.target_region) == (4, "east")
        assert newer.urls == {"d": "memory://east"}
        assert (older.epoch, older.urls) == (1, {"d": "memory://west"})


def test_a_store_that_was_moved_is_where_it_was_found() -> None:
    stores = {"memory://elsewhere": _store("memory://west", 1, "east", "west")}
    (found,) = find_items(list(stores), stores.__getitem__).items
    assert found.urls == {"d": "memory://elsewhere"}


def test_stores_of_both_directions_that_were_moved_are_not_taken_for_each_other() -> None:
    stores = {
        "memory://w": _store("memory://west", 1, "east", "west"),
        "memory://e": _store("memory://east", 4, "west", "east"),
    }
    for urls in (list(stores), list(reversed(stores))):
        newer, older = find_items(urls, stores.__getitem__).items
        assert (newer.urls, older.urls) == ({"d": "memory://e"}, {"d": "memory://w"})


def _only(stores: dict[str, MemoryStore]) -> Callable[[str], ObjectStore]:
    def open_store(url: str) -> ObjectStore:
        if url not in stores:
            raise Unavailable(f"the object store at {url} is gone")
        return stores[url]

    return open_store


def _apart() -> tuple[MemoryStore, MemoryStore]:
    """Return the store with item-1's catalog and the one with its disk."""
    whole = _store("memory://data", 1, "east", "west")
    catalog, data = MemoryStore(), MemoryStore()
    for name in whole.list(""):
        (catalog if "/catalog/" in name else data).create(name, whole.get(name))
    return catalog, data


def test_a_replica_in_a_store_that_nobody_named_is_found_where_it_was() -> None:
    catalog, data = _apart()
    open_store = _only({"memory://system": catalog, "memory://data": data})
    (found,) = find_items(["memory://system"], open_store).items
    assert (found.problem, found.urls) == ("", {"d": "memory://data"})


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_an_item_whose_replica_is_in_none_of_the_stores_says_so(is_made_anew: bool) -> None:
    catalog, _ = _apart()
    stores = {"memory://system": catalog}
    if is_made_anew:
        stores["memory://data"] = MemoryStore()
    (found,) = find_items(["memory://system"], _only(stores)).items
    assert "disk d is in none of the stores named" in found.problem
    assert "memory://data" in found.problem


def test_a_replica_of_a_disk_that_the_vm_had_may_be_lost() -> None:
    stores = {"memory://west": MemoryStore()}
    fill_store(stores["memory://west"], "memory://west", 1, "east", "west", has_now="empty")
    stores["memory://west"].delete(segment_name("item-1", "d", 1 << 28))
    (found,) = find_items(list(stores), stores.__getitem__).items
    assert (found.problem, found.urls) == ("", {})
