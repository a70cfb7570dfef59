"""Requests a node makes to the service: enrol, wait for commands, tell results and status.

Owns: the only HTTP of the agent room, and the translation of httpx's exceptions. Must not know:
what commands mean. Outbound only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from leeward.core.codec import from_json, from_plain, to_json
from leeward.core.errors import InvalidRequest, Unavailable
from leeward.protocol.messages import (
    PROCESS_HEADER,
    Command,
    CommandResult,
    EnrolmentReply,
    EnrolmentRequest,
    MeetingCall,
    MeetingCalls,
    MeetingReply,
    MeetingWord,
    NodeStatus,
    StatusReply,
)
from leeward.protocol.problems import error_from_problem

_REQUEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commands:
    commands: list[dict[str, Any]]


class Service:
    """The service at `url`, as one node sees it. Thread-safe."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        try:
            self._http = httpx.Client(
                base_url=url, transport=transport, timeout=_REQUEST_SECONDS, trust_env=False
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise InvalidRequest(f"{url!r} is not a service URL: {error}") from error
        self._url = url

    def authenticate(self, node_id: str, key: str) -> None:
        """Every request from now on is made as this node."""
        self._http.headers["Authorization"] = f"Bearer {node_id}:{key}"

    def name_process(self, process: str) -> None:
        """Every request from now on says which process it comes from: of two with one identity,
        the directory having been copied, the service hears one."""
        self._http.headers[PROCESS_HEADER] = process

    def enrol(self, request: EnrolmentRequest) -> EnrolmentReply:
        """The node is enrolled. Raises: InvalidRequest, Conflict (token used), Unavailable."""
        return from_json(self._post("/node/v1/enrol", request), EnrolmentReply)

    def commands(self, *, wait_seconds: float) -> list[Command | CommandResult]:
        """Return the commands not yet answered, oldest first, waiting for one if there is none.

        One that cannot be understood is returned as the result that refuses it. Raises:
        Unavailable.
        """
        body = self._request(
            "GET",
            "/node/v1/commands",
            params={"wait": f"{wait_seconds:g}"},
            timeout=httpx.Timeout(_REQUEST_SECONDS, read=wait_seconds + _REQUEST_SECONDS),
        )
        return [_command(raw) for raw in from_json(body, _Commands).commands if raw.get("id")]

    def post_result(self, result: CommandResult) -> None:
        """The service has the result, durably. Raises: Unavailable, NotFound."""
        self._post("/node/v1/results", result)

    def post_status(self, status: NodeStatus) -> StatusReply:
        """The service has the status; returns what it has to say to the node."""
        return from_json(self._post("/node/v1/status", status), StatusReply)

    def meeting_calls(self, *, wait_seconds: float) -> tuple[MeetingCall, ...]:
        """Return what this node's items are called to, waiting for something. Raises:
        Unavailable."""
        body = self._request(
            "GET",
            "/node/v1/meetings",
            params={"wait": f"{wait_seconds:g}"},
            timeout=httpx.Timeout(_REQUEST_SECONDS, read=wait_seconds + _REQUEST_SECONDS),
        )
        return from_json(body, MeetingCalls).calls

    def meet(self, word: MeetingWord, *, seconds: float) -> bool:
        """Tell how far a member is, and return whether it goes on. Raises: Unavailable, also when
        there is no reply within `seconds`; NotAllowed."""
        reply = self._request(
            "POST",
            "/node/v1/meetings",
            content=to_json(word),
            headers={"Content-Type": "application/json"},
            timeout=seconds,
        )
        return from_json(reply, MeetingReply).go

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def _post(self, path: str, value: object) -> bytes:
        headers = {"Content-Type": "application/json"}
        return self._request("POST", path, content=to_json(value), headers=headers)

    def _request(self, method: str, path: str, **options: Any) -> bytes:
        try:
            reply = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unavailable(
                f"the service at {self._url} cannot be reached: {_reason(error)}"
            ) from error
        except RuntimeError as error:
            raise Unavailable("the link to the service has been closed") from error
        if reply.status_code >= 400:
            raise error_from_problem(reply.status_code, reply.content)
        return reply.content


def _command(raw: dict[str, Any]) -> Command | CommandResult:
    try:
        return from_plain(raw, Command)
    except InvalidRequest as error:
        return CommandResult(
            command_id=str(raw["id"]), ok=False, error_code=error.code, error=error.message
        )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
