"""Removing everything that is stored of an item: cuts, segments, maps, catalog.

Owns: where an item's objects lie. Must not know: their formats. Used by the worker when a replica
is to be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from leeward.core.errors import Unavailable
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ProcessingSpec
from leeward.replica.layout import in_order_of_erasure, item_prefix

log = get_logger()


def erase_item(
    spec: ProcessingSpec, open_store: Callable[[str], ObjectStore], removed: Collection[str] = ()
) -> None:
    """No object of the item is left in the target's stores, nor in the cache if it can be reached.

    Idempotent. The catalog goes last: while it is there, the deletion can be asked for again.
    removed: stores that have been removed with all that was in them. Raises: Unavailable.
    """
    try:
        _erase(open_store(spec.cache_url), spec.item_id)
    except Unavailable as error:
        log.warning("cache_not_erased", item=spec.item_id, error=str(error))
    targets = {replica.target_url for replica in spec.replicas} - {spec.catalog_url}
    for url in (*sorted(targets), spec.catalog_url):
        if url not in removed:
            _erase(open_store(url), spec.item_id)


def _erase(store: ObjectStore, item_id: str) -> None:
    for name in in_order_of_erasure(item_id, store.list(item_prefix(item_id))):
        store.delete(name)
