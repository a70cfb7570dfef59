"""The FastAPI app: routers, authentication, problems, limits.

Owns: how they hang together. Must not know: how the service was put together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

import anyio.to_thread
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leeward.api import (
    consistency_routes,
    drill_routes,
    job_routes,
    machine_routes,
    mapping_routes,
    node_routes,
    plan_drill_routes,
    plan_routes,
    region_routes,
    storage_routes,
    vault_routes,
)
from leeward.api.access import PUBLIC_BODY_MAX, require_operator
from leeward.api.problems import install_problems, problem
from leeward.core.errors import InvalidRequest
from leeward.workflows.service import Service

_THREADS = 64
"""Requests at work in the database at the same time; waiting polls hold none."""


def build_app(service: Service, token: str, *, on_end: Callable[[], None]) -> FastAPI:
    """Return the app over a service that has been started.

    token: the operator's. on_end: called when the app ends; stops the service.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(on_end)

    app = FastAPI(
        title="Leeward",
        summary="Site recovery for virtual machines",
        version=version("leeward"),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.service = service
    app.state.token = token
    install_problems(app)
    for module in (
        region_routes,
        mapping_routes,
        machine_routes,
        vault_routes,
        plan_routes,
        consistency_routes,
        drill_routes,
        plan_drill_routes,
        job_routes,
        storage_routes,
    ):
        app.include_router(
            module.router, prefix="/api/v1", dependencies=[Depends(require_operator)]
        )
    app.include_router(node_routes.router, prefix="/node/v1")
    app.add_middleware(_BodyLimit)
    return app


class _BodyLimit:
    """Refuses large bodies of the public API before they are read into memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > PUBLIC_BODY_MAX:
            refusal = problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                InvalidRequest.code,
                f"the body is larger than {PUBLIC_BODY_MAX} bytes",
            )
            await refusal(scope, receive, send)
            return
        left = PUBLIC_BODY_MAX

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise InvalidRequest(f"the body is larger than {PUBLIC_BODY_MAX} bytes")
            return message

        await self._app(scope, limited, send)
