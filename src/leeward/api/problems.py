"""Every error as an RFC 9457 problem document.

Owns: the one place where errors become HTTP. Must not know: routes.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from leeward.core.codec import to_json
from leeward.core.errors import InvalidRequest, LeewardError, NotAllowed, NotFound
from leeward.observability.log import get_logger

log = get_logger()

MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    field: str | None = None,
    hint: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return a problem document."""
    body = {
        "type": f"urn:leeward:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "field": field,
        "hint": hint,
    }
    return Response(to_json(body), status, media_type=MEDIA_TYPE, headers=headers)


def install_problems(app: FastAPI) -> None:
    """Every error the app answers with is a problem document."""
    app.add_exception_handler(LeewardError, _deliberate)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _deliberate(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeewardError)
    if error.http_status >= 500:
        log.warning("request_failed", path=request.url.path, code=error.code, error=str(error))
    status = error.http_status
    headers = {"Retry-After": "2"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return problem(
        status, error.code, error.message, field=error.field, hint=error.hint, headers=headers
    )


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    field = ".".join(place[1:] if len(place) > 1 else place)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    elif first["type"] == "json_invalid":
        field, message = "", "the body is not valid JSON"
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "string_pattern_mismatch":
        message = f"{first['input']!r} is not possible here"
    detail = f"{field}: {message[:1].lower()}{message[1:]}" if field else message
    return problem(HTTPStatus.BAD_REQUEST, InvalidRequest.code, detail, field=field or None)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, detail = InvalidRequest.code, str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        code, detail = NotFound.code, f"there is nothing at {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}"
    elif error.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        code = NotAllowed.code
    return problem(error.status_code, code, detail, headers=dict(error.headers or {}))


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request_broke", path=request.url.path, error=f"{type(error).__name__}: {error}")
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, LeewardError.code, "the service met an error of its own"
    )
