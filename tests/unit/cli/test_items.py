"""`leeward item show`: what is said of an item, and what is not."""

from __future__ import annotations

import json
import re

from tests.unit.cli.fake_api import ITEM, Api, Capture, api

from leeward.cli.main import run

__all__ = ["api"]


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
