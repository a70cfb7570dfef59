"""The whole program against a service that is a dictionary: output, errors, exit codes."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from tests.unit.cli.fake_api import ITEM, PLAN, VM, Api, Capture, api, job

from leeward.cli import session
from leeward.cli.main import run
from leeward.cli.output import format_time
from leeward.client.client import Client

__all__ = ["api"]


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


def test_networks_of_tests_are_what_was_typed(api: Api, capsys: Capture) -> None:
    api.changes = lambda request: httpx.Response(202, json=job("running"))
    api.pages["jobs/job-1"] = job("succeeded")
    places = ["--network", "isolated", "--network", "front=lab/blue"]
    assert run(["test-failover", "web-1", *places]) == 0
    asked = api.seen[-1][2]
    assert (asked["network"], asked["networks"]) == ("isolated", {"front": "lab/blue"})
    assert run(["test-failover", "web-1", "--network", "lab", "--network", "yard"]) == 2
    assert "lab and yard are both for all interfaces" in capsys.readouterr().err
    setting = ["--test-network", "front=lab", "--test-address", "front=10.0.0.9"]
    assert run(["item", "update", "web-1", *setting]) == 0
    asked = api.seen[-1][2]
    assert asked["test_networks"] == {"front": "lab"}
    assert asked["test_addresses"] == {"front": "10.0.0.9"}


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
