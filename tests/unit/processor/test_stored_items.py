"""What lies in stores, of whom, and erasing it: by the stores alone."""

from __future__ import annotations

import pytest
from tests.unit.processor.test_found_items import _store, trim_catalog

from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor.stored_items import erase_stored_item, find_stored_items
from leeward.protocol.replicas import ErasureSpec
from leeward.replica.holds import Hold
from leeward.replica.layout import in_order_of_erasure, record_name
from leeward.replica.pins import Pin

TARGET, CACHE, GONE = "memory://west", "memory://cache", "memory://gone"


class Stores:
    """A target's store with item-1 in it, a cache with what is left of two items, one store away;
    `deleted` has the names in order."""

    def __init__(self) -> None:
        self.target = _store(TARGET, 3, "east", "west")
        self.cache = MemoryStore()
        for name in ("item-1/applied/00000001", "item-1/digests/1", "item-2/applied/00000001"):
            self.cache.create(f"items/{name}", b"12345")
        self.deleted: list[str] = []

    def open(self, url: str) -> ObjectStore:
        if url == GONE:
            raise Unavailable("its root is gone")
        store = self.target if url == TARGET else self.cache
        delete = store.delete

        def note(name: str) -> None:
            self.deleted.append(name)
            delete(name)

        wrapped = MemoryStore()
        wrapped._objects = store._objects
        wrapped.delete = note  # type: ignore[method-assign]
        return wrapped


def test_each_item_is_told_with_its_size_and_newest_point() -> None:
    stores = Stores()
    found = find_stored_items([TARGET, CACHE, GONE], stores.open)
    replica, left, other = found.items
    assert (replica.url, replica.item_id, replica.name, replica.vault) == (
        TARGET,
        "item-1",
        "web-1",
        "main",
    )
    assert replica.bytes == sum(stores.target.sizes("items/").values())
    assert replica.objects == len(stores.target.list("items/"))
    assert (replica.has_catalog, replica.has_disks, replica.point_count) == (True, True, 1)
    assert (replica.newest_point, replica.newest_time_ns) == ("rp-0003-00000001", 1)
    assert (left.url, left.item_id, left.objects, left.bytes) == (CACHE, "item-1", 2, 10)
    assert not left.has_catalog
    assert not left.has_disks
    assert (other.item_id, other.objects) == ("item-2", 1)
    assert found.problems == {GONE: "its root is gone"}


def test_a_catalog_that_cannot_be_read_is_told_and_can_be_erased() -> None:
    stores = Stores()
    (name, *_) = stores.target.list("items/item-1/catalog/")
    stores.target._objects[name] = b"rotten"
    (found,) = find_stored_items([TARGET], stores.open).items
    assert found.problem
    assert found.bytes
    erase_stored_item(ErasureSpec(item_id="item-1", url=TARGET), stores.open)
    assert stores.target.list("") == []


def test_only_that_item_is_erased_the_catalog_last_and_again_is_no_error() -> None:
    stores = Stores()
    for _ in range(2):
        for url in (TARGET, CACHE):
            erase_stored_item(ErasureSpec(item_id="item-1", url=url), stores.open)
    assert stores.target.list("") == []
    assert stores.cache.list("") == ["items/item-2/applied/00000001"]
    is_catalog = ["/catalog/" in name for name in stores.deleted if "applied" not in name]
    is_catalog = is_catalog[: len(is_catalog) - 1]  # the last is the cache's
    assert is_catalog == sorted(is_catalog)
    assert any(is_catalog)


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_a_catalog_tells_whose_it_is_until_it_is_all_erased(
    is_trimmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any deletion: what is left is named as long as the catalog has anything."""
    stores = Stores()
    if is_trimmed:
        trim_catalog(stores.target, "item-1", monkeypatch)
    assert (record_name("item-1", 1) in stores.target.list("")) is not is_trimmed
    (found,) = find_stored_items([TARGET], stores.open).items
    assert (found.name, found.newest_point, found.problem) == ("web-1", "rp-0003-00000001", "")
    names = stores.target.list("")
    for name in in_order_of_erasure("item-1", names):
        (found,) = find_stored_items([TARGET], stores.open).items
        assert (found.name, found.vault, found.problem) == ("web-1", "main", "")
        stores.target.delete(name)
    assert stores.target.list("") == []


def test_nothing_is_erased_under_a_reader_unless_it_is_said_to_be_lost() -> None:
    stores = Stores()
    pin = Pin(stores.target, "item-1", 1, "rp-0003-00000001")
    hold = Hold(stores.target, "item-1", "rp-0003-00000001", "vm")
    try:
        (found,) = find_stored_items([TARGET], stores.open).items
        assert found.held == 2
        before = stores.target.list("")
        with pytest.raises(Conflict, match="2 readers") as refused:
            erase_stored_item(ErasureSpec(item_id="item-1", url=TARGET), stores.open)
        assert refused.value.field == "even_if_held"
        assert stores.target.list("") == before
    finally:
        pin.release()
    wanted = ErasureSpec(item_id="item-1", url=TARGET, even_if_held=True)
    erase_stored_item(wanted, stores.open)
    assert stores.target.list("") == []
    del hold


def test_no_name_reaches_beyond_its_item() -> None:
    stores = Stores()
    for item_id in ("", "..", "item-1/../item-2"):
        with pytest.raises((InvalidRequest, NotFound)):
            erase_stored_item(ErasureSpec(item_id=item_id, url=CACHE), stores.open)
    assert stores.deleted == []
