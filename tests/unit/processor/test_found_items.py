"""An item with catalogs in both regions, as stores tell of it: the newer direction is the item."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from leeward.core.codec import to_plain
from leeward.model.recovery import Consistency, ItemState, Policy, ReplicatedItem, Vault
from leeward.model.resources import StorageAccount, VirtualMachine
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor.found_items import find_items
from leeward.protocol.rebuild import AboutItem
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.layout import segment_name
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE, SegmentHeader, encode_segment

S = TypeVar("S", bound=ObjectStore)


def _about(source: str, target: str) -> dict[str, object]:
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


def fill_store(store: S, url: str, epoch: int, source: str, target: str) -> S:
    """item-1 has one recovery point in the store."""
    catalog = Catalog.open(store, "item-1")
    catalog.take_over(epoch, disk_urls={"d": url}, about=_about(source, target))
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
