"""Routes of recovery plans.

Owns: their paths. Must not know: what a run does.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import plan_bodies
from leeward.api.access import KeyOf, ServiceOf
from leeward.api.replies import NamePart, accepted, gone, page, reply
from leeward.model.plans import PlanApproval, PlanReport, RecoveryPlan
from leeward.model.recovery import Job, Vault
from leeward.workflows.plan_verbs import DryRun

router = APIRouter(tags=["recovery plans"])

_PLANS = "/vaults/{vault}/recovery-plans"


@router.get(_PLANS)
def list_plans(service: ServiceOf, vault: NamePart) -> Response:
    """The vault's recovery plans."""
    with service.bench.vault.read() as records:
        records.resources.get(Vault, "", vault)
        return page([stored.value for stored in records.resources.listed(RecoveryPlan, vault)])


@router.get(_PLANS + "/{name}", response_model=RecoveryPlan)
def get_plan(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """One recovery plan."""
    with service.bench.vault.read() as records:
        return reply(records.resources.get(RecoveryPlan, vault, name).value)


@router.put(_PLANS + "/{name}", response_model=RecoveryPlan)
def put_plan(
    service: ServiceOf, vault: NamePart, name: NamePart, body: plan_bodies.RecoveryPlanBody
) -> Response:
    """The plan is as given; refused when it makes no sense, and while it is being run."""
    return reply(service.plans.put(body.plan(vault, name)))


@router.delete(_PLANS + "/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_plan(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """The plan is gone; refused while it is being run."""
    service.plans.delete(vault, name)
    return gone()


@router.get(_PLANS + "/{name}/dry-run", response_model=DryRun)
def dry_run(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """What a run would do now and what is against it; nothing happens."""
    return reply(service.plans.dry_run(vault, name))


@router.post(_PLANS + "/{name}/run", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def run_plan(
    service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart, body: plan_bodies.RunPlanBody
) -> Response:
    """The plan's items are being failed over, or back once they are reprotected."""
    return accepted(service.plans.run(vault, name, body.options(), key))


@router.post(_PLANS + "/{name}/test", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def rehearse_plan(
    service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart, body: plan_bodies.TestPlanBody
) -> Response:
    """The plan is being tested: test VMs in isolated networks that they share."""
    return accepted(service.plans.test(vault, name, body.recovery_point, key))


@router.post(_PLANS + "/{name}/test-cleanup", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def clean_up_plan(service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart) -> Response:
    """Every trace of the plan's test is being removed."""
    return accepted(service.clean_ups.clean_up_plan(vault, name, key))


@router.post(_PLANS + "/{name}/resume", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def resume_plan(service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart) -> Response:
    """The plan's failed run goes on where it stopped."""
    return accepted(service.plans.resume(vault, name, key))


@router.post(_PLANS + "/{name}/approve", response_model=PlanApproval)
def approve(
    service: ServiceOf, vault: NamePart, name: NamePart, body: plan_bodies.ApproveBody
) -> Response:
    """The action that the plan's run waits for is approved."""
    approval = service.plans.approve(vault, name, action=body.action, comment=body.comment)
    return reply(approval)


@router.get(_PLANS + "/{name}/report", response_model=PlanReport)
def get_report(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """How the plan's newest run goes or went: every step with its time, the critical path."""
    return reply(service.plans.report(vault, name))
