"""Planning a failover: from which recovery point, with how much patience for the cache.

Owns: what "latest" and "latest-processed" mean, and when an item may fail over or change its point.
Must not know: nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leeward.core.errors import Conflict, InvalidRequest
from leeward.failover.select import LATEST, LATEST_PROCESSED, select_point
from leeward.model.recovery import (
    ItemState,
    RecoveryPoint,
    ReplicatedItem,
    check_is,
    check_transition,
)

DRAIN_SECONDS = 5.0
"""How long "latest" waits for a cache that is gone."""

_REPLICATED = frozenset({ItemState.PROTECTED, ItemState.RESYNCING})


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverPlan:
    """point_id "": the newest point the worker has after draining for `drain_seconds`. is_planned:
    the source is shut down first, and nothing it wrote may be missing."""

    epoch: int
    point_id: str
    drain_seconds: float
    is_planned: bool = False


def plan_failover(
    item: ReplicatedItem, points: Sequence[RecoveryPoint], wanted: str
) -> FailoverPlan:
    """Return how the item fails over to `wanted`, as `select_point` understands it.

    points: those listed. Raises: Conflict when its state forbids it or it has no point; NotFound
    for a point it has not.
    """
    if item.state is ItemState.FAILED_OVER:
        raise Conflict(
            f"{item.name} has already failed over to {item.recovery_point}",
            hint=f"`leeward change-recovery-point {item.name} POINT` until its commit",
        )
    check_transition(item, ItemState.FAILING_OVER)
    if not points:
        raise Conflict(f"{item.name} has no recovery point yet: there is nothing to fail over to")
    is_newest = wanted in (LATEST, LATEST_PROCESSED)
    point_id = "" if is_newest else select_point(points, wanted, item=item.name).id
    return FailoverPlan(
        epoch=item.epoch + 1,
        point_id=point_id,
        drain_seconds=DRAIN_SECONDS if wanted == LATEST else 0.0,
    )


def plan_planned_failover(
    item: ReplicatedItem, points: Sequence[RecoveryPoint], wanted: str
) -> FailoverPlan:
    """Return how the item fails over without losing anything, its source being shut down first.

    Raises: as `plan_failover`; Conflict when its source does not replicate it now; InvalidRequest
    for any point but the last one there will be.
    """
    if wanted != LATEST:
        raise InvalidRequest(
            f"a planned failover loses nothing, {wanted} would",
            field="recovery_point",
            hint=f"leave the recovery point out, or fail over to {wanted} without planning",
        )
    plan = replace(plan_failover(item, points, wanted), is_planned=True)
    if item.state not in _REPLICATED:
        said = f": {item.problem}" if item.problem else ""
        raise Conflict(
            f"{item.name} is {item.state.value}{said}; a planned failover needs its source",
            field="state",
            hint=f"mend that, or `leeward failover {item.name}` loses what was not replicated",
        )
    return plan


def plan_change(
    item: ReplicatedItem, points: Sequence[RecoveryPoint], wanted: str
) -> RecoveryPoint:
    """Return the point a failed-over item is to be started from instead.

    Raises: Conflict when it has not failed over, or is at that point already; NotFound.
    """
    check_is(item, ItemState.FAILED_OVER)
    point = select_point(points, wanted, item=item.name)
    if point.id == item.recovery_point:
        raise Conflict(f"{item.name} already runs from {point.id}", field="recovery_point")
    return point
