"""Routes of drills: how an item is drilled, its drills' evidence.

Owns: their paths and bodies. Must not know: what a drill does.
"""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field

from leeward.api.access import KeyOf, ServiceOf
from leeward.api.bodies import Body
from leeward.api.replies import IdPart, NamePart, accepted, gone, page, reply
from leeward.model.drills import (
    BOOT_SECONDS,
    PROBE_SECONDS,
    PROBES_MAX,
    Drill,
    DrillResult,
    DrillScreen,
    Probe,
    ProbeKind,
)
from leeward.model.recovery import Job, Vault
from leeward.workflows.drill_records import results_of

router = APIRouter(tags=["drills"])

_DRILLS = "/vaults/{vault}/drills"
_ITEM = "/vaults/{vault}/replicated-items/{item}"


class ProbeBody(Body):
    kind: Literal["tcp", "http"]
    port: int
    path: str = Field(default="/", max_length=1000)
    status: int = 200
    text: str = Field(default="", max_length=1000, description="must be in the body")
    timeout_seconds: float = PROBE_SECONDS

    def probe(self) -> Probe:
        """Return the probe that is asked for."""
        return Probe(kind=ProbeKind(self.kind), **self.model_dump(exclude={"kind"}))


class DrillBody(Body):
    every_seconds: int = Field(default=0, ge=0, description="0: only when somebody asks")
    recovery_point: Literal["latest", "latest-processed", "latest-app-consistent"] = "latest"
    probes: tuple[ProbeBody, ...] = Field(default=(), max_length=PROBES_MAX)
    boot_seconds: float = BOOT_SECONDS
    reads_all: bool = Field(default=True, description="read and verify every byte of the point")

    def drill(self, vault: str, name: str) -> Drill:
        """Return the drill that is asked for."""
        given = self.model_dump(exclude={"probes"})
        probes = tuple(body.probe() for body in self.probes)
        return Drill(name=name, vault=vault, probes=probes, **given)


class RunDrillBody(Body):
    recovery_point: str = Field(default="", description="empty: as the drill says")


@router.get(_DRILLS)
def list_drills(service: ServiceOf, vault: NamePart) -> Response:
    """How the vault's items are drilled, those that have a drill of their own."""
    with service.bench.vault.read() as records:
        records.resources.get(Vault, "", vault)
        return page([stored.value for stored in records.resources.listed(Drill, vault)])


@router.get(_DRILLS + "/{item}", response_model=Drill)
def get_drill(service: ServiceOf, vault: NamePart, item: NamePart) -> Response:
    """How one item is drilled."""
    with service.bench.vault.read() as records:
        return reply(records.resources.get(Drill, vault, item).value)


@router.put(_DRILLS + "/{item}", response_model=Drill)
def put_drill(service: ServiceOf, vault: NamePart, item: NamePart, body: DrillBody) -> Response:
    """The item is drilled as given; its schedule counts anew."""
    return reply(service.drills.put(body.drill(vault, item)))


@router.delete(_DRILLS + "/{item}", status_code=HTTPStatus.NO_CONTENT)
def delete_drill(service: ServiceOf, vault: NamePart, item: NamePart) -> Response:
    """The item is drilled no more by itself; the evidence stays."""
    service.drills.delete(vault, item)
    return gone()


@router.post(_ITEM + "/drill", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def run_drill(
    service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart, body: RunDrillBody
) -> Response:
    """The item is being drilled now."""
    return accepted(service.drills.begin(vault, item, body.recovery_point, key))


@router.get(_ITEM + "/drills")
def list_results(service: ServiceOf, vault: NamePart, item: NamePart) -> Response:
    """The evidence of the item's drills, newest first."""
    with service.bench.vault.read() as records:
        return page(results_of(records, records.items.get(vault, item).item.id))


@router.get(_ITEM + "/drills/{job}", response_model=DrillResult)
def get_result(service: ServiceOf, vault: NamePart, item: NamePart, job: IdPart) -> Response:
    """The evidence of one drill."""
    with service.bench.vault.read() as records:
        item_id = records.items.get(vault, item).item.id
        return reply(records.resources.get(DrillResult, item_id, job).value)


@router.get(_ITEM + "/drills/{job}/screen")
def get_screen(service: ServiceOf, vault: NamePart, item: NamePart, job: IdPart) -> Response:
    """The picture of the test VM's display (PNG); not found where it has none."""
    with service.bench.vault.read() as records:
        item_id = records.items.get(vault, item).item.id
        png = records.resources.get(DrillScreen, item_id, job).value.png
    return Response(base64.b64decode(png), media_type="image/png")
