"""Replies every route shares: JSON of the model's values, pages, jobs under way.

Owns: their shape. Must not know: which route.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import Path, Query, Response

from leeward.core.codec import to_json
from leeward.model.recovery import Job

NamePart = Annotated[str, Path(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
IdPart = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$")]
LimitOf = Annotated[int, Query(ge=1, le=1000)]


def reply(value: object, status: int = HTTPStatus.OK) -> Response:
    """Return `value` (dataclasses, containers) as JSON."""
    return Response(to_json(value), status, media_type="application/json")


def versioned(value: object, version: int) -> Response:
    """Return `value` as JSON with an ETag, to be given back as If-Match when it is changed."""
    headers = {"ETag": f'"{version}"'}
    return Response(to_json(value), media_type="application/json", headers=headers)


def page(items: Sequence[object], next_cursor: str | None = None) -> Response:
    """Return one page of a list; next_cursor None: the last."""
    return reply({"items": list(items), "next": next_cursor})


def accepted(job: Job) -> Response:
    """Return a job under way."""
    return Response(
        to_json(job),
        HTTPStatus.ACCEPTED,
        headers={"Location": f"/api/v1/jobs/{job.id}"},
        media_type="application/json",
    )


def gone() -> Response:
    """Return nothing: what was asked to go is gone."""
    return Response(status_code=HTTPStatus.NO_CONTENT)
