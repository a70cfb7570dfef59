"""The end of an item's epoch: what the cache still gives, then nothing older than the new epoch.

Owns: how long draining may take and what ends it, and sealing whoever owned the catalog before.
Must not know: how cuts are applied. Called by item.py when a failover begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, Fenced, LeewardError, NotFound, Unavailable
from leeward.model.recovery import RecoveryPoint
from leeward.observability.log import get_logger
from leeward.replica.catalog import Catalog

UNAVAILABLE_TRIES = 3
"""Steps that may meet a store that is gone before draining gives up: a dead region stays dead."""
RETRY_SECONDS = 0.1


def drain_aside(step_is_idle: Callable[[], bool], clock: Clock, *, seconds: float) -> bool:
    """Step until the cache has nothing more, cannot be read, or `seconds` have passed.

    Returns whether the last step has ended; if not, it still hangs in a store, in a thread that is
    left behind: whatever it does later must be refused by the catalog. step_is_idle is then still
    in use and whatever lock it takes is still held.
    """
    thread = threading.Thread(
        target=_drain, args=(step_is_idle, clock, clock.monotonic() + seconds), daemon=True
    )
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _drain(step_is_idle: Callable[[], bool], clock: Clock, deadline: float) -> None:
    failures = 0
    while clock.monotonic() < deadline:
        try:
            if step_is_idle():
                return
        except Unavailable as error:
            failures += 1
            if failures == UNAVAILABLE_TRIES:
                get_logger().warning("drain_ended_early", problem=str(error))
                return
            clock.sleep(min(RETRY_SECONDS, max(deadline - clock.monotonic(), 0)))
        except LeewardError as error:  # nothing beyond a bad cut can be applied
            get_logger().warning("drain_ended_early", problem=str(error))
            return


def seal_catalog(catalog: Catalog, *, epoch: int, new_epoch: int) -> RecoveryPoint:
    """Make the catalog refuse anything older than `new_epoch` and return its newest point.

    Takes over first if `catalog` is not the owner. Idempotent.
    Raises: NotFound, and nothing is sealed, when there is no point to fail over to; Fenced when a
    newer epoch exists; Unavailable.
    """
    catalog.refresh()
    if catalog.epoch > new_epoch:
        raise Fenced(f"item {catalog.item_id} is at epoch {catalog.epoch}, newer than {new_epoch}")
    damaged = catalog.quarantined
    points = [p for p in catalog.points if p.epoch < new_epoch and p.id not in damaged]
    if not points:
        raise NotFound(
            f"item {catalog.item_id} has no recovery point yet",
            field="recovery_point",
            hint="wait for the initial replication to end",
        )
    if catalog.epoch < new_epoch:
        try:
            catalog.check_owner()
        except Conflict:
            # a try before this one may have sealed it, and a failover that failed is tried again
            catalog.take_over(max(epoch, catalog.epoch), owner="seal")
        catalog.seal(new_epoch)
    return points[-1]
