"""`leeward worker`: turns a region's arriving cuts into recovery points.

Owns: which directories, which stores, in which order. Must not know: what a step does. A
composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256

from leeward.agent.erasure import erase_item
from leeward.agent.identity import Identity
from leeward.agent.processing import ProcessingNode
from leeward.core.clock import SystemClock
from leeward.daemons.node import NodeHome, NodeOptions, check_options, run_node, set_environment
from leeward.daemons.places import Places
from leeward.daemons.signals import StopSignal
from leeward.observability.log import configure_logging
from leeward.processor.drain import erase_cache
from leeward.processor.found_items import find_items
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import ItemLoop
from leeward.processor.stored_items import erase_stored_item, find_stored_items
from leeward.protocol.fabric import ProcessingSpec
from leeward.protocol.messages import Role
from leeward.protocol.rebuild import FoundItems
from leeward.protocol.replicas import ErasureSpec, StoredItems
from leeward.recovery_points.retention import plan_retention
from leeward.replica.host_keys import open_keyed


def run_worker(options: NodeOptions) -> None:
    """The region's worker runs until it is told to stop.

    Raises: InvalidRequest, Conflict when another worker has its directory, Unavailable.
    """
    check_options(options, Role.WORKER)
    stop = StopSignal()
    configure_logging()
    set_environment(options)
    directory = Places(options.data).worker(options.region)
    with NodeHome(directory, Role.WORKER, options) as home:
        loop = partial(_loop, _owner(home.identity))
        run_node(home, ProcessingNode(home.directory, loop, _erase, _Stores()), options, stop)


def _owner(identity: Identity) -> str:
    """Return what tells this worker from every other, one that will bear its name included."""
    return f"{identity.region}/{identity.name} {sha256(identity.key.encode()).hexdigest()[:12]}"


def _loop(
    owner: str, spec: ProcessingSpec, is_resumed: bool, on_change: Callable[[], None]
) -> ItemLoop:
    clock = SystemClock()
    return ItemLoop(
        spec,
        ItemProcessor(
            spec,
            partial(open_keyed, key_id=spec.key_id),
            clock,
            owner=owner,
            is_resumed=is_resumed,
        ),
        lambda points: plan_retention(points, spec.tiers, group=spec.consistency_group),
        clock,
        on_change=on_change,
    )


def _erase(spec: ProcessingSpec, removed: Sequence[str]) -> None:
    erase_item(spec, open_keyed, removed)


class _Stores:
    """Stores by URL, with the host's keys."""

    def find_items(self, urls: Sequence[str]) -> FoundItems:
        return find_items(urls, open_keyed)

    def find_stored_items(self, urls: Sequence[str]) -> StoredItems:
        return find_stored_items(urls, open_keyed)

    def erase_stored_item(self, wanted: ErasureSpec) -> None:
        erase_stored_item(wanted, open_keyed)

    def erase_cache(self, item_id: str, url: str) -> None:
        erase_cache(open_keyed(url), item_id)
