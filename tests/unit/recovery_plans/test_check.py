"""Plans that make no sense are refused with a sentence; the order is what `after` asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, RecoveryPlan
from leeward.model.recovery import ItemState, ReplicatedItem
from leeward.recovery_plans.check import check_plan, check_runnable, find_obstacles, order_groups


def item(name: str, *, source: str = "east", target: str = "west") -> ReplicatedItem:
    return ReplicatedItem(
        id=f"item-{name}",
        name=name,
        vault="main",
        policy="default",
        state=ItemState.PROTECTED,
        epoch=1,
        source_region=source,
        source_vm=name,
        target_region=target,
        target_resource_group="rg",
    )


ITEMS = {name: item(name) for name in ("db-1", "web-1", "web-2")}
ITEMS["away"] = item("away", source="north")


def plan(*groups: PlanGroup) -> RecoveryPlan:
    return RecoveryPlan(name="site", vault="main", groups=groups)


def action(kind: ActionKind, **given: object) -> PlanAction:
    return replace(PlanAction(name="a", kind=kind), **given)  # type: ignore[arg-type]


DB = PlanGroup(name="db", items=("db-1",))
WEB = PlanGroup(name="web", items=("web-1", "web-2"))


def test_groups_come_in_order_but_behind_those_they_name() -> None:
    check_plan(plan(DB, WEB), ITEMS)
    assert order_groups(plan(DB, WEB)) == (DB, WEB)
    late = replace(DB, after=("web",))
    assert order_groups(plan(late, WEB)) == (WEB, late)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (plan(), "at least one group"),
        (plan(PlanGroup(name="empty")), "no items"),
        (plan(DB, replace(WEB, items=("db-1",))), "db-1: more than once"),
        (plan(DB, DB), "two are named db"),
        (plan(replace(DB, items=("gone-1",))), "does not protect gone-1"),
        (plan(DB, replace(WEB, items=("away",))), "go different ways"),
        (plan(replace(DB, after=("web",)), replace(WEB, after=("db",))), "wait for each other"),
        (plan(replace(DB, after=("db",))), "wait for each other"),
        (plan(replace(DB, after=("cache",))), "which the plan does not have"),
        (plan(replace(DB, name="x" * 25)), "longer than 24"),
        (plan(replace(DB, pre=(action(ActionKind.SCRIPT, script="../sh"),))), "name of a script"),
        (plan(replace(DB, pre=(action(ActionKind.HTTP, url="file:///etc"),))), "not an http"),
        (plan(replace(DB, pre=(action(ActionKind.APPROVAL, timeout_seconds=0),))), "timeout"),
        (
            plan(replace(DB, pre=(action(ActionKind.WAIT_PORT, item="db-1", port=80),))),
            "db-1 has not failed over by then",
        ),
        (
            plan(replace(DB, post=(action(ActionKind.WAIT_PORT, item="db-1", port=0),))),
            "port 0 is not in",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: RecoveryPlan, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        check_plan(wrong, ITEMS)


def test_what_is_against_a_run_is_told_item_by_item() -> None:
    assert find_obstacles(plan(DB, WEB), ITEMS) == ()
    moved = {**ITEMS, "web-1": replace(ITEMS["web-1"], state=ItemState.FAILED_OVER)}
    assert find_obstacles(plan(DB, WEB), moved) == ()
    del moved["web-2"]
    moved["db-1"] = replace(ITEMS["db-1"], state=ItemState.INITIAL_REPLICATION)
    with pytest.raises(Conflict, match=r"db-1 is initial replication; web-2 is not protected any"):
        check_runnable(plan(DB, WEB), moved)
    done = {name: replace(each, state=ItemState.COMMITTED) for name, each in ITEMS.items()}
    with pytest.raises(Conflict, match="everything in it has failed over already"):
        check_runnable(plan(DB, WEB), done)
