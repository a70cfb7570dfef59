"""Test VMs of a recovery plan: where they are, and the jobs that boot them.

Owns: that they share a host and networks. Must not know: the order in which a plan boots them.
"""

from __future__ import annotations

from functools import partial

from leeward.model.plans import RecoveryPlan
from leeward.recovery_plans.check import plan_items
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.plan_jobs import plan_target
from leeward.workflows.rehearsal_verbs import RehearsalVerbs
from leeward.workflows.rehearsing import Rehearsing, Together
from leeward.workflows.side_by_side import Submit


def together_in(plan: RecoveryPlan, host: str) -> Together:
    """Return what the plan's test VMs share."""
    return Together(plan=plan.name, scope=plan_target(plan.vault, plan.name), host=host)


class PlanTests:
    """Places and begins them."""

    def __init__(self, bench: Bench, rehearsals: RehearsalVerbs, rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._rehearsals = rehearsals
        self._rehearsing = rehearsing

    def host(self, records: Records, plan: RecoveryPlan) -> str:
        """Return the host that has memory for all of the plan's VMs. Raises: Unavailable,
        Conflict."""
        members = [records.items.get(plan.vault, name) for name in plan_items(plan)]
        return self._rehearsing.host_of_all(records, members, f"plan {plan.name}")

    def submits(self, plan: RecoveryPlan, host: str, points: dict[str, str]) -> dict[str, Submit]:
        """Return what begins the test VMs of these items. points: recovery points by item."""
        return {
            name: partial(self._begin, plan, host, name, point) for name, point in points.items()
        }

    def _begin(
        self, plan: RecoveryPlan, host: str, name: str, point: str, key: IdempotencyKey
    ) -> str:
        with self._bench.vault.read() as records:
            rehearsal = records.items.get(plan.vault, name).item.rehearsal
        if rehearsal is not None and rehearsal.plan == plan.name:
            return ""
        together = together_in(plan, host)
        return self._rehearsals.start(plan.vault, name, point, together=together, key=key).id
