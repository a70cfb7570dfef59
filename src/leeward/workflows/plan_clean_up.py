"""The end of a recovery plan's test: every trace of its test VMs and the networks they share goes.

Owns: that verb. Must not know: how a test began, what makes a test VM (rehearsing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.errors import Conflict
from leeward.model.plans import RecoveryPlan
from leeward.model.recovery import Job, Rehearsal
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.plan_actions import plan_target
from leeward.workflows.rehearsing import Rehearsing

PLAN_CLEAN_UP = "recovery-plan.test-cleanup"
_RUNS = ("recovery-plan.test", "recovery-plan.run")


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUpArguments:
    """rehearsals: by item id."""

    plan: str
    rehearsals: dict[str, Rehearsal]


class PlanCleanUp:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing

    def clean_up(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that removes every trace of the plan's test, the one under way if there is
        one. Raises: NotFound; Conflict when there is none, or it is still running."""
        target = plan_target(vault, name)
        if job := self._jobs().under_way(PLAN_CLEAN_UP, target):
            return job

        def prepare(records: Records) -> CleanUpArguments:
            records.resources.get(RecoveryPlan, vault, name)
            found = {
                record.item.id: record.item.rehearsal
                for record in records.items.listed(vault=vault)
                if record.item.rehearsal is not None and record.item.rehearsal.plan == name
            }
            under_way = [records.jobs.open_on(verb, target) for verb in _RUNS]
            under_way += [job for item_id in found for job in records.jobs.open_of_item(item_id)]
            for other in (job for job in under_way if job is not None):
                raise Conflict(
                    f"{other.id} ({other.verb}) of plan {name} is under way",
                    hint=f"wait for it: `leeward job wait {other.id}`",
                )
            if not found:
                raise Conflict(
                    f"plan {name} has no test VMs",
                    field="plan",
                    hint=f"`leeward recovery-plan test {name}` makes them",
                )
            return CleanUpArguments(plan=name, rehearsals=found)

        return self._jobs().submit(PLAN_CLEAN_UP, target, prepare, key)

    def run(self, job: RunningJob) -> Json:
        """Nothing of the plan's test VMs is left, nor of the networks they shared."""
        arguments = job.arguments(CleanUpArguments)
        job.orders("clean up", lambda: self._orders(arguments), dict[str, object])
        job.record_step("record", lambda: self._forget(arguments), dict[str, object])
        return {}

    def _orders(self, arguments: CleanUpArguments) -> list[Order]:
        return [
            order
            for rehearsal in arguments.rehearsals.values()
            for order in self._rehearsing.end_orders(rehearsal)
        ]

    def _forget(self, arguments: CleanUpArguments) -> Json:
        sentence = f"the test of plan {arguments.plan} has been cleaned up"
        for item_id in arguments.rehearsals:
            self._rehearsing.forget(item_id, sentence)
        return {}
