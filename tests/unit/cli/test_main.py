"""The whole program against a service that is a dictionary: output, errors, exit codes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from leeward.cli import session
from leeward.cli.main import run
from leeward.cli.output import format_time
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


def test_vm_as_json_is_the_resource_with_its_status(api: Api, capsys: Capture) -> None:
    assert run(["vm", "show", "east/web-1", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"]["forwards"][0]["host_port"] == 40001
    assert shown["resource_group"] == "web-rg"


def test_vms_as_a_table(api: Api, capsys: Capture) -> None:
    assert run(["vm", "list"]) == 0
    printed = capsys.readouterr()
    assert "web-1" in printed.out
    assert "127.0.0.1:40001 → 8080" in printed.out
    assert printed.err == ""


def test_vm_create_sends_what_was_typed(api: Api, capsys: Capture) -> None:
    arguments = [
        *("vm", "create", "web-1", "--region", "east", "--resource-group", "web-rg"),
        *("--memory", "256M", "--disk", "system=sa1,image=/i.raw", "--disk", "data=sa2,size=64M"),
        *("--nic", "front=corp/front", "--availability-set", "as1", "--forward", "8080"),
    ]
    assert run(arguments) == 0
    assert capsys.readouterr().out == "VM east/web-1 runs\n"
    method, path, body = api.seen[0]
    assert (method, path) == ("PUT", "regions/east/virtual-machines/web-1")
    assert body["memory_mib"] == 256
    assert [disk["size_bytes"] for disk in body["disks"]] == [0, 64 << 20]
    assert body["forwards"] == [8080]


def test_points_newest_first_and_limited(api: Api, capsys: Capture) -> None:
    assert run(["recovery-point", "list", "web-1", "--limit", "2", "-o", "json"]) == 0
    assert [p["id"] for p in json.loads(capsys.readouterr().out)] == ["rp-1-3", "rp-1-2"]


def test_times_say_how_far_from_utc_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_700_000_000_250_000_000
    try:
        for zone, shown in (
            ("EST5", "2023-11-14 17:13:20.250-05:00"),
            ("UTC0", "2023-11-14 22:13:20.250Z"),
        ):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert format_time(moment) == shown
            assert datetime.fromisoformat(shown).timestamp() * 1000 == moment // 10**6
    finally:
        monkeypatch.undo()
        time.tzset()


def test_item_shows_health(api: Api, capsys: Capture) -> None:
    assert run(["item", "show", "web-1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["health"]["rpo_seconds"] == 1.5
    assert run(["item", "show", "web-1"]) == 0
    printed = capsys.readouterr().out
    assert "1.5 s" in printed
    assert "streaming" in printed


def test_item_shows_what_a_failover_makes(api: Api, capsys: Capture) -> None:
    nic = {"name": "front", "network": "corp-asr", "subnet": "front", "address": "10.1.0.9"}
    disk = {"name": "system", "storage_account": "far", "size_bytes": 8 << 30}
    target = {"region": "west", "name": "web-1", "resource_group": "web-rg-asr", "vcpus": 3}
    target |= {"memory_mib": 768, "nics": [nic], "disks": [disk], "forwards": [8080]}
    mapping = {"disk": "system", "source_account": "near", "target_account": "far"}
    page = api.pages["vaults/default/replicated-items/web-1"]
    page = {**page, "target": target, "disks": [mapping]}
    api.pages["vaults/default/replicated-items"] = {"items": [page]}
    api.pages["vaults/default/replicated-items/web-1"] = page
    assert run(["item", "show", "web-1"]) == 0
    printed = capsys.readouterr().out
    for shown in ("3 vCPU, 768 MiB", "corp-asr/front 10.1.0.9", "8080", "near → far (8.0 GiB)"):
        assert shown in printed


def test_item_shows_no_line_without_its_name_and_nothing_of_a_source_that_was_left(
    api: Api, capsys: Capture
) -> None:
    said = {**ITEM["health"]["replication"], "problem": "the cache is full"}  # type: ignore[index]
    item = "vaults/default/replicated-items/web-1"
    health = {**ITEM["health"], "replication": said}  # type: ignore[dict-item]
    api.pages[item] = {**ITEM, "health": health}
    assert run(["item", "show", "web-1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^replication's problem +the cache is full *$", printed, re.MULTILINE)
    assert re.search(r"^shipped +0 B *$", printed, re.MULTILINE)
    api.pages[item] = {**ITEM, "health": health, "state": "failed_over"}
    assert run(["item", "show", "web-1"]) == 0
    printed = capsys.readouterr().out
    assert "the cache is full" not in printed
    assert "shipped" not in printed
    assert all(line[0] != " " for line in printed.splitlines())


def test_item_shows_what_the_newest_freeze_came_to(api: Api, capsys: Capture) -> None:
    report = {"number": 3, "epoch": 1, "time_ns": 1, "sequence": 7, "consistency": "application"}
    page = api.pages["vaults/default/replicated-items/web-1"]
    page = {**page, "freeze": report | {"frozen_ms": 120.4, "ours_ms": 0.31}}
    api.pages["vaults/default/replicated-items"] = {"items": [page]}
    api.pages["vaults/default/replicated-items/web-1"] = page
    assert run(["item", "show", "web-1"]) == 0
    assert "rp-0001-00000007" in (printed := capsys.readouterr().out)
    assert "guest frozen for 120 ms, 0.3 ms of it by us" in printed
    page["freeze"] = report | {"consistency": "crash", "problem": "no guest agent runs in the VM"}
    assert run(["item", "show", "web-1"]) == 0
    assert "no guest agent runs in the VM; rp-0001-00000007 is crash" in capsys.readouterr().out


def test_a_point_on_demand_says_what_kind_it_is(api: Api, capsys: Capture) -> None:
    result = {"recovery_point": "rp-0001-00000007", "number": 3, "epoch": 1, "time_ns": 1}
    result |= {"sequence": 7, "consistency": "crash", "problem": "the guest did not freeze"}
    done = job("succeeded", result=result, ended_ns=2)
    api.changes = lambda request: httpx.Response(202, json=done)
    api.pages["jobs/job-1"] = done
    assert run(["recovery-point", "create", "web-1"]) == 0
    said = capsys.readouterr().out
    assert "rp-0001-00000007 is crash-consistent only: the guest did not freeze" in said
    assert api.seen[-1][1] == "vaults/default/replicated-items/web-1/recovery-points"


def test_events_newest_first(api: Api, capsys: Capture) -> None:
    event = {"sequence": 1, "time_ns": 1, "target": "item/web-1", "kind": "item_protected"}
    api.pages["events"] = {"items": [event | {"message": "web-1 is protected"}]}
    assert run(["event", "list", "--target", "item/web-1"]) == 0
    assert "web-1 is protected" in capsys.readouterr().out


def test_a_policy_freezes_as_often_as_was_typed(api: Api, capsys: Capture) -> None:
    assert run(["policy", "create", "gold", "--app-consistent-every", "1h"]) == 0
    assert api.seen[-1][2]["app_consistent_seconds"] == 3600


def test_a_policy_trims_as_often_as_was_typed(api: Api, capsys: Capture) -> None:
    assert run(["policy", "create", "gold", "--trim-every", "7d"]) == 0
    assert api.seen[-1][2]["trim_seconds"] == 7 * 86400


def test_status_is_one_screen(api: Api, capsys: Capture) -> None:
    assert run(["status"]) == 0
    printed = capsys.readouterr().out
    assert "east-1" in printed
    assert "no node enrolled" in printed, "region west has none"
    assert "1.5 s" in printed


def test_job_is_watched_to_its_end(api: Api, capsys: Capture) -> None:
    steps = [{"name": "boot", "state": "succeeded", "started_ns": 1, "ended_ns": 10**9}]
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    api.pages["jobs/job-1"] = job("succeeded", steps=steps)
    assert run(["failover", "web-1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("web-1 runs in west\n")
    assert "✓ boot" in printed.err
    assert api.seen[0][2] == {"recovery_point": "latest"}


def test_planned_failover_reprotect_and_undo_are_what_was_typed(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    api.pages["jobs/job-1"] = job("succeeded")
    assert run(["failover", "web-1", "--planned", "--power-off-seconds", "5"]) == 0
    assert run(["undo-commit", "web-1"]) == 0
    assert run(["reprotect", "web-1"]) == 0
    printed = capsys.readouterr().out
    assert "web-1 in west is protected in east\n" in printed
    assert "`leeward failover web-1 --planned` moves it to east without loss" in printed
    item = "vaults/default/replicated-items/web-1"
    planned = {"recovery_point": "latest", "planned": True, "power_off_seconds": 5.0}
    assert api.seen == [
        ("POST", f"{item}/failover", planned),
        ("POST", f"{item}/undo-commit", {}),
        ("POST", f"{item}/reprotect", {}),
    ]


def test_protecting_several_says_where_each_is_protected_and_what_failed(
    api: Api, capsys: Capture
) -> None:
    def change(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        if asked["plan_only"]:
            return httpx.Response(200, json=PLAN)
        return httpx.Response(202, json=job("running") | {"id": f"job-{asked['vm']}"})

    api.changes = change
    api.pages["jobs/job-web-1"] = job("succeeded") | {"id": "job-web-1"}
    api.pages["jobs/job-db-1"] = job("failed", error="no room") | {"id": "job-db-1"}
    assert run(["protect", "east/web-1", "east/db-1", "--to", "west"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "east/web-1 is protected in west\n"
    assert "east/db-1: no room" in printed.err


def test_storage_usage_shows_no_amount_of_what_it_has_not_counted(
    api: Api, capsys: Capture
) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    space = {"stored_bytes": 1 << 20, "live_bytes": 0, "dead_bytes": 0, "reclaimable_bytes": 0}
    api.pages["jobs/job-1"] = job("succeeded", result=space)
    assert run(["storage", "usage", "web-1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"web-1 +1.0 MiB +0 B +- +- +- +0 B", row), row
    api.pages["jobs/job-1"] = job("succeeded", result=space | {"live_bytes": 2 << 20})
    assert run(["storage", "usage", "web-1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"web-1 +1.0 MiB +0 B +2.0 MiB +0 B +0 B +0 B", row), row


def test_planned_failover_says_when_the_guest_did_not_power_off(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    for powered_off in (True, False):
        api.pages["jobs/job-1"] = job("succeeded", result={"guest_powered_off": powered_off})
        assert run(["failover", "web-1", "--planned", "--power-off-seconds", "5"]) == 0
        printed = capsys.readouterr().out
        assert ("the guest had not powered off after 5 s" in printed) is not powered_off
        assert "web-1 runs in west" in printed


def test_json_of_a_job_is_nothing_but_json(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    api.pages["jobs/job-1"] = job("succeeded", steps=[{"name": "boot", "state": "succeeded"}])
    assert run(["failover", "web-1", "-o", "json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["state"] == "succeeded"
    assert printed.err == ""


def test_failed_job_is_exit_code_1_and_its_reason(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    api.pages["jobs/job-1"] = job("failed", error="the store is gone", error_code="unavailable")
    assert run(["commit", "web-1"]) == 1
    assert capsys.readouterr().err == "leeward: job-1 failed: the store is gone\n"


def test_no_wait_returns_with_the_job(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    assert run(["failover", "web-1", "--no-wait"]) == 0
    assert "job-1 goes on" in capsys.readouterr().out


def test_plan_is_shown_and_nothing_is_waited_for(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(200, json=PLAN)
    assert run(["protect", "east/web-1", "--to", "west", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "corp-asr" in printed
    assert "east/default-east-cache" in printed
    assert "nothing has been created" in printed
    assert api.seen[0][2]["plan_only"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["vm", "show", "east/nobody"], 3, "there is nothing at"),
        (["vm", "show", "web-1"], 2, "in which region is web-1?"),
        (["vm", "show", "East/web-1"], 2, "cannot be a name"),
        (["item", "show", "nobody"], 3, "there is no replicated item nobody"),
        (["recovery-point", "show", "web-1", "rp-9"], 3, "no recovery point rp-9"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["vm", "create", "web-1"], 2, "Missing option"),
        (["vm", "list", "-o", "xml"], 2, "'xml' is not one of"),
    ],
)
def test_every_error_is_one_line_and_its_code(
    api: Api, capsys: Capture, arguments: list[str], code: int, says: str
) -> None:
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.startswith("leeward: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "invalid_request", 2),
        (403, "not_allowed", 6),
        (404, "not_found", 3),
        (409, "conflict", 4),
        (409, "fenced", 4),
        (500, "data_integrity", 1),
        (502, "hypervisor_refused", 1),
        (503, "unavailable", 5),
    ],
)
def test_exit_codes(api: Api, capsys: Capture, status: int, code: str, exit_code: int) -> None:
    problem = {"code": code, "detail": "it says why"}
    api.changes = lambda request: httpx.Response(status, json=problem)
    assert run(["commit", "web-1"]) == exit_code
    assert "it says why" in capsys.readouterr().err


def test_surprise_is_one_line_too(
    api: Api, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(directory: Path | None) -> Client:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(session, "connect", break_down)
    assert run(["vm", "list"]) == 1
    printed = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: a bug" in printed
    assert "Traceback" not in printed
    monkeypatch.setenv("LEEWARD_DEBUG", "1")
    assert run(["vm", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_every_command_has_help(capsys: Capture) -> None:
    for words in (["--help"], ["vm", "--help"], ["vm", "create", "--help"], ["up", "--help"]):
        assert run(words) == 0
        assert "Usage" in capsys.readouterr().out


def test_failover_says_to_which_moment_and_what_comes_next(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("succeeded"))
    item = "vaults/default/replicated-items"
    moved = ITEM | {"state": "failed_over", "recovery_point": "rp-1-2"}
    api.pages[item] = {"items": [moved]}
    api.pages[f"{item}/web-1"] = moved
    assert run(["failover", "web-1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("web-1 runs in west, as it was at 1970-")
    assert first.endswith("(rp-1-2)")
    assert second.startswith("next: `leeward commit web-1`")


def test_a_silent_host_is_told_from_one_whose_vms_do_not_run(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = VM | {"status": {"vm_id": "web-1", "power": "unknown"}}
    api.pages["regions/east/virtual-machines"] = {"items": [silent]}
    health = ITEM["health"] | {"replication_age_seconds": 34.0}  # type: ignore[operator]
    problem = "agent east-1 in east does not answer: start it again"
    late = ITEM | {"state": "degraded", "problem": problem, "health": health}
    api.pages["vaults/default/replicated-items"] = {"items": [late]}
    assert run(["status"]) == 0
    out = capsys.readouterr().out
    assert "0 of 1 VMs running, 1 unknown: their host is silent" in out
    assert "streaming, 34 s ago" in out
    assert "west: no VMs" in out


def test_a_problem_is_a_sentence_of_its_own_however_narrow_the_terminal(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    problem = "worker west-worker in west does not answer: cuts wait in the cache meanwhile"
    late = ITEM | {"state": "degraded", "problem": problem}
    api.pages["vaults/default/replicated-items"] = {"items": [late]}
    api.pages["jobs"] = {
        "items": [job("failed", ended_ns=2, error="agent east-1 said no, and why")]
    }
    assert run(["item", "list"]) == 0
    assert f"problem of web-1: {problem}\n" in capsys.readouterr().out
    assert run(["job", "list"]) == 0
    assert "job-1 failed: agent east-1 said no, and why\n" in capsys.readouterr().out
