"""The HTTP side: who may ask, what is refused and how, what a reply looks like."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from tests.unit.workflows.replay_rig import ReplayEngine

from leeward import api
from leeward.api.access import idempotency_key, load_token
from leeward.api.app import build_app
from leeward.core.errors import NotAllowed
from leeward.protocol.messages import Verb
from leeward.protocol.problems import error_from_problem
from leeward.vault.database import sqlite_url
from leeward.vault.records import VaultStore
from leeward.workflows.service import Service

KEY = "0f" * 32


class Http:
    """The app without a socket; bears the operator's token unless told otherwise."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://leeward",
                headers={"Authorization": "Bearer secret"},
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        return self.request("PUT", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)


@pytest.fixture
def http(tmp_path: Path) -> Iterator[Http]:
    service = Service(VaultStore.open(sqlite_url(tmp_path / "vault.sqlite")), ReplayEngine())
    service.jobs.launch()
    yield Http(build_app(service, "secret", on_end=service.stop))
    service.stop()


def enrolled(http: Http, role: str = "agent", region: str = "east") -> dict[str, str]:
    """Return the headers of a node that has just enrolled and told its storage."""
    assert http.put(f"/api/v1/regions/{region}", json={}).status_code == 200
    token = http.post(f"/api/v1/regions/{region}/enrolment-tokens", json={}).json()["token"]
    body = {"token": token, "role": role, "region": region, "name": "n-1", "key": KEY}
    reply = http.post("/node/v1/enrol", json=body)
    assert reply.status_code == 200, reply.text
    headers = {"Authorization": f"Bearer {reply.json()['node_id']}:{KEY}"}
    http.post("/node/v1/status", json={"storage_root": "/s"}, headers=headers)
    return headers


def problem(reply: Any, status: int) -> dict[str, Any]:
    """Return the problem document of a reply of that status."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = reply.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "field", "hint"}
    assert body["status"] == status
    assert "\n" not in body["detail"]
    return body


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic secret", "Bearer "])
def test_without_the_token_nothing_is_told(http: Http, header: str | None) -> None:
    headers = {"Authorization": header} if header else {"Authorization": ""}
    reply = http.get("/api/v1/regions", headers=headers)
    problem(reply, 401)
    assert isinstance(error_from_problem(401, reply.content), NotAllowed)


def test_the_operators_token_is_no_nodes_key(http: Http) -> None:
    problem(http.get("/node/v1/commands?wait=0"), 401)
    node = enrolled(http)
    problem(http.get("/api/v1/regions", headers=node), 401)
    assert http.get("/node/v1/commands?wait=0", headers=node).json() == {"commands": []}


def test_of_two_processes_with_one_identity_the_later_one_is_heard(http: Http) -> None:
    """Else both would carry out every command: a host was cloned with its agent's directory."""
    node = enrolled(http)
    original, copy = ({**node, "Leeward-Process": f"{starts}.{starts:016x}"} for starts in (7, 8))
    assert http.get("/node/v1/commands?wait=0", headers=original).status_code == 200
    assert http.get("/node/v1/commands?wait=0", headers=copy).status_code == 200
    for method, path in (("GET", "/commands?wait=0"), ("POST", "/status"), ("POST", "/results")):
        refusal = problem(http.request(method, f"/node/v1{path}", headers=original), 409)
        assert "another process is at work as agent n-1 in east" in refusal["detail"]
    assert http.get("/node/v1/commands?wait=0", headers=copy).status_code == 200


def test_the_token_file_is_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "service" / "api-token"
    token = load_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_token(path) == token
    path.write_text("\n")  # an empty token would let everybody in
    assert load_token(path) not in ("", token)
    assert len(token) >= 32


REFUSED = {
    "unknown path": ("GET", "/nowhere", None, 404, None),
    "wrong method": ("PATCH", "/regions", None, 405, None),
    "bad name": ("PUT", "/regions/Bad_Name", {}, 400, "region"),
    "not JSON": ("PUT", "/regions/east", b"{", 400, None),
    "unknown field": ("PUT", "/regions/east", {"x": 1}, 400, "x"),
    "missing field": ("PUT", "/regions/east/networks/n", {}, 400, "resource_group"),
    "unknown region": ("GET", "/regions/mars", None, 404, None),
    "unknown region of a resource": ("PUT", "/regions/mars/resource-groups/rg", {}, 404, "region"),
    "unknown group": (
        "PUT",
        "/regions/east/availability-sets/s",
        {"resource_group": "x"},
        404,
        "resource_group",
    ),
    "unknown job": ("GET", "/jobs/job-1", None, 404, None),
    "unknown vault": (
        "POST",
        "/vaults/nope/replicated-items",
        {"source_region": "a", "vm": "b", "target_region": "c"},
        404,
        None,
    ),
    "bad number": ("GET", "/jobs?limit=0", None, 400, "limit"),
    "bad cursor": ("GET", "/jobs?cursor=x", None, 400, "cursor"),
    "no agent": ("PUT", "/regions/east/storage-accounts/a", {"resource_group": "rg"}, 503, None),
    "empty VM": (
        "PUT",
        "/regions/east/virtual-machines/v",
        {"resource_group": "rg", "disks": []},
        400,
        "disks",
    ),
    "a target too small to start": (
        "POST",
        "/vaults/v/replicated-items",
        {"source_region": "a", "vm": "b", "target_region": "c", "memory_mib": 5},
        400,
        "memory_mib",
    ),
    "a target made too small to start": (
        "POST",
        "/vaults/v/replicated-items/i/update",
        {"memory_mib": 31},
        400,
        "memory_mib",
    ),
    "more vCPUs than a host takes": (
        "POST",
        "/vaults/v/replicated-items/i/update",
        {"vcpus": 256},
        400,
        "vcpus",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_refused_is_a_problem(http: Http, case: str) -> None:
    method, path, body, status, field = REFUSED[case]
    http.put("/api/v1/regions/east", json={})
    http.put("/api/v1/regions/east/resource-groups/rg", json={})
    content: dict[str, Any] = {"json": body}
    if isinstance(body, bytes):
        json_type = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
        content = {"content": body, "headers": json_type}
    found = problem(http.request(method, f"/api/v1{path}", **content), status)
    assert found["field"] == field


def test_what_is_not_there_is_said_with_the_command_that_lists_what_is(http: Http) -> None:
    http.put("/api/v1/regions/east", json={})
    for path, command in (
        ("regions/east/virtual-machines/v", "`leeward vm list`"),
        ("regions/east/networks/n", "`leeward network list`"),
        ("jobs/1234", "`leeward job list`"),
    ):
        assert problem(http.get(f"/api/v1/{path}"), 404)["hint"] == command


def test_a_large_body_is_refused_unread(http: Http) -> None:
    problem(http.put("/api/v1/regions/east", content=b" " * (2 << 20)), 413)
    node = enrolled(http)
    problem(http.post("/node/v1/status", content=b" " * (17 << 20), headers=node), 400)


def test_an_unexpected_error_tells_nothing_of_the_inside(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(http.service.resources, "create_region", broken)
    found = problem(http.put("/api/v1/regions/east", json={}), 500)
    assert "inside" not in found["detail"]


def test_resources_come_and_go(http: Http) -> None:
    http.put("/api/v1/regions/east", json={})
    base = "/api/v1/regions/east"
    assert http.put(f"{base}/resource-groups/rg", json={}).status_code == 201
    assert http.put(f"{base}/resource-groups/rg", json={}).status_code == 200
    network = {
        "resource_group": "rg",
        "address_space": ["10.0.0.0/16"],
        "subnets": [{"name": "a", "prefix": "10.0.1.0/24"}],
    }
    made = http.put(f"{base}/networks/corp", json=network)
    assert made.json() == {
        "region": "east",
        "name": "corp",
        "provisioning_state": "ready",
        **network,
        "subnets": [{"name": "a", "prefix": "10.0.1.0/24", "bridge": ""}],
        "routing": "isolated",
        "outbound": "none",
    }
    assert http.put(f"{base}/networks/corp", json=network).status_code == 200
    other = {**network, "address_space": ["10.0.0.0/8"]}
    problem(http.put(f"{base}/networks/corp", json=other), 409)
    assert http.get(f"{base}/networks").json() == {"items": [made.json()], "next": None}
    found = problem(http.delete(f"{base}/resource-groups/rg"), 409)
    assert "network corp" in found["detail"]
    job = http.delete(f"{base}/networks/corp")
    assert job.status_code == 202
    assert job.headers["Location"] == f"/api/v1/jobs/{job.json()['id']}"
    assert http.get(f"{base}/networks/corp").json()["provisioning_state"] == "deleting"
    assert http.delete(f"{base}/networks/corp").json()["id"] == job.json()["id"]


def test_a_request_repeated_under_its_key_makes_one_job(http: Http) -> None:
    enrolled(http)
    http.put("/api/v1/regions/east/resource-groups/rg", json={})
    path = "/api/v1/regions/east/storage-accounts/a"
    body = {"resource_group": "rg"}
    first = http.put(path, json=body)
    assert first.status_code == 202
    assert http.put(path, json=body).json()["id"] == first.json()["id"]
    account = http.get(path).json()
    assert account["url"] == "file:///s/a/objects"
    assert account["disk_directory"] == "/s/a/disks"
    keyed = {"Idempotency-Key": "once"}
    token = "/api/v1/regions/east/enrolment-tokens"
    assert (
        http.post(token, json={}, headers=keyed).json()["token"]
        == http.post(token, json={}, headers=keyed).json()["token"]
    )
    problem(http.post(token, json={}, headers={"Idempotency-Key": "x" * 300}), 400)


def test_every_deletion_that_takes_a_job_heeds_the_key_of_its_request() -> None:
    """A lost answer is asked for again when what was deleted has gone."""
    modules = [each.name for each in pkgutil.iter_modules(api.__path__, "leeward.api.")]
    deletions = [
        route
        for name in modules
        if name.endswith("_routes")
        for route in import_module(name).router.routes
        if isinstance(route, APIRoute)
        and "DELETE" in (route.methods or ())
        and route.status_code == 202
    ]
    assert len(deletions) > 3
    for route in deletions:
        calls = [dependency.call for dependency in route.dependant.dependencies]
        assert idempotency_key in calls, route.path


def test_pages_of_jobs_follow_their_cursor(http: Http) -> None:
    enrolled(http)
    http.put("/api/v1/regions/east/resource-groups/rg", json={})
    for name in "abc":
        http.put(f"/api/v1/regions/east/storage-accounts/{name}", json={"resource_group": "rg"})
    seen, cursor = [], ""
    while cursor is not None:
        page = http.get("/api/v1/jobs", params={"limit": 2, "cursor": cursor}).json()
        seen += [job["target"][-1] for job in page["items"]]
        cursor = page["next"]
    assert seen == ["c", "b", "a"]


def test_commands_are_delivered_until_answered(http: Http) -> None:
    node = enrolled(http)
    http.put("/api/v1/regions/east/resource-groups/rg", json={})
    job = http.put("/api/v1/regions/east/storage-accounts/a", json={"resource_group": "rg"}).json()
    orders = http.service.resources.account_orders("east", "a", Verb.ACCOUNT_CREATE)
    (command_id,) = http.service.bench.dispatch.send(orders, job_id=job["id"], step="create")
    (command,) = http.get("/node/v1/commands?wait=0", headers=node).json()["commands"]
    assert command["id"] == command_id
    assert command["arguments"]["name"] == "a"
    (again,) = http.get("/node/v1/commands?wait=0", headers=node).json()["commands"]
    assert again == command
    result = {"command_id": command_id, "ok": True}
    for _ in range(2):
        assert http.post("/node/v1/results", json=result, headers=node).status_code == 200
    assert http.get("/node/v1/commands?wait=0", headers=node).json() == {"commands": []}
    problem(http.post("/node/v1/results", json={"command_id": "x", "ok": True}, headers=node), 404)
    problem(http.post("/node/v1/results", content=b"{", headers=node), 400)


def test_nodes_are_shown_with_when_they_were_heard(http: Http) -> None:
    enrolled(http)
    (node,) = http.get("/api/v1/nodes").json()["items"]
    assert node["is_online"]
    assert node["last_seen_ns"] > 0
    assert (node["role"], node["region"], node["name"]) == ("agent", "east", "n-1")
    assert "key" not in "".join(node)
    problem(http.delete(f"/api/v1/nodes/{node['id']}"), 409)


def test_the_api_describes_itself(http: Http) -> None:
    paths = http.get("/api/v1/openapi.json").json()["paths"]
    assert "/api/v1/vaults/{vault}/replicated-items/{item}/failover" in paths
    assert "/node/v1/commands" in paths
