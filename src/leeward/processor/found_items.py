"""What stores hold, read from them alone: items, what their vault knew, where their disks are.

Owns: believing catalogs only. Must not know: vaults, commands. The worker's part of
`leeward vault rebuild`: the service holds no disk bytes and no keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from leeward.core.codec import from_plain
from leeward.core.errors import InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.object_store.store import ObjectStore
from leeward.protocol.rebuild import AboutItem, FoundItem, FoundItems
from leeward.replica.catalog import Catalog
from leeward.replica.log_place import LogObject, has_object, newest_object

_CATALOG = re.compile(r"items/([a-z0-9-]+)/catalog/\d{16}")
_DISK = re.compile(r"items/([a-z0-9-]+)/disks/([a-z0-9-]+)/.*")


def find_items(urls: Sequence[str], open_store: Callable[[str], ObjectStore]) -> FoundItems:
    """Return every item whose catalog lies in one of the stores; each store is listed once.

    An item that cannot be used is there with its problem. Raises: Unavailable when a store cannot
    be listed: half of what is there must not pass for all; InvalidRequest.
    """
    stores = {url: open_store(url) for url in urls}
    listings = {url: store.list("items/") for url, store in stores.items()}
    places = _places(listings)
    found = [
        _read_item(item_id, stores[url], places, stores, open_store)
        for url, names in listings.items()
        for item_id in _matches(_CATALOG, names)
    ]
    # An item that was reprotected has a catalog in both regions: the newer direction comes first.
    return FoundItems(items=tuple(sorted(found, key=lambda item: (item.item_id, -item.epoch))))


def _matches(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    return sorted({match[1] for name in names if (match := pattern.fullmatch(name))})


def _places(listings: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], list[str]]:
    """Return (item, disk) → the stores that hold a replica of the disk: one in each direction."""
    places: dict[tuple[str, str], list[str]] = {}
    for url, names in listings.items():
        for place in {(m[1], m[2]) for name in names if (m := _DISK.fullmatch(name))}:
            places.setdefault(place, []).append(url)
    return places


def _read_item(
    item_id: str,
    store: ObjectStore,
    places: Mapping[tuple[str, str], Sequence[str]],
    stores: Mapping[str, ObjectStore],
    open_store: Callable[[str], ObjectStore],
) -> FoundItem:
    try:
        catalog = Catalog.open(store, item_id)
        if not catalog.about:
            raise InvalidRequest("its catalog does not say which vault it belongs to")
        about = from_plain(catalog.about, AboutItem)
        urls = _urls(catalog, about, places, stores, open_store)
    except Unavailable:
        raise
    except LeewardError as error:
        return FoundItem(item_id=item_id, problem=str(error))
    return FoundItem(
        item_id=item_id,
        epoch=catalog.epoch,
        about=about,
        urls=urls,
        point_count=len(catalog.points),
    )


def _urls(
    catalog: Catalog,
    about: AboutItem,
    places: Mapping[tuple[str, str], Sequence[str]],
    stores: Mapping[str, ObjectStore],
    open_store: Callable[[str], ObjectStore],
) -> dict[str, str]:
    """Return disk → where its replica is, for every disk of which anything is stored.

    Raises: NotFound when the replica of a disk that the VM has now is in none of the stores, nor
    where it was. One of a disk that it had is left out.
    """
    urls = {}
    needed = {mapping.disk for mapping in about.item.disks}
    for disk in catalog.disk_urls:
        wanted = newest_object(catalog, disk)
        if wanted is None:
            continue
        url = _place(catalog, disk, wanted, places.get((catalog.item_id, disk), ()), stores)
        recorded = catalog.disk_urls[disk]
        if url:
            urls[disk] = url
        elif recorded not in stores and _is_at(open_store, recorded, wanted):
            urls[disk] = recorded
        elif disk in needed:
            raise NotFound(
                f"the replica of its disk {disk} is in none of the stores named, nor where it was "
                f"({recorded})",
                hint="name the store that has it, too",
            )
    return urls


def _place(
    catalog: Catalog,
    disk: str,
    wanted: LogObject,
    found: Sequence[str],
    stores: Mapping[str, ObjectStore],
) -> str:
    """Return where the disk's replica is: where it was, or where it has been moved to; "" if it is
    in none of the stores."""
    recorded = catalog.disk_urls[disk]
    for url in sorted(found, key=lambda url: url != recorded):
        if has_object(stores[url], wanted):
            return url
    return ""


def _is_at(open_store: Callable[[str], ObjectStore], url: str, wanted: LogObject) -> bool:
    """Say whether the object is in a store that nobody has named, and that may be gone."""
    try:
        return has_object(open_store(url), wanted)
    except (Unavailable, InvalidRequest):
        return False
