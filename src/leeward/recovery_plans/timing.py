"""The steps of a plan's run, and what their times say afterwards.

Owns: step names, the report, the critical path. Must not know: where steps are recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from leeward.model.plans import (
    ActionKind,
    GroupTime,
    PlanGroup,
    PlanReport,
    PlanStep,
    RecoveryPlan,
    TimedStep,
)
from leeward.model.recovery import Job, JobState, JobStep
from leeward.recovery_plans.check import order_groups

_JOB = re.compile(r"job-[0-9a-f]{12}")
VM, PRE, POST = "vm", "pre", "post"


def group_steps(group: PlanGroup) -> tuple[PlanStep, ...]:
    """Return the group's steps as they are run; its VMs side by side."""
    return (
        *(action_step(group.name, PRE, action.name) for action in group.pre),
        *(vm_step(group.name, item) for item in group.items),
        *(action_step(group.name, POST, action.name) for action in group.post),
    )


def plan_steps(plan: RecoveryPlan) -> tuple[PlanStep, ...]:
    """Return every step of a run, in order."""
    return tuple(step for group in order_groups(plan) for step in group_steps(group))


def report_run(
    plan: RecoveryPlan, attempts: Sequence[Job], vm_jobs: Mapping[str, Job]
) -> PlanReport:
    """Return how the run went. attempts: its jobs with their steps, oldest first. vm_jobs: those
    that failed VMs over, by id."""
    began_ns = attempts[0].created_ns
    last: dict[str, JobStep] = {}
    for attempt in attempts:
        last.update({step.name: step for step in attempt.steps})
    timed = tuple(_timed(step, last.get(step.name), vm_jobs, began_ns) for step in plan_steps(plan))
    running = [each.step.name for each in timed if each.state == JobState.RUNNING.value]
    approvals = {
        action_step(group.name, when, action.name).name
        for group in plan.groups
        for when, actions in ((PRE, group.pre), (POST, group.post))
        for action in actions
        if action.kind is ActionKind.APPROVAL
    }
    final = attempts[-1]
    return PlanReport(
        plan=plan.name,
        state=final.state.value,
        jobs=tuple(attempt.id for attempt in attempts),
        took_seconds=sum(
            (attempt.ended_ns - attempt.created_ns) / 1e9
            for attempt in attempts
            if attempt.ended_ns
        ),
        steps=timed,
        groups=tuple(_group_time(group, timed) for group in order_groups(plan)),
        critical_path=critical_path(timed),
        waits_for=next((name for name in running if name in approvals), ""),
        error=final.error,
    )


def critical_path(timed: Sequence[TimedStep]) -> tuple[str, ...]:
    """Return the steps that made the run last as long as it did, with their seconds: actions come
    one after the other, of a group's VMs the slowest counts."""
    path: list[str] = []
    slowest: dict[str, TimedStep] = {}
    for each in timed:
        if each.step.what == VM and each.took_seconds >= _took(slowest.get(each.step.group)):
            slowest[each.step.group] = each
    for each in timed:
        counts = each.step.what != VM or slowest.get(each.step.group) is each
        if each.took_seconds and counts:
            path.append(f"{each.step.name}: {each.took_seconds:.1f} s")
    return tuple(path)


def job_in(detail: str) -> str:
    """Return the id of the job that a step's detail tells of, "" if it tells of none."""
    found = _JOB.search(detail)
    return found.group() if found else ""


def _took(each: TimedStep | None) -> float:
    return each.took_seconds if each is not None else 0.0


def _timed(
    step: PlanStep, recorded: JobStep | None, vm_jobs: Mapping[str, Job], began_ns: int
) -> TimedStep:
    if recorded is None:
        return TimedStep(step=step)
    began, ended = recorded.started_ns, recorded.ended_ns
    job = vm_jobs.get(job_in(recorded.detail))
    if job is not None:
        began, ended = job.created_ns, job.ended_ns
    timed = TimedStep(
        step=step,
        state=recorded.state.value,
        began_seconds=(began - began_ns) / 1e9,
        took_seconds=(ended - began) / 1e9 if ended else 0.0,
        detail=recorded.detail,
    )
    return replace(timed, job_id=job.id, detail=job.error) if job is not None else timed


def _group_time(group: PlanGroup, timed: Sequence[TimedStep]) -> GroupTime:
    mine = [each for each in timed if each.step.group == group.name and each.took_seconds]
    if not mine:
        return GroupTime(group=group.name, took_seconds=0.0, slowest="")
    first = min(each.began_seconds for each in mine)
    last = max(each.began_seconds + each.took_seconds for each in mine)
    slowest = max(mine, key=lambda each: each.took_seconds)
    return GroupTime(group=group.name, took_seconds=last - first, slowest=slowest.step.subject)


def vm_step(group: str, item: str) -> PlanStep:
    """Return the step in which an item of the group fails over: it is named as the item is."""
    return PlanStep(name=item, group=group, what=VM, subject=item)


def action_step(group: str, when: str, action: str) -> PlanStep:
    """Return the step of an action; `when` is PRE or POST."""
    return PlanStep(name=f"{group} {when} {action}", group=group, what=when, subject=action)
