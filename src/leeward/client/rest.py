"""REST requests and nothing more: paths, JSON, idempotency keys, problems turned into errors.

Owns: httpx and its exceptions on the client's side. Must not know: resources.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from leeward.client.config import ClientConfig
from leeward.client.lean_httpx import httpx
from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest, Unavailable
from leeward.protocol.problems import error_from_problem

T = TypeVar("T")

_ATTEMPTS = 3
_PAUSE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Reply:
    """status 202: the body is a Job that goes on."""

    status: int
    body: bytes

    def parse(self, kind: type[T]) -> T:
        """Return the body as a `kind`."""
        return from_json(self.body, kind)


class Rest:
    """The API under /api/v1 of one service. Use as a context manager or close it."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_seconds: float = 30.0,
        attempts: int = _ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = config.url.rstrip("/")
        self._attempts = attempts
        self._sleep = sleep
        if not re.match(r"https?://[^/]", self._url):
            raise InvalidRequest(
                f"{config.url!r} is not the address of a service", hint="write http://HOST:PORT"
            )
        try:
            self._http = httpx.Client(
                base_url=f"{self._url}/api/v1",
                headers={"Authorization": f"Bearer {config.token}"},
                timeout=timeout_seconds,
                transport=transport,
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise InvalidRequest(f"{config.url!r} is not the address of a service") from error

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Reply:
        """Return the answer to GET. Raises: NotFound, NotAllowed, Unavailable."""
        return self._request("GET", path, params=dict(parameters or {}))

    def put(self, path: str, value: object) -> Reply:
        """Return the answer to PUT of `value` as JSON."""
        return self._change("PUT", path, value)

    def post(self, path: str, value: object | None = None) -> Reply:
        """Return the answer to POST of `value` as JSON."""
        return self._change("POST", path, {} if value is None else value)

    def patch(self, path: str, value: object) -> Reply:
        """Return the answer to PATCH of `value` as JSON."""
        return self._change("PATCH", path, value)

    def delete(self, path: str, parameters: Mapping[str, str] | None = None) -> Reply:
        """Return the answer to DELETE."""
        return self._request(
            "DELETE", path, params=dict(parameters or {}), headers=_idempotency_key()
        )

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def _change(self, method: str, path: str, value: object) -> Reply:
        headers = {"Content-Type": "application/json", **_idempotency_key()}
        return self._request(method, path, content=to_json(value), headers=headers)

    def _request(self, method: str, path: str, **options: Any) -> Reply:
        """Ask, again where the connection failed: the idempotency key makes that harmless."""
        for attempt in range(1, self._attempts + 1):
            try:
                reply = self._http.request(method, path, **options)
                break
            except httpx.HTTPError as error:
                if attempt == self._attempts:
                    raise Unavailable(
                        f"the service at {self._url} does not answer: {_reason(error)}",
                        hint="is it running? `leeward up` starts one",
                    ) from error
                self._sleep(_PAUSE_SECONDS * attempt)
        if reply.status_code >= 400:
            raise error_from_problem(reply.status_code, reply.content)
        return Reply(reply.status_code, reply.content)


def _idempotency_key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def _reason(error: httpx.HTTPError) -> str:
    text = str(error) or type(error).__name__
    return text.replace("[Errno 111] ", "").lower()
