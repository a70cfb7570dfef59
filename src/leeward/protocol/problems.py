"""RFC 9457 problem documents: how an error of core.errors crosses HTTP.

Owns: reading one back into the error tree. Must not know: HTTP clients or servers. Used by the
agent's link and by the REST client.
"""

from __future__ import annotations

from dataclasses import dataclass

from leeward.core.codec import from_json
from leeward.core.errors import (
    Conflict,
    InvalidRequest,
    LeewardError,
    NotAllowed,
    NotFound,
    Unavailable,
    error_from_code,
)

_BY_STATUS: dict[int, type[LeewardError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    412: Conflict,
    429: Unavailable,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The body of an error reply; every member may be missing."""

    title: str = ""
    detail: str = ""
    code: str = ""
    field: str | None = None
    hint: str | None = None


def error_from_problem(status: int, body: bytes) -> LeewardError:
    """Return the error that a reply of `status` (400 or above) with `body` stands for.

    A reply without a known code (a proxy's page, say) is judged by its status alone; what has no
    class of its own is Unavailable from 500 on and InvalidRequest below.
    """
    try:
        problem = from_json(body, Problem)
    except InvalidRequest:
        problem = Problem()
    message = problem.detail or problem.title or f"the service answered with status {status}"
    if problem.code:
        error = error_from_code(
            problem.code, message, field=problem.field or None, hint=problem.hint or None
        )
        if type(error) is not LeewardError or problem.code == LeewardError.code:
            return error
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = Unavailable if status >= 500 else InvalidRequest
    return kind(message, field=problem.field or None, hint=problem.hint or None)
