"""Requests to the service: what is sent, and every failure as an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from leeward.agent import identity
from leeward.agent.identity import DirectoryLock, Identity, enrol, load_identity, next_process
from leeward.agent.service import Service
from leeward.core.errors import (
    Conflict,
    InvalidRequest,
    LeewardError,
    NotAllowed,
    NotFound,
    Unavailable,
)
from leeward.protocol.messages import (
    Command,
    CommandResult,
    NodeStatus,
    Role,
    StatusReply,
    Superseded,
    Verb,
)

Answer = Callable[[httpx.Request], httpx.Response]


def service(answer: Answer) -> Service:
    return Service("http://service", transport=httpx.MockTransport(answer))


def test_commands_that_cannot_be_understood_are_refused_one_by_one() -> None:
    known = {"id": "c1", "verb": "vm.start", "arguments": {"vm_id": "web-1"}}
    newer = {"id": "c2", "verb": "vm.levitate", "arguments": {}}
    link = service(lambda request: httpx.Response(200, json={"commands": [known, newer]}))
    first, second = link.commands(wait_seconds=1)
    link.close()
    assert first == Command(id="c1", verb=Verb.VM_START, arguments={"vm_id": "web-1"})
    assert isinstance(second, CommandResult)
    assert (second.command_id, second.ok, second.error_code) == ("c2", False, "invalid_request")


def test_status_reply_names_what_is_superseded() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["storage_root"] == "/s"
        return httpx.Response(200, json={"supersede": [{"item_id": "i", "epoch": 3}]})

    link = service(answer)
    assert link.post_status(NodeStatus(storage_root="/s")) == StatusReply(
        supersede=(Superseded(item_id="i", epoch=3),)
    )
    link.close()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {}, NotAllowed),
        (404, {"code": "not_found", "detail": "no such command"}, NotFound),
        (409, {}, Conflict),
        (422, {}, InvalidRequest),
        (502, {}, Unavailable),
        (500, {"code": "internal", "detail": "a bug"}, LeewardError),
    ],
)
def test_refusals_become_our_errors(
    status: int, body: dict[str, str], kind: type[LeewardError]
) -> None:
    link = service(lambda request: httpx.Response(status, json=body))
    with pytest.raises(LeewardError) as caught:
        link.post_result(CommandResult(command_id="c", ok=True))
    link.close()
    assert type(caught.value) is kind
    if "detail" in body:
        assert caught.value.message == body["detail"]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("x")]
)
def test_every_failure_of_the_line_is_unavailable(error: httpx.HTTPError) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    link = service(answer)
    with pytest.raises(Unavailable):
        link.commands(wait_seconds=1)
    link.close()
    with pytest.raises(Unavailable):
        link.commands(wait_seconds=1)


def test_enrolling_keeps_key_and_id_and_authenticates(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"node_id": "agent-1", "commands": []})

    link = service(answer)
    fresh = load_identity(path, role=Role.AGENT, region="east", name="h")
    enrolled = enrol(path, fresh, link, token="once")
    link.commands(wait_seconds=0)
    link.close()
    assert json.loads(seen[0].content) == {
        "token": "once",
        "role": "agent",
        "region": "east",
        "name": "h",
        "key": fresh.key,
    }
    assert seen[1].headers["Authorization"] == f"Bearer agent-1:{fresh.key}"
    assert path.stat().st_mode & 0o777 == 0o600
    again = load_identity(path, role=Role.AGENT, region="east", name="h")
    assert again == enrolled


def test_key_is_kept_before_the_token_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    before = load_identity(path, role=Role.AGENT, region="east", name="h")
    assert load_identity(path, role=Role.AGENT, region="east", name="h").key == before.key


def test_without_a_token_a_new_node_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    link = service(lambda request: httpx.Response(500))
    fresh = load_identity(path, role=Role.WORKER, region="east", name="h")
    with pytest.raises(InvalidRequest, match="token"):
        enrol(path, fresh, link, token="")
    link.close()


def test_a_spent_token_that_lies_about_keeps_no_enrolled_node_down(tmp_path: Path) -> None:
    """Its directory may be one that the node cannot delete in."""
    path = tmp_path / "identity.json"
    problem = {"code": "not_allowed", "detail": "the enrolment token has expired"}
    replies = [httpx.Response(200, json={"node_id": "agent-1"}), httpx.Response(403, json=problem)]
    link = service(lambda request: replies.pop(0))
    enrolled = enrol(path, load(path), link, token="once")
    assert enrol(path, load(path), link, token="once") == enrolled
    replies.append(httpx.Response(403, json=problem))
    new = tmp_path / "new.json"
    with pytest.raises(NotAllowed, match="expired"):
        enrol(new, load(new), link, token="once")
    link.close()


def test_a_later_process_of_a_directory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (next_process(tmp_path / "starts") for _ in range(2))
    assert [each.partition(".")[0] for each in (first, second)] == ["1", "2"]

    def refuse(path: Path, data: bytes) -> None:
        raise Unavailable("No space left on device")

    monkeypatch.setattr(identity, "write_file", refuse)
    third = next_process(tmp_path / "starts")
    assert third.startswith("2.")
    assert third != second
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"commands": []})

    link = service(answer)
    link.name_process(third)
    link.commands(wait_seconds=0)
    link.close()
    assert seen[0].headers["Leeward-Process"] == third


def test_a_broken_identity_is_named(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(b'{"role": "agent", "reg')
    with pytest.raises(InvalidRequest, match=r"identity\.json is broken"):
        load(path)


def load(path: Path) -> Identity:
    return load_identity(path, role=Role.AGENT, region="east", name="h")


def test_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    load_identity(path, role=Role.AGENT, region="east", name="h")
    with pytest.raises(Conflict, match="belongs to agent h of region east"):
        load_identity(path, role=Role.AGENT, region="west", name="h")


def test_directory_is_locked_until_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "lock", owner="agent")
    with pytest.raises(Conflict, match="another agent already runs"):
        DirectoryLock(tmp_path / "lock", owner="agent")
    lock.release()
    DirectoryLock(tmp_path / "lock", owner="agent").release()
