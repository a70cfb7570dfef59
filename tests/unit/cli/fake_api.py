"""The service as a dictionary, for tests of the whole program: what it answers and was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leeward.cli import session
from leeward.client.client import Client
from leeward.client.config import ClientConfig
from leeward.client.rest import Rest

VM = {
    "region": "east",
    "name": "web-1",
    "resource_group": "web-rg",
    "disks": [{"name": "system", "storage_account": "sa1", "size_bytes": 1 << 26}],
    "nics": [{"name": "front", "network": "corp", "subnet": "front", "address": "10.0.1.4"}],
    "status": {
        "vm_id": "web-1",
        "power": "running",
        "forwards": [{"guest_port": 8080, "host_address": "127.0.0.1", "host_port": 40001}],
    },
}
ITEM = {
    "id": "item-1",
    "name": "web-1",
    "vault": "default",
    "policy": "default",
    "state": "protected",
    "epoch": 1,
    "source_region": "east",
    "source_vm": "web-1",
    "target_region": "west",
    "target_resource_group": "web-rg-asr",
    "health": {
        "rpo_seconds": 1.5,
        "replication": {
            "item_id": "item-1",
            "epoch": 1,
            "state": "streaming",
            "initial_done": True,
        },
        "processing": None,
        "hydration": None,
    },
}
POINTS = [
    {"id": f"rp-1-{n}", "epoch": 1, "sequence": n, "time_ns": n * 10**9, "consistency": "crash"}
    for n in (1, 2, 3)
]
NODE = {
    "id": "agent-1",
    "role": "agent",
    "region": "east",
    "name": "east-1",
    "last_seen_ns": 1,
    "is_online": True,
}

PLAN = {
    "vault": "default",
    "policy": "default",
    "source_region": "east",
    "source_vm": "web-1",
    "target_region": "west",
    "target_vm": {**VM, "region": "west", "resource_group": "web-rg-asr"},
    "disks": [{"disk": "system", "source_account": "sa1", "target_account": "sa1asr"}],
    "excluded_disks": [],
    "nics": [],
    "cache_region": "east",
    "cache_account": "default-east-cache",
    "resources": [{"kind": "network", "region": "west", "name": "corp-asr", "action": "create"}],
    "mappings": [
        {
            "source_region": "east",
            "source_network": "corp",
            "target_region": "west",
            "target_network": "corp-asr",
        }
    ],
}


def job(state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "job-1",
        "verb": "failover",
        "target": "item/web-1",
        "state": state,
        "created_ns": 1,
        **more,
    }


class Api:
    """Answers GET from `pages`, everything else from `changes`; `seen` has what was asked."""

    def __init__(self) -> None:
        item = "vaults/default/replicated-items"
        self.pages: dict[str, Any] = {
            "regions": {"items": [{"name": "east"}, {"name": "west"}]},
            "regions/east/virtual-machines": {"items": [VM]},
            "regions/west/virtual-machines": {"items": []},
            "regions/east/virtual-machines/web-1": VM,
            "nodes": {"items": [NODE]},
            "vaults": {"items": [{"name": "default"}]},
            item: {"items": [ITEM]},
            f"{item}/web-1": ITEM,
            f"{item}/web-1/recovery-points": {"items": POINTS},
            "vaults/default/plan-drills": {"items": []},
            "jobs": {"items": []},
        }
        self.changes: Callable[[httpx.Request], httpx.Response] = lambda request: httpx.Response(
            200, json={}
        )
        self.seen: list[tuple[str, str, Any]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/")
        if request.method != "GET":
            body = json.loads(request.content) if request.content else None
            self.seen.append((request.method, path, body))
            return self.changes(request)
        if path not in self.pages:
            detail = f"there is nothing at {path}"
            return httpx.Response(404, json={"code": "not_found", "detail": detail})
        return httpx.Response(200, json=self.pages[path])


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    api = Api()

    def connect(directory: Path | None) -> Client:
        config = ClientConfig(url="http://service", token="t")
        return Client(Rest(config, transport=httpx.MockTransport(api.answer)))

    monkeypatch.setattr(session, "connect", connect)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("LEEWARD_DEBUG", raising=False)
    return api


Capture = pytest.CaptureFixture[str]
