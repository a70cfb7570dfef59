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
    begun: list[tuple[Reference, Job]] = []
    for where, each in zip(wanted, requests, strict=True):
        try:
            job = session.client.protect(vault, each)
        except LeewardError as error:  # the plan was good a moment ago
            refused.append(f"{where.region}/{where.name}: {error}")
            continue
        if isinstance(job, Job):
            begun.append((where, job))
    _follow(session, begun, refused, to=str(request["target_region"]), no_wait=no_wait)


def _print_plans(plans: list[Job | ProtectionPlan]) -> None:
    for plan in plans:
        if not isinstance(plan, Job):
            print_plan(plan)


def _follow(
    session: Session,
    begun: list[tuple[Reference, Job]],
    refused: list[str],
    *,
    to: str,
    no_wait: bool,
) -> None:
    """Show the jobs, ended unless `no_wait`. Raises: LeewardError when one did not succeed or was
    refused."""
    jobs = [job for _, job in begun]
    if not no_wait:
        from leeward.cli.progress import watch

        jobs = [watch(session.client, job, quiet=session.is_json) for job in jobs]
    named = [
        (f"{where.region}/{where.name}", job) for (where, _), job in zip(begun, jobs, strict=True)
    ]

    def table() -> None:
        for name, job in named:
            if no_wait:
                output.say(f"{name}: {job.id} goes on")
            elif job.state is JobState.SUCCEEDED:
                output.say(f"{name} is protected in {to}")

    session.show(jobs, table)
    refused += [
        f"{name}: {job.error or job.state.value}"
        for name, job in named
        if job.state in (JobState.FAILED, JobState.CANCELLED)
    ]
    if refused:
        raise LeewardError("; ".join(refused))
