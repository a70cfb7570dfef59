"""Protecting several VMs by one command.

Owns: that all are planned before the first is begun, and how their jobs are shown together. Must
not know: options of `leeward protect`.
"""

from __future__ import annotations

from leeward.cli import output
from leeward.cli.arguments import Reference
from leeward.cli.plan import print_plan
from leeward.cli.session import Session
from leeward.core.errors import InvalidRequest, LeewardError
from leeward.model.recovery import Job, JobState
from leeward.protection.plan import ProtectionPlan


def protect_several(
    session: Session,
    vault: str,
    wanted: list[Reference],
    request: dict[str, object],
    *,
    no_wait: bool,
) -> None:
    """The VMs are being protected side by side, if nothing is against any of them.

    Raises: InvalidRequest with every refusal; then none of them was begun.
    """
    if len(set(wanted)) < len(wanted):
        raise InvalidRequest("a VM is named more than once", field="NAME")
    requests = [{**request, "source_region": w.region, "vm": w.name} for w in wanted]
    plans: list[Job | ProtectionPlan] = []
    refused: list[str] = []
    for where, each in zip(wanted, requests, strict=True):
        try:
            plans.append(session.client.protect(vault, {**each, "plan_only": True}))
        except LeewardError as error:
            refused.append(f"{where.region}/{where.name}: {error}")
    if refused:
        raise InvalidRequest("none was begun: " + "; ".join(refused))
    if request["plan_only"]:
        session.show(plans, lambda: _print_plans(plans))
        return
    jobs = []
    for where, each in zip(wanted, requests, strict=True):
        try:
            job = session.client.protect(vault, each)
        except LeewardError as error:  # the plan was good a moment ago
            refused.append(f"{where.region}/{where.name}: {error}")
            continue
        if isinstance(job, Job):
            jobs.append(job)
    _follow(session, jobs, refused, no_wait=no_wait)


def _print_plans(plans: list[Job | ProtectionPlan]) -> None:
    for plan in plans:
        if not isinstance(plan, Job):
            print_plan(plan)


def _follow(session: Session, jobs: list[Job], refused: list[str], *, no_wait: bool) -> None:
    """Show the jobs, ended unless `no_wait`. Raises: LeewardError when one did not succeed or was
    refused."""
    if not no_wait:
        from leeward.cli.progress import watch

        jobs = [watch(session.client, job, quiet=session.is_json) for job in jobs]

    def table() -> None:
        for job in jobs:
            going = f"{job.id} goes on" if no_wait else job.state.value
            output.say(f"{job.target.removeprefix('item/')}: {going}")

    session.show(jobs, table)
    ended = (JobState.FAILED, JobState.CANCELLED)
    refused += [f"{job.target}: {job.error}" for job in jobs if job.state in ended]
    if refused:
        raise LeewardError("; ".join(refused))
