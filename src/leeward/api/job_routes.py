"""Routes of jobs and events.

Owns: their paths and cursors. Must not know: verbs.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from leeward.api.access import ServiceOf
from leeward.api.replies import IdPart, LimitOf, page, reply
from leeward.core.errors import InvalidRequest
from leeward.model.recovery import Job

router = APIRouter(tags=["jobs"])

CursorOf = Annotated[str, Query(max_length=20, pattern=r"^[0-9]*$")]
TargetOf = Annotated[str, Query(max_length=200)]


@router.get("/jobs")
def list_jobs(
    service: ServiceOf, limit: LimitOf = 200, cursor: CursorOf = "", target: TargetOf = ""
) -> Response:
    """Jobs without their steps, newest first; of one target ("item/web-1") if given."""
    with service.bench.vault.read() as records:
        jobs = records.jobs.listed(limit=limit, before_ns=_number(cursor), target=target)
    return page(jobs, str(jobs[-1].created_ns) if len(jobs) == limit else None)


@router.get("/jobs/{job}", response_model=Job)
def get_job(service: ServiceOf, job: IdPart) -> Response:
    """A job, its steps, and how far each is."""
    with service.bench.vault.read() as records:
        return reply(records.jobs.get(job))


@router.post("/jobs/{job}/cancel", response_model=Job)
def cancel_job(service: ServiceOf, job: IdPart) -> Response:
    """The job ends at its next step and undoes what it did; refused where that is not safe."""
    return reply(service.jobs.cancel(job))


@router.get("/events")
def list_events(
    service: ServiceOf, limit: LimitOf = 200, cursor: CursorOf = "", target: TargetOf = ""
) -> Response:
    """What happened, newest first; to one target if given."""
    with service.bench.vault.read() as records:
        events = records.events.listed(limit=limit, before=_number(cursor), target=target)
    return page(events, str(events[-1].sequence) if len(events) == limit else None)


def _number(cursor: str) -> int:
    number = int(cursor or 0)
    if number >= 1 << 63:
        raise InvalidRequest("cursor: not one this service gave", field="cursor")
    return number
