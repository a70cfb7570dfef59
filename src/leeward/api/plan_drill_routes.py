"""Routes of recovery plans' drills: how often a plan is drilled, its drills' evidence.

Owns: their paths and bodies. Must not know: what a drill does.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field

from leeward.api.access import KeyOf, ServiceOf
from leeward.api.bodies import Body
from leeward.api.plan_bodies import PlanPoint
from leeward.api.replies import IdPart, NamePart, accepted, gone, page, reply
from leeward.model.drills import PlanDrill, PlanDrillResult
from leeward.model.plans import RecoveryPlan
from leeward.model.recovery import Job, Vault
from leeward.workflows.drill_records import plan_results_of
from leeward.workflows.plan_jobs import plan_target

router = APIRouter(tags=["drills"])

_DRILLS = "/vaults/{vault}/plan-drills"
_PLAN = "/vaults/{vault}/recovery-plans/{name}"


class PlanDrillBody(Body):
    every_seconds: int = Field(default=0, ge=0, description="0: only when somebody asks")
    recovery_point: PlanPoint = "latest"
    reads_all: bool = Field(default=True, description="read and verify every byte of the points")

    def drill(self, vault: str, name: str) -> PlanDrill:
        """Return the drill that is asked for."""
        return PlanDrill(name=name, vault=vault, **self.model_dump())


class RunPlanDrillBody(Body):
    recovery_point: Literal[
        "", "latest", "latest-processed", "latest-app-consistent", "latest-shared"
    ] = Field(default="", description="empty: as the drill says")


@router.get(_DRILLS)
def list_plan_drills(service: ServiceOf, vault: NamePart) -> Response:
    """The vault's recovery plans: how each is drilled, and what its last drill proved."""
    with service.bench.vault.read() as records:
        records.resources.get(Vault, "", vault)
        plans = [stored.value for stored in records.resources.listed(RecoveryPlan, vault)]
        return page([service.plan_drills.standing(records, plan) for plan in plans])


@router.get(_DRILLS + "/{name}", response_model=PlanDrill)
def get_plan_drill(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """How one plan is drilled."""
    with service.bench.vault.read() as records:
        return reply(records.resources.get(PlanDrill, vault, name).value)


@router.put(_DRILLS + "/{name}", response_model=PlanDrill)
def put_plan_drill(
    service: ServiceOf, vault: NamePart, name: NamePart, body: PlanDrillBody
) -> Response:
    """The plan is drilled as given; its schedule counts anew."""
    return reply(service.plan_drills.put(body.drill(vault, name)))


@router.delete(_DRILLS + "/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_plan_drill(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """The plan is drilled no more by itself; the evidence stays."""
    service.plan_drills.delete(vault, name)
    return gone()


@router.post(_PLAN + "/drill", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def run_plan_drill(
    service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart, body: RunPlanDrillBody
) -> Response:
    """The plan is being drilled now."""
    return accepted(service.plan_drills.begin(vault, name, body.recovery_point, key))


@router.get(_PLAN + "/drills")
def list_plan_results(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """The evidence of the plan's drills, newest first."""
    with service.bench.vault.read() as records:
        records.resources.get(RecoveryPlan, vault, name)
        return page(plan_results_of(records, plan_target(vault, name)))


@router.get(_PLAN + "/drills/{job}", response_model=PlanDrillResult)
def get_plan_result(service: ServiceOf, vault: NamePart, name: NamePart, job: IdPart) -> Response:
    """The evidence of one drill of the plan; each VM's own is under its item."""
    with service.bench.vault.read() as records:
        records.resources.get(RecoveryPlan, vault, name)
        return reply(records.resources.get(PlanDrillResult, plan_target(vault, name), job).value)
