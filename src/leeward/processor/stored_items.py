"""Which items have anything in stores: how much, up to which recovery point, and who reads it.

Owns: telling the objects of one item from another's, and erasing them. Must not know: which items
are protected. The worker's part of `leeward storage replicas`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, LeewardError, Unavailable
from leeward.object_store.store import ObjectStore
from leeward.protocol.rebuild import AboutItem
from leeward.protocol.replicas import ErasureSpec, StoredItem, StoredItems
from leeward.replica.catalog import Catalog
from leeward.replica.layout import (
    catalog_prefix,
    in_order_of_erasure,
    item_prefix,
    parse_hold,
    parse_pin,
    snapshots_prefix,
)

_OBJECT = re.compile(r"items/([a-z0-9-]+)/(.+)")


def find_stored_items(urls: Sequence[str], open_store: Callable[[str], ObjectStore]) -> StoredItems:
    """Return every item that has an object in one of the stores; each store is listed once.

    A store that cannot be listed and a catalog that cannot be read are told as problems.
    """
    items: list[StoredItem] = []
    problems: dict[str, str] = {}
    for url in urls:
        try:
            items += _items_of(url, open_store(url))
        except LeewardError as error:
            problems[url] = str(error)
    return StoredItems(items=tuple(items), problems=problems)


def erase_stored_item(spec: ErasureSpec, open_store: Callable[[str], ObjectStore]) -> None:
    """No object of the item is left in the store. Idempotent; the catalog goes last: while it is
    there, the list still tells whose the rest is.

    Raises: Conflict while a reader has pinned or holds what is there, unless even_if_held; then
    nothing has been erased. Unavailable.
    """
    store = open_store(spec.url)
    prefix = item_prefix(spec.item_id)
    names = store.list(prefix)
    held = _held(names)
    if held and not spec.even_if_held:
        raise Conflict(
            f"{held} readers have pinned {spec.item_id} or hold a recovery point of it",
            field="even_if_held",
            hint="end exports and test VMs; if their hosts are lost, delete it with --even-if-held",
        )
    for name in in_order_of_erasure(spec.item_id, names):
        store.delete(name)


def _items_of(url: str, store: ObjectStore) -> list[StoredItem]:
    of_items: dict[str, dict[str, int]] = {}
    for name, size in store.sizes("items/").items():
        if match := _OBJECT.fullmatch(name):
            of_items.setdefault(match[1], {})[name] = size
    return [_item(url, store, item_id, sizes) for item_id, sizes in sorted(of_items.items())]


def _item(url: str, store: ObjectStore, item_id: str, sizes: Mapping[str, int]) -> StoredItem:
    prefix = item_prefix(item_id)
    log = (catalog_prefix(item_id), snapshots_prefix(item_id))
    found = StoredItem(
        url=url,
        item_id=item_id,
        objects=len(sizes),
        bytes=sum(sizes.values()),
        has_catalog=any(name.startswith(log) for name in sizes),
        has_disks=any(name.startswith(f"{prefix}disks/") for name in sizes),
        held=_held(sizes),
    )
    return _with_catalog(found, store) if found.has_catalog else found


def _with_catalog(found: StoredItem, store: ObjectStore) -> StoredItem:
    try:
        catalog = Catalog.open(store, found.item_id)
        item = from_plain(catalog.about, AboutItem).item if catalog.about else None
    except Unavailable:
        raise
    except LeewardError as error:
        return replace(found, problem=str(error))
    points = catalog.points
    return replace(
        found,
        name=item.name if item else "",
        vault=item.vault if item else "",
        point_count=len(points),
        newest_point=points[-1].id if points else "",
        newest_time_ns=points[-1].time_ns if points else 0,
    )


def _held(names: Sequence[str] | Mapping[str, int]) -> int:
    """Return how many readers have left a pin or a hold there, each counted once."""
    readers = {
        parsed[1] for name in names if (parsed := parse_pin(name) or parse_hold(name)) is not None
    }
    return len(readers)
