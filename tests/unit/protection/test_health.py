"""States that follow from reports."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from leeward.model.recovery import TRANSITIONS, ItemState, ReplicatedItem, ReplicationState
from leeward.protection.health import FOLLOWING, Judgement, Reports, judge
from leeward.protocol.messages import ProcessingStatus, ReplicationStatus

ITEM = ReplicatedItem(
    id="item-1",
    name="web-1",
    vault="main",
    policy="default",
    state=ItemState.PROTECTED,
    epoch=1,
    source_region="east",
    source_vm="web-1",
    target_region="west",
    target_resource_group="rg",
)
STREAMING = ReplicationStatus(
    item_id="item-1", epoch=1, state=ReplicationState.STREAMING, initial_done=True
)
WELL = Reports(
    source="agent h in east",
    source_silent_seconds=1,
    replication=STREAMING,
    worker="worker w in west",
    worker_silent_seconds=1,
    processing=ProcessingStatus(
        item_id="item-1", epoch=1, applied_sequence=5, newest_point_time_ns=1
    ),
    newest_point_age_seconds=1.5,
    rpo_alert_seconds=30,
)
STARTING = replace(ITEM, state=ItemState.INITIAL_REPLICATION)


def test_all_is_well() -> None:
    assert judge(ITEM, WELL) == Judgement(state=ItemState.PROTECTED)
    assert judge(STARTING, WELL) == Judgement(state=ItemState.PROTECTED)


def test_without_a_point_it_is_still_initial() -> None:
    reports = replace(WELL, newest_point_age_seconds=None, replication=None)
    assert judge(STARTING, reports) == Judgement(state=ItemState.INITIAL_REPLICATION)


def test_resyncing() -> None:
    status = replace(STREAMING, state=ReplicationState.RESYNCING)
    reports = replace(WELL, replication=status, newest_point_age_seconds=1e6)
    assert judge(ITEM, reports) == Judgement(state=ItemState.RESYNCING)


TRACKS = replace(STREAMING, state=ReplicationState.TRACKING, problem="writes are only tracked")
BEGUN_ANEW = replace(STREAMING, state=ReplicationState.TRACKING)


@pytest.mark.parametrize("state", [ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED])
def test_a_replication_just_begun_anew_changes_nothing(state: ItemState) -> None:
    problem = "a mirror job is gone" if state is ItemState.DEGRADED else ""
    item = replace(ITEM, state=state, problem=problem)
    judgement = judge(item, replace(WELL, replication=BEGUN_ANEW))
    assert judgement == Judgement(state=state, problem=problem)


def test_one_that_never_looks_degrades_by_its_points() -> None:
    reports = replace(WELL, replication=BEGUN_ANEW, newest_point_age_seconds=31)
    assert "older than 30 s" in judge(ITEM, reports).problem


@pytest.mark.parametrize(
    ("reports", "word"),
    [
        (replace(WELL, source_silent_seconds=10.1), "agent h in east does not answer"),
        (replace(WELL, worker_silent_seconds=11), "worker w in west does not answer"),
        (replace(WELL, replication=None), "does not replicate it"),
        (replace(WELL, replication=replace(STREAMING, epoch=0)), "does not replicate it"),
        (replace(WELL, replication=replace(STREAMING, problem="cache full")), "cache full"),
        (replace(WELL, replication=TRACKS), "writes are only tracked"),
        (
            replace(WELL, replication=replace(STREAMING, state=ReplicationState.STOPPED)),
            "has stopped",
        ),
        (replace(WELL, newest_point_age_seconds=31), "older than 30 s"),
    ],
)
def test_what_degrades(reports: Reports, word: str) -> None:
    judgement = judge(ITEM, reports)
    assert judgement.state is ItemState.DEGRADED
    assert word in judgement.problem


@pytest.mark.parametrize("state", sorted(FOLLOWING, key=str))
def test_whatever_is_reported_the_item_goes_where_it_may_go(state: ItemState) -> None:
    item = replace(ITEM, state=state)
    for replication, age, silent in product(
        (None, *(replace(STREAMING, state=each) for each in ReplicationState)),
        (None, 1.0, 1e6),
        (0.0, 1e6),
    ):
        reports = replace(
            WELL,
            replication=replication,
            newest_point_age_seconds=age,
            source_silent_seconds=silent,
        )
        following = judge(item, reports).state
        assert following is state or following in TRANSITIONS[state], reports
