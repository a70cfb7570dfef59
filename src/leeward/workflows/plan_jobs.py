"""Jobs of recovery plans: their verbs, and that one plan has one at a time.

Owns: those names. Must not know: what the jobs do.
"""

from __future__ import annotations

from leeward.core.errors import Conflict
from leeward.vault.records import Records
from leeward.workflows.drill_records import PLAN_DRILL

PLAN_RUN = "recovery-plan.run"
PLAN_TEST = "recovery-plan.test"
PLAN_CLEAN_UP = "recovery-plan.test-cleanup"
PLAN_RUNS = (PLAN_RUN, PLAN_TEST)
_ALL = (*PLAN_RUNS, PLAN_CLEAN_UP, PLAN_DRILL)


def plan_target(vault: str, plan: str) -> str:
    """Return what a plan is called in jobs and events."""
    return f"recovery-plan/{vault}/{plan}"


def check_plan_resting(records: Records, vault: str, name: str) -> None:
    """Return if no job is at the plan. Raises: Conflict."""
    target = plan_target(vault, name)
    found = [records.jobs.open_on(verb, target) for verb in _ALL]
    for under_way in (job for job in found if job is not None):
        raise Conflict(
            f"plan {name} is being run by {under_way.id} ({under_way.verb})",
            hint=f"`leeward job show {under_way.id}` tells how far it is",
        )
