"""Rounds of two VMs together: a recovery plan, a consistency group."""

from __future__ import annotations

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.failover.shared import LATEST_SHARED
from leeward.model.recovery import ItemState, Job, JobState, Policy
from scenario.rig import Rig, write_byte
from scenario.rounds.act import (
    AGENT_EAST,
    AGENT_WEST,
    DB,
    PLAN,
    SERVICE,
    SHOP,
    WEB,
    WORKER_WEST,
    Act,
    Ask,
    Round,
)
from scenario.rounds.place import are, describe_drill, do, moved_gone, protected


def _begin_plan(rig: Rig) -> None:
    protected(rig, WEB, DB)
    script = rig.data / "regions" / "west" / "hosts" / "west-1" / "scripts" / "tell"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    tell = {"name": "tell", "kind": "script", "script": "tell"}
    groups = [{"name": "db", "items": [DB]}, {"name": "web", "items": [WEB], "pre": [tell]}]
    rig.client.plans.put(DEFAULT_VAULT, PLAN, {"groups": groups})


def _plan_again(rig: Rig, verb: str, begin: Ask) -> Job | None:
    """Return the plan's run: a new one, or the one that failed resumed."""
    last = next((job for job in rig.client.jobs() if job.verb == verb), None)
    if last is not None and last.state is JobState.FAILED:
        return rig.client.plans.resume(DEFAULT_VAULT, PLAN)
    return begin(rig)


def _test_plan(rig: Rig) -> Job | None:
    return _plan_again(
        rig,
        "recovery-plan.test",
        lambda _: rig.client.plans.test(DEFAULT_VAULT, PLAN, recovery_point="latest"),
    )


def _run_plan(rig: Rig) -> Job | None:
    return _plan_again(
        rig,
        "recovery-plan.run",
        lambda _: rig.client.plans.run(DEFAULT_VAULT, PLAN, planned=False, recovery_point="latest"),
    )


def _describe_drills(rig: Rig) -> None:
    for name in (WEB, DB):
        describe_drill(rig, name)


def _end_plan(rig: Rig) -> None:
    rig.client.plans.delete(DEFAULT_VAULT, PLAN)
    moved_gone(rig, WEB, DB)


PLANS = Round(
    name="plan",
    victims=(SERVICE, AGENT_WEST, WORKER_WEST),
    begin=_begin_plan,
    end=_end_plan,
    acts=(
        Act(verb="recovery-plan.test", ask=_test_plan, running=(2, 2)),
        Act(
            verb="recovery-plan.test-cleanup",
            ask=lambda rig: rig.client.plans.clean_up_test(DEFAULT_VAULT, PLAN),
            running=(2, 0),
        ),
        Act(
            verb="recovery-plan.drill",
            before=_describe_drills,
            ask=lambda rig: rig.client.plan_drills.run(DEFAULT_VAULT, PLAN),
            running=(2, 0),
            may_fail=True,
        ),
        Act(
            verb="recovery-plan.run",
            ask=_run_plan,
            holds=lambda rig: are(rig, ItemState.FAILED_OVER, WEB, DB),
            running=(0, 2),
        ),
    ),
)


def _begin_group(rig: Rig) -> None:
    rig.client.create_vault(DEFAULT_VAULT)
    often = Policy(name="often", shared_interval_seconds=1.0)
    rig.client.put_policy(DEFAULT_VAULT, often)
    protected(rig, WEB, DB, policy="often")


def _two_shared(rig: Rig) -> None:
    """There are two moments that both VMs share."""
    rig.wait("a shared point", lambda: rig.client.groups.points(DEFAULT_VAULT, SHOP))
    write_byte(rig, 4096, b"x")
    rig.wait("another", lambda: len(rig.client.groups.points(DEFAULT_VAULT, SHOP)) > 1)


def _change_shared(rig: Rig) -> Job | None:
    oldest = rig.client.groups.points(DEFAULT_VAULT, SHOP)[-1]
    return rig.client.groups.change_point(DEFAULT_VAULT, SHOP, oldest.id)


def _end_group(rig: Rig) -> None:
    do(rig, "the group goes", lambda _: rig.client.groups.delete(DEFAULT_VAULT, SHOP))
    moved_gone(rig, WEB, DB)
    rig.client.delete_policy(DEFAULT_VAULT, "often")


GROUPS = Round(
    name="group",
    victims=(SERVICE, AGENT_WEST, WORKER_WEST, AGENT_EAST),
    begin=_begin_group,
    end=_end_group,
    acts=(
        Act(
            verb="consistency-group.apply",
            ask=lambda rig: rig.client.groups.put(DEFAULT_VAULT, SHOP, (DB, WEB)),
            running=(2, 0),
        ),
        Act(
            verb="consistency-group.test-failover",
            before=_two_shared,
            ask=lambda rig: rig.client.groups.test_failover(DEFAULT_VAULT, SHOP, LATEST_SHARED),
            running=(2, 2),
        ),
        Act(
            verb="consistency-group.test-failover-cleanup",
            ask=lambda rig: rig.client.groups.clean_up_test(DEFAULT_VAULT, SHOP),
            running=(2, 0),
        ),
        Act(
            verb="consistency-group.failover",
            ask=lambda rig: rig.client.groups.failover(DEFAULT_VAULT, SHOP, LATEST_SHARED),
            holds=lambda rig: are(rig, ItemState.FAILED_OVER, WEB, DB),
            running=(0, 2),
        ),
        Act(
            verb="consistency-group.change-recovery-point",
            ask=_change_shared,
            holds=lambda rig: are(rig, ItemState.FAILED_OVER, WEB, DB),
            running=(0, 2),
        ),
    ),
)
