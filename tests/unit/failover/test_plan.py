"""Which point a failover takes, and when it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.failover.plan import (
    FailoverPlan,
    plan_change,
    plan_failover,
    plan_planned_failover,
)
from leeward.model.recovery import (
    Consistency,
    ItemState,
    RecoveryPoint,
    ReplicatedItem,
    check_transition,
)

ITEM = ReplicatedItem(
    id="item-1",
    name="web-1",
    vault="main",
    policy="default",
    state=ItemState.PROTECTED,
    epoch=3,
    source_region="east",
    source_vm="web-1",
    target_region="west",
    target_resource_group="rg",
)
POINTS = tuple(
    RecoveryPoint(
        id=f"rp-{epoch}-{sequence}",
        epoch=epoch,
        sequence=sequence,
        time_ns=1,
        consistency=Consistency.CRASH,
    )
    for epoch, sequence in ((3, 2), (3, 1), (2, 9))
)


def test_latest_drains_the_cache_and_lets_the_worker_say_which_point() -> None:
    assert plan_failover(ITEM, POINTS, "latest") == FailoverPlan(
        epoch=4, point_id="", drain_seconds=5.0
    )


def test_latest_processed_waits_for_nothing() -> None:
    assert plan_failover(ITEM, POINTS, "latest-processed") == FailoverPlan(
        epoch=4, point_id="", drain_seconds=0.0
    )


def test_who_asks_too_early_or_too_late_is_told_what_to_do() -> None:
    with pytest.raises(Conflict, match="`leeward failover web-1` comes first"):
        check_transition(ITEM, ItemState.COMMITTED)
    with pytest.raises(Conflict, match="`leeward reprotect web-1` comes first"):
        plan_failover(replace(ITEM, state=ItemState.COMMITTED), POINTS, "latest")
    with pytest.raises(Conflict, match="`leeward change-recovery-point web-1 POINT`"):
        plan_failover(replace(ITEM, state=ItemState.FAILED_OVER), POINTS, "latest")


def test_a_point_by_id() -> None:
    assert plan_failover(ITEM, POINTS, "rp-2-9") == FailoverPlan(
        epoch=4, point_id="rp-2-9", drain_seconds=0.0
    )
    with pytest.raises(NotFound, match="no recovery point rp-x"):
        plan_failover(ITEM, POINTS, "rp-x")


def test_nothing_to_fail_over_to() -> None:
    with pytest.raises(Conflict, match="no recovery point yet"):
        plan_failover(ITEM, (), "latest")


@pytest.mark.parametrize("state", ItemState)
def test_states_that_may_fail_over(state: ItemState) -> None:
    item = replace(ITEM, state=state)
    if state in (ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED):
        assert plan_failover(item, POINTS, "latest").epoch == 4
    else:
        with pytest.raises(Conflict):
            plan_failover(item, POINTS, "latest")


@pytest.mark.parametrize("state", ItemState)
def test_only_a_failed_over_item_changes_its_point(state: ItemState) -> None:
    item = replace(ITEM, state=state, recovery_point="rp-3-1")
    if state is ItemState.FAILED_OVER:
        assert plan_change(item, POINTS, "latest-processed").id == "rp-3-2"
        assert plan_change(item, POINTS, "rp-2-9").id == "rp-2-9"
        with pytest.raises(Conflict, match="already runs from"):
            plan_change(item, POINTS, "rp-3-1")
    else:
        with pytest.raises(Conflict):
            plan_change(item, POINTS, "rp-2-9")


def test_a_planned_failover_takes_everything_from_a_source_that_replicates() -> None:
    assert plan_planned_failover(ITEM, POINTS, "latest") == FailoverPlan(
        epoch=4, point_id="", drain_seconds=5.0, is_planned=True
    )
    with pytest.raises(InvalidRequest, match="loses nothing"):
        plan_planned_failover(ITEM, POINTS, "rp-3-1")
    with pytest.raises(Conflict, match="degraded: no tap; a planned failover needs its source"):
        plan_planned_failover(
            replace(ITEM, state=ItemState.DEGRADED, problem="no tap"), POINTS, "latest"
        )
