"""Routes of the nodes: enrolment, commands, results, status.

Owns: their paths. Must not know: what commands do. Nodes only ever ask; nothing connects to them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from leeward.api.access import BodyOf, NodeOf, ServiceOf
from leeward.api.replies import reply
from leeward.core.codec import from_json
from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name
from leeward.observability.log import get_logger
from leeward.protocol.messages import (
    CommandResult,
    EnrolmentReply,
    EnrolmentRequest,
    MeetingCalls,
    MeetingReply,
    MeetingWord,
    NodeStatus,
)

log = get_logger()
router = APIRouter(tags=["nodes"])

WAIT_SECONDS_MAX = 60.0
_KEY_LENGTH = 64
_TOKEN_LENGTH_MAX = 256


@router.post("/enrol", response_model=EnrolmentReply)
def enrol(service: ServiceOf, body: BodyOf) -> Response:
    """The node is enrolled under its own key; the token is spent."""
    request = from_json(body, EnrolmentRequest)
    check_name(request.region, field="region")
    check_name(request.name)
    if len(request.key) != _KEY_LENGTH or not set(request.key) <= set("0123456789abcdef"):
        raise InvalidRequest("key: 32 random bytes in hex", field="key")
    if not 0 < len(request.token) <= _TOKEN_LENGTH_MAX:
        raise InvalidRequest("token: a one-time enrolment token", field="token")
    with service.bench.vault.write() as records:
        node = records.nodes.enrol(request, now_ns=service.bench.clock.now_ns())
    log.info("node_enrolled", node=node.id, role=node.role.value, region=node.region)
    return reply(EnrolmentReply(node_id=node.id))


@router.get("/commands")
async def commands(
    service: ServiceOf,
    node: NodeOf,
    wait: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX)] = 20.0,
) -> Response:
    """The node's unanswered commands, oldest first, as soon as there is one to be delivered."""
    return reply({"commands": await service.bench.dispatch.wait_commands(node.id, wait)})


@router.post("/results")
def results(service: ServiceOf, node: NodeOf, body: BodyOf) -> Response:
    """The command is answered; answering it again changes nothing."""
    service.bench.dispatch.answer(node.id, from_json(body, CommandResult))
    return reply({})


@router.get("/meetings")
async def meetings(
    service: ServiceOf,
    node: NodeOf,
    wait: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX)] = 20.0,
) -> Response:
    """What the node's items are called to, as soon as there is something."""
    return reply(MeetingCalls(calls=tuple(await service.meetings.wait_calls(node.id, wait))))


@router.post("/meetings")
async def meet(service: ServiceOf, node: NodeOf, body: BodyOf) -> Response:
    """How far a member is; the reply says whether it goes on, once that is clear."""
    go = await service.meetings.take_word(node.id, from_json(body, MeetingWord))
    return reply(MeetingReply(go=go))


@router.post("/status")
def status(service: ServiceOf, node: NodeOf, body: BodyOf) -> Response:
    """How things stand on the node is known; the reply names items that have moved on and
    cuts that wait for it."""
    return reply(service.monitor.take_status(node, from_json(body, NodeStatus)))
