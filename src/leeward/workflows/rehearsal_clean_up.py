"""The end of a test of several VMs, a recovery plan's or a consistency group's: every trace of the
test VMs and the networks they share goes.

Owns: those verbs. Must not know: how a test began, what makes a test VM (rehearsing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leeward.core.errors import Conflict
from leeward.model.groups import ConsistencyGroup
from leeward.model.plans import RecoveryPlan
from leeward.model.recovery import Job, Rehearsal
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import GROUP_CLEAN_UP, GROUP_TESTS, group_target
from leeward.workflows.drill_records import PLAN_DRILL
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.plan_jobs import PLAN_CLEAN_UP, PLAN_RUNS, plan_target
from leeward.workflows.rehearsing import Rehearsing


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUpArguments:
    """whose: for people. rehearsals: by item id."""

    whose: str
    rehearsals: dict[str, Rehearsal]


class CleanUp:
    """Submits and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing

    def clean_up_plan(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that removes every trace of the plan's test, the one under way if there is
        one. Raises: NotFound; Conflict when there is none, or it is still running."""
        target = plan_target(vault, name)

        def prepare(records: Records) -> CleanUpArguments:
            records.resources.get(RecoveryPlan, vault, name)
            found = _rehearsals(records, vault, lambda test: test.plan == name)
            _check_resting(
                records, f"plan {name}", target, (*PLAN_RUNS, PLAN_DRILL, PLAN_CLEAN_UP), found
            )
            if not found:
                raise Conflict(
                    f"plan {name} has no test VMs",
                    field="plan",
                    hint=f"`leeward recovery-plan test {name}` makes them",
                )
            return CleanUpArguments(whose=f"plan {name}", rehearsals=found)

        return self._submit(PLAN_CLEAN_UP, target, prepare, key)

    def clean_up_group(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that removes every trace of the group's test, the one under way if there
        is one. Raises: NotFound; Conflict when there is none, or it is still beginning."""
        target = group_target(vault, name)

        def prepare(records: Records) -> CleanUpArguments:
            records.resources.get(ConsistencyGroup, vault, name)
            found = _rehearsals(records, vault, lambda test: test.group == name)
            _check_resting(records, f"group {name}", target, GROUP_TESTS, found)
            if not found:
                raise Conflict(
                    f"group {name} has no test VMs",
                    field="group",
                    hint=f"`leeward consistency-group test-failover {name}` makes them",
                )
            return CleanUpArguments(whose=f"group {name}", rehearsals=found)

        return self._submit(GROUP_CLEAN_UP, target, prepare, key)

    def run(self, job: RunningJob) -> Json:
        """Nothing of the test VMs is left, nor of the networks they shared."""
        arguments = job.arguments(CleanUpArguments)
        rehearsals = arguments.rehearsals
        job.orders("clean up", lambda: self._rehearsing.end_all(rehearsals), dict[str, object])
        sentence = f"the test of {arguments.whose} has been cleaned up"
        job.record_step(
            "record",
            lambda: self._rehearsing.forget_all(rehearsals, sentence),
            dict[str, object],
        )
        return {}

    def _submit(
        self,
        verb: str,
        target: str,
        prepare: Callable[[Records], CleanUpArguments],
        key: IdempotencyKey | None,
    ) -> Job:
        if job := self._jobs().join_on(key, verb, target):
            return job
        return self._jobs().submit(verb, target, prepare, key)


def _rehearsals(
    records: Records, vault: str, is_of_it: Callable[[Rehearsal], bool]
) -> dict[str, Rehearsal]:
    """Return the vault's tests that are of it, by item id."""
    return {
        record.item.id: record.item.rehearsal
        for record in records.items.listed(vault=vault)
        if record.item.rehearsal is not None and is_of_it(record.item.rehearsal)
    }


def _check_resting(
    records: Records, whose: str, target: str, verbs: Sequence[str], found: dict[str, Rehearsal]
) -> None:
    """Return if no job of these verbs is at it, nor any at the test VMs. Raises: Conflict."""
    under_way = [records.jobs.open_on(verb, target) for verb in verbs]
    under_way += [job for item_id in found for job in records.jobs.open_of_item(item_id)]
    for other in (job for job in under_way if job is not None):
        raise Conflict(
            f"{other.id} ({other.verb}) of {whose} is under way",
            hint=f"wait for it: `leeward job wait {other.id}`",
        )
