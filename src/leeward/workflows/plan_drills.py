"""Drills of recovery plans: all its VMs booted in order and isolation, looked at, cleaned up.

Owns: that verb, how a plan is drilled, and that nothing of a drill is left whatever happens. Must
not know: what is looked at of a VM (drill_looks), when a drill is due (drill_schedule). Its actions
are carried out as in a test, but nobody is asked: by the clock there is nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError
from leeward.failover.select import LATEST_PROCESSED
from leeward.failover.shared import LATEST_SHARED
from leeward.model.drills import (
    Drill,
    DrillOutcome,
    DrillVerdict,
    Finding,
    PlanDrill,
    PlanDrillResult,
    PlanReadiness,
    check_plan_drill,
    readiness,
)
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, RecoveryPlan
from leeward.model.recovery import Job
from leeward.recovery_plans.check import check_testable, order_groups, plan_items
from leeward.recovery_plans.timing import POST, PRE, action_step
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.drill_looks import (
    DrillArguments,
    DrillLooks,
    Evidence,
    outcome_of,
    problem_in,
)
from leeward.workflows.drill_records import (
    CLEAN_UP_SECONDS,
    CUT_SHORT,
    PLAN_DRILL,
    forget_test_vm,
    keep_drill,
    keep_plan_result,
    plan_results_of,
)
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.plan_actions import ActionPlace, PlanActions, where_to
from leeward.workflows.plan_jobs import check_plan_resting, plan_target
from leeward.workflows.plan_points import PlanPoints
from leeward.workflows.plan_tests import PlanTests, together_in
from leeward.workflows.rehearsing import Rehearsing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDrillArguments:
    """tests: of all the plan's VMs, in its order."""

    plan: RecoveryPlan
    recovery_point: str
    tests: tuple[DrillArguments, ...]


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What a run has seen so far; made anew, step by step, by every replay. vms: by item, of those
    that were told to boot. left: what could not be cleaned up."""

    actions: tuple[Finding, ...] = ()
    vms: dict[str, Evidence] = field(default_factory=dict)
    left: tuple[Finding, ...] = ()

    def note(self, action: str, detail: str, *, passed: bool) -> None:
        self.actions += (Finding(name=action, passed=passed, detail=detail),)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The actions', the VMs', named by item too, and what could not be cleaned up."""
        of_vms = (
            replace(finding, name=f"{item} {finding.name}")
            for item, evidence in self.vms.items()
            for finding in evidence.findings
        )
        return (*self.actions, *of_vms, *self.left)


class PlanDrills:
    """Submits and runs them."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        rehearsing: Rehearsing,
        tests: PlanTests,
        points: PlanPoints,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing
        self._tests = tests
        self._points = points
        self._looks = DrillLooks(bench, rehearsing)
        self._actions = PlanActions(bench)

    # --- keeping

    def put(self, drill: PlanDrill) -> PlanDrill:
        """Return the drill, which is as given from now on; its schedule counts anew. Raises:
        InvalidRequest, NotFound."""
        check_plan_drill(drill)
        with self._bench.vault.write() as records:
            records.resources.get(RecoveryPlan, drill.vault, drill.name)
            return keep_drill(records, drill, self._bench.clock.now_ns())

    def delete(self, vault: str, name: str) -> None:
        """The plan is drilled no more, unless somebody asks. Raises: NotFound."""
        with self._bench.vault.write() as records:
            records.resources.get(PlanDrill, vault, name)
            records.resources.delete(PlanDrill, vault, name)

    def standing(self, records: Records, plan: RecoveryPlan) -> PlanReadiness:
        """Return how the plan is drilled, and what its last drill proved."""
        stored = records.resources.find(PlanDrill, plan.vault, plan.name)
        known = records.items.named(plan.vault, plan_items(plan))
        region = known[0].item.target_region if known else ""
        results = plan_results_of(records, plan_target(plan.vault, plan.name))
        verdicts = (each.verdict for each in results)
        last = next((v for v in verdicts if v.outcome is not DrillOutcome.CUT_SHORT), None)
        proven = readiness(last, target_region=region, now_ns=self._bench.clock.now_ns())
        drill = stored.value if stored else None
        return PlanReadiness(plan=plan.name, drill=drill, readiness=proven)

    # --- submitting

    def begin(
        self, vault: str, name: str, wanted: str = "", key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that drills the plan as its drill says, from `wanted` if that is given.

        Raises: NotFound, InvalidRequest; Conflict with every reason against it; Unavailable. Then
        nothing has changed.
        """

        def prepare(records: Records) -> PlanDrillArguments:
            plan = records.resources.get(RecoveryPlan, vault, name).value
            check_plan_resting(records, vault, name)
            items = {record.item.name: record.item for record in records.items.listed(vault=vault)}
            check_testable(plan, items)
            stored = records.resources.find(PlanDrill, vault, name)
            drill = stored.value if stored else PlanDrill(name=name, vault=vault)
            point = wanted or drill.recovery_point
            tests = self._begin_tests(records, plan, point, reads_all=drill.reads_all)
            if stored is not None:
                begun = replace(drill, begun_ns=self._bench.clock.now_ns())
                records.resources.update(stored, value=begun)
            return PlanDrillArguments(plan=plan, recovery_point=point, tests=tests)

        return self._jobs().submit(PLAN_DRILL, plan_target(vault, name), prepare, key)

    def _begin_tests(
        self, records: Records, plan: RecoveryPlan, wanted: str, *, reads_all: bool
    ) -> tuple[DrillArguments, ...]:
        """Return all its test VMs, which have a host, their points and their networks."""
        points = self._points.choose(records, plan, wanted, is_test=True)
        newest = LATEST_PROCESSED if wanted == LATEST_SHARED else wanted
        together = together_in(plan, self._tests.host(records, plan))
        made = []
        for name in (name for group in order_groups(plan) for name in group.items):
            record = records.items.get(plan.vault, name)
            rehearsal, chosen = self._rehearsing.begin(
                records, record, points.get(name, newest), together
            )
            stored = records.resources.find(Drill, plan.vault, name)
            drill = stored.value if stored else Drill(name=name, vault=plan.vault)
            made.append(
                DrillArguments(
                    item_id=record.item.id,
                    item=name,
                    drill=replace(drill, reads_all=reads_all),
                    rehearsal=rehearsal,
                    point_time_ns=chosen.time_ns,
                )
            )
        return tuple(made)

    # --- running

    def run(self, job: RunningJob) -> Json:
        """The evidence is kept and nothing of the test VMs is left. Raises: Conflict when the drill
        did not pass."""
        arguments = job.arguments(PlanDrillArguments)
        seen = _Seen()
        self._go_through(job, arguments, seen)
        for test in arguments.tests:
            if test.item in seen.vms and not seen.vms[test.item].problem and not job.was_cancelled:
                self._looks.look(job, test, seen.vms[test.item], test.item)
        rehearsals = {test.item_id: test.rehearsal for test in arguments.tests}
        refused = job.undo_orders(
            "clean up",
            lambda: self._rehearsing.end_all(rehearsals),
            timeout_seconds=CLEAN_UP_SECONDS,
        )
        if refused:
            seen.left = (Finding(name="clean-up", passed=False, detail="; ".join(refused)),)
        outcome = outcome_of(job, problem_in(seen.findings))
        job.step(
            "record",
            lambda _: self._record(job, arguments, seen, outcome, is_clean=not refused),
            dict[str, object],
            is_undo=True,
        )
        if outcome is not DrillOutcome.PASSED:
            problem = problem_in(seen.findings) or CUT_SHORT
            raise Conflict(f"the drill of plan {arguments.plan.name}: {problem}")
        return {"plan": arguments.plan.name, "findings": to_plain(seen.findings)}

    def _go_through(self, job: RunningJob, arguments: PlanDrillArguments, seen: _Seen) -> None:
        """Every group's actions are through and its VMs boot, up to the first that fails."""
        tests = {test.item: test for test in arguments.tests}
        for group in order_groups(arguments.plan):
            if not self._act(job, arguments, group, PRE, seen):
                return
            booted = [self._boot(job, tests[name], seen) for name in group.items]
            if not all(booted) or not self._act(job, arguments, group, POST, seen):
                return

    def _boot(self, job: RunningJob, test: DrillArguments, seen: _Seen) -> bool:
        if job.was_cancelled:
            return False
        evidence = seen.vms[test.item] = Evidence()
        return self._looks.boot(job, test, evidence, test.item)

    def _act(
        self,
        job: RunningJob,
        arguments: PlanDrillArguments,
        group: PlanGroup,
        when: str,
        seen: _Seen,
    ) -> bool:
        """Say whether the group's actions of that moment are through."""
        actions: tuple[PlanAction, ...] = group.pre if when == PRE else group.post
        place = ActionPlace(plan=arguments.plan, group=group.name, is_test=True)
        for action in actions:
            step = action_step(group.name, when, action.name).name
            if action.kind is ActionKind.APPROVAL:
                seen.note(step, "nobody is asked in a drill", passed=True)
                continue
            try:
                self._actions.carry_out(job, step, action, place)
            except LeewardError as error:
                if not job.was_cancelled:
                    seen.note(step, str(error), passed=False)
                return False
            seen.note(step, "done", passed=True)
        return True

    # --- steps

    def _record(
        self,
        job: RunningJob,
        arguments: PlanDrillArguments,
        seen: _Seen,
        outcome: DrillOutcome,
        *,
        is_clean: bool,
    ) -> Json:
        """The evidence is stored, the plan's and its VMs'."""
        plan, job_id = arguments.plan, job.record.id
        target = plan_target(plan.vault, plan.name)
        first = arguments.tests[0].rehearsal
        verdict = DrillVerdict(
            job_id=job_id,
            outcome=outcome,
            region=first.region,
            recovery_point=arguments.recovery_point,
            point_time_ns=min(test.point_time_ns for test in arguments.tests),
            began_ns=first.started_ns,
            ended_ns=self._bench.clock.now_ns(),
            problem=problem_in(seen.findings),
        )
        result = PlanDrillResult(
            plan=plan.name, verdict=verdict, host=first.host, findings=seen.findings
        )
        with self._bench.vault.write() as records:
            if records.resources.find(PlanDrillResult, target, job_id):
                return {}
            for test in arguments.tests:
                if (evidence := seen.vms.get(test.item)) is not None:
                    its_outcome = outcome_of(job, evidence.problem)
                    self._looks.keep(records, job_id, test, evidence, its_outcome)
                if is_clean:
                    forget_test_vm(records, test.item_id, test.rehearsal)
            keep_plan_result(records, target, result)
            kind, sentence = f"drill_{outcome.value}", _sentence(result)
            self._bench.record_event(records, target, kind, sentence, job_id)
        return {}


def region_of(records: Records, drill: PlanDrill) -> str:
    """Return the region in which the plan is drilled. Raises: NotFound."""
    return where_to(records, records.resources.get(RecoveryPlan, drill.vault, drill.name).value)


def _sentence(result: PlanDrillResult) -> str:
    verdict = result.verdict
    words = verdict.outcome.value.replace("_", " ")
    problem = f": {verdict.problem}" if verdict.problem else ""
    return f"plan {result.plan}: its drill {words}{problem}"
