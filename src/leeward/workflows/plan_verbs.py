"""Recovery plans: kept, run, approved, resumed, reported.

Owns: the steps of a run, and that one which failed goes on exactly where it stopped. Must not know:
what makes sense in a plan (recovery_plans.check), how a VM fails over (failover and planned verbs).
A run's VMs fail over as jobs of their own: they outlive it, and it finds them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, LeewardError, NotFound
from leeward.failover.select import LATEST_PROCESSED
from leeward.failover.shared import LATEST_SHARED
from leeward.model.plans import (
    ActionKind,
    PlanAction,
    PlanApproval,
    PlanGroup,
    PlanOptions,
    PlanReport,
    RecoveryPlan,
)
from leeward.model.recovery import (
    Job,
    JobState,
    ReplicatedItem,
    Vault,
)
from leeward.protocol.messages import Role
from leeward.recovery_plans.check import (
    check_options,
    check_plan,
    check_runnable,
    check_testable,
    find_obstacles,
    order_groups,
)
from leeward.recovery_plans.timing import POST, PRE, action_step, job_in, plan_steps, report_run
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.drill_records import forget_plan_drills
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.plan_actions import (
    ActionPlace,
    PlanActions,
    approval_key,
    where_to,
)
from leeward.workflows.plan_jobs import (
    PLAN_RUN,
    PLAN_RUNS,
    PLAN_TEST,
    check_plan_resting,
    plan_target,
)
from leeward.workflows.plan_points import PlanPoints
from leeward.workflows.plan_tests import PlanTests
from leeward.workflows.side_by_side import Move, SideBySide


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRunArguments:
    """done: steps of earlier attempts that are not repeated; attempts: those jobs, oldest first.
    host: where a test has its VMs."""

    plan: RecoveryPlan
    options: PlanOptions
    done: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would do, and what is against it."""

    plan: str
    target_region: str
    steps: tuple[str, ...]
    obstacles: tuple[str, ...]


class PlanVerbs:
    """Keeps and runs plans."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        side_by_side: SideBySide,
        tests: PlanTests,
        points: PlanPoints,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._side_by_side = side_by_side
        self._tests = tests
        self._points = points
        self._actions = PlanActions(bench)

    # --- keeping

    def put(self, plan: RecoveryPlan) -> RecoveryPlan:
        """Return the plan, which is as given from now on. Raises: InvalidRequest, NotFound;
        Conflict while it is being run."""
        with self._bench.vault.write() as records:
            records.resources.get(Vault, "", plan.vault)
            check_plan(plan, _items(records, plan.vault))
            check_plan_resting(records, plan.vault, plan.name)
            found = records.resources.find(RecoveryPlan, plan.vault, plan.name)
            if found is None:
                records.resources.insert(plan, scope=plan.vault, name=plan.name)
            else:
                records.resources.update(found, value=plan)
        return plan

    def delete(self, vault: str, name: str) -> None:
        """The plan does not exist. Raises: NotFound; Conflict while it is being run, or test VMs of
        it are there."""
        with self._bench.vault.write() as records:
            records.resources.get(RecoveryPlan, vault, name)
            check_plan_resting(records, vault, name)
            rehearsals = [item.rehearsal for item in _items(records, vault).values()]
            if any(rehearsal.plan == name for rehearsal in rehearsals if rehearsal is not None):
                raise Conflict(
                    f"plan {name} has test VMs",
                    field="plan",
                    hint=f"`leeward recovery-plan test-cleanup {name}` first",
                )
            forget_plan_drills(records, plan_target(vault, name), vault, name)
            records.resources.delete(RecoveryPlan, vault, name)

    # --- submitting

    def dry_run(self, vault: str, name: str) -> DryRun:
        """Return what a run would do now, and what is against it; nothing happens."""
        with self._bench.vault.read() as records:
            plan = records.resources.get(RecoveryPlan, vault, name).value
            items = _items(records, vault)
            obstacles = find_obstacles(plan, items)
            region = ""
            if all(item in items for group in plan.groups for item in group.items):
                region = where_to(records, plan)
                obstacles += tuple(
                    f"no {role.value} of region {region} answers"
                    for role in (Role.AGENT, Role.WORKER)
                    if not self._bench.answering(records, role, region)
                )
        steps = tuple(
            step.name if step.what != "vm" else f"{step.group} vm {step.name}"
            for step in plan_steps(plan)
        )
        return DryRun(plan=name, target_region=region, steps=steps, obstacles=obstacles)

    def run(
        self, vault: str, name: str, options: PlanOptions, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that runs the plan. Raises: NotFound; Conflict with every reason against
        it; Unavailable; then nothing has happened."""

        def prepare(records: Records) -> PlanRunArguments:
            plan = records.resources.get(RecoveryPlan, vault, name).value
            check_plan_resting(records, vault, name)
            check_options(options)
            check_runnable(plan, _items(records, vault))
            self._points.choose(records, plan, options.recovery_point, is_test=False)
            self._bench.check_answering(records, where_to(records, plan))
            return PlanRunArguments(plan=plan, options=options)

        return self._jobs().submit(PLAN_RUN, plan_target(vault, name), prepare, key)

    def test(
        self, vault: str, name: str, recovery_point: str, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that tests the plan: its VMs boot as test VMs on one host, in isolated
        networks that they share. Raises: NotFound; Conflict with every reason against it;
        Unavailable; then nothing has happened."""

        def prepare(records: Records) -> PlanRunArguments:
            plan = records.resources.get(RecoveryPlan, vault, name).value
            check_plan_resting(records, vault, name)
            check_testable(plan, _items(records, vault))
            self._points.choose(records, plan, recovery_point, is_test=True)
            return PlanRunArguments(
                plan=plan,
                options=PlanOptions(recovery_point=recovery_point, is_test=True),
                host=self._tests.host(records, plan),
            )

        return self._jobs().submit(PLAN_TEST, plan_target(vault, name), prepare, key)

    def resume(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job in which the plan's failed run or test goes on where it stopped, by the
        plan as it is now. Raises: NotFound; Conflict when it did not fail."""
        with self._bench.vault.read() as records:
            records.resources.get(RecoveryPlan, vault, name)
            verb = self._last(records, vault, name).verb

        def prepare(records: Records) -> PlanRunArguments:
            plan = records.resources.get(RecoveryPlan, vault, name).value
            check_plan_resting(records, vault, name)
            last = self._last(records, vault, name)
            if last.state not in (JobState.FAILED, JobState.CANCELLED):
                raise Conflict(
                    f"the last run of {name} {last.state.value}: there is nothing to resume",
                    hint=f"`leeward recovery-plan run {name}` begins a new one",
                )
            before = _arguments(records, last.id)
            done = {*before.done, *(s.name for s in last.steps if s.state is JobState.SUCCEEDED)}
            attempts = (*before.attempts, last.id)
            return replace(before, plan=plan, done=tuple(sorted(done)), attempts=attempts)

        return self._jobs().submit(verb, plan_target(vault, name), prepare, key)

    def approve(self, vault: str, name: str, *, action: str, comment: str = "") -> PlanApproval:
        """Return the approval of the action, "GROUP pre ACTION" or its last word, that the plan's
        run waits for. Raises: NotFound, Conflict."""
        with self._bench.vault.write() as records:
            records.resources.get(RecoveryPlan, vault, name)
            last = self._last(records, vault, name)
            steps = _approvals(_arguments(records, last.id).plan)
            running = [s.name for s in last.steps if s.state is JobState.RUNNING]
            waiting = [step for step in steps if step in running]
            chosen = [step for step in waiting if action in ("", step, step.rpartition(" ")[2])]
            if not chosen:
                now = f"it waits for {waiting[0]}" if waiting else "it waits for no approval"
                raise Conflict(
                    f"plan {name} does not wait for {action or 'anything'}: {now}", field="action"
                )
            approval = PlanApproval(job_id=last.id, step=chosen[0], comment=comment)
            if records.resources.find(PlanApproval, last.id, chosen[0]) is None:
                records.resources.insert(approval, scope=last.id, name=chosen[0])
        self._bench.signals.notify(approval_key(last.id))
        return approval

    def report(self, vault: str, name: str) -> PlanReport:
        """Return how the plan's newest run goes or went. Raises: NotFound."""
        with self._bench.vault.read() as records:
            records.resources.get(RecoveryPlan, vault, name)
            last = self._last(records, vault, name)
            arguments = _arguments(records, last.id)
            attempts = [*(records.jobs.get(each) for each in arguments.attempts), last]
            told = {job_in(step.detail) for attempt in attempts for step in attempt.steps}
            vm_jobs = {job_id: records.jobs.get(job_id) for job_id in told - {""}}
        return report_run(arguments.plan, attempts, vm_jobs)

    # --- running

    def run_plan(self, job: RunningJob) -> Json:
        """Every step that earlier attempts had not done is done, or the first failing one is the
        last: nothing after it has begun."""
        arguments = job.arguments(PlanRunArguments)
        options = arguments.options
        points: dict[str, str] = {}
        if options.recovery_point == LATEST_SHARED:
            points = job.step(
                "choose points",
                lambda _: self._points.wait_chosen(
                    arguments.plan, options.recovery_point, is_test=options.is_test
                ),
                dict[str, str],
            )
        for group in order_groups(arguments.plan):
            self._run_actions(job, arguments, group, PRE)
            self._fail_over(job, arguments, group, points)
            self._run_actions(job, arguments, group, POST)
        return {"plan": arguments.plan.name}

    def _run_actions(
        self, job: RunningJob, arguments: PlanRunArguments, group: PlanGroup, when: str
    ) -> None:
        actions: tuple[PlanAction, ...] = group.pre if when == PRE else group.post
        for action in actions:
            step = action_step(group.name, when, action.name).name
            if step not in arguments.done:
                place = ActionPlace(
                    plan=arguments.plan, group=group.name, is_test=arguments.options.is_test
                )
                self._actions.carry_out(job, step, action, place)

    def _fail_over(
        self,
        job: RunningJob,
        arguments: PlanRunArguments,
        group: PlanGroup,
        points: dict[str, str],
    ) -> None:
        """Every VM of the group has failed over. One that cannot does not stop the others; then
        the first error is raised."""
        left = [name for name in group.items if name not in arguments.done]
        if not left:
            return
        wanted = {name: _wanted(arguments.options, points, name) for name in left}
        begun = job.step(
            f"{group.name} begin", lambda _: self._begin(job, arguments, wanted), dict[str, str]
        )
        errors = []
        for name in left:
            try:
                wait = partial(self._side_by_side.wait, job, name, begun[name])
                job.step(name, wait, dict[str, object])
            except LeewardError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _begin(self, job: RunningJob, arguments: PlanRunArguments, wanted: dict[str, str]) -> Json:
        """wanted: recovery points by item."""
        plan, options = arguments.plan, arguments.options
        if options.is_test:
            return self._side_by_side.begin_each(
                job, self._tests.submits(plan, arguments.host, wanted)
            )
        return self._side_by_side.begin(
            job,
            [
                Move(vault=plan.vault, item=name, recovery_point=point, planned=options.planned)
                for name, point in wanted.items()
            ],
        )

    # --- shared

    def _last(self, records: Records, vault: str, name: str) -> Job:
        found = records.jobs.listed(limit=1, target=plan_target(vault, name), verbs=PLAN_RUNS)
        if not found:
            raise NotFound(f"plan {name} has not been run yet")
        return records.jobs.get(found[0].id)


def _wanted(options: PlanOptions, points: dict[str, str], name: str) -> str:
    """Return the item's recovery point: where shared ones are wanted and it has none, its newest,
    as it is listed."""
    newest = LATEST_PROCESSED if options.recovery_point == LATEST_SHARED else options.recovery_point
    return points.get(name, newest)


def _items(records: Records, vault: str) -> dict[str, ReplicatedItem]:
    return {record.item.name: record.item for record in records.items.listed(vault=vault)}


def _arguments(records: Records, job_id: str) -> PlanRunArguments:
    return from_plain(records.jobs.record(job_id).arguments, PlanRunArguments)


def _approvals(plan: RecoveryPlan) -> tuple[str, ...]:
    """Return the steps that wait for a person."""
    return tuple(
        action_step(group.name, when, action.name).name
        for group in plan.groups
        for when, actions in ((PRE, group.pre), (POST, group.post))
        for action in actions
        if action.kind is ActionKind.APPROVAL
    )
