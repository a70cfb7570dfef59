"""`leeward drill` against a service that is a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.cli.fake_api import ITEM, Api, api

from leeward.cli.main import run

__all__ = ["api"]

RESULT: dict[str, Any] = {
    "item": "web-1",
    "host": "west-1",
    "verdict": {
        "job_id": "job-7",
        "outcome": "failed",
        "region": "west",
        "recovery_point": "rp-1-3",
        "point_time_ns": 3 * 10**9,
        "began_ns": 4 * 10**9,
        "ended_ns": 9 * 10**9,
        "problem": "tcp:22: not within 60 s: refused",
    },
    "findings": [
        {"name": "boot", "passed": True, "took_seconds": 2.5, "detail": "10.0.1.4 answers"},
        {"name": "tcp:22", "passed": False, "detail": "not within 60 s: refused"},
    ],
    "disks": [{"disk": "system", "size_bytes": 1 << 27, "bytes_read": 7, "sha256": "abcd"}],
    "console": "booting\nlogin: ",
    "screen_sha256": "ef",
}
PROBE = {"kind": "tcp", "port": 22}
DRILL = {"name": "web-1", "vault": "default", "every_seconds": 86400, "probes": [PROBE]}
READINESS = {"state": "failed", "age_seconds": 60.0, "recovery_point": "rp-1-3", "problem": "why"}


@pytest.fixture
def drilled(api: Api) -> Api:
    """Give a service whose web-1 has been drilled once."""
    items = "vaults/default/replicated-items"
    api.pages[items] = {"items": [{**ITEM, "readiness": READINESS}]}
    api.pages[f"{items}/web-1"] = {**ITEM, "readiness": READINESS}
    api.pages[f"{items}/web-1/drills"] = {"items": [RESULT]}
    api.pages["vaults/default/drills"] = {"items": [DRILL]}
    return api


def test_evidence_is_shown(drilled: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drill", "show", "web-1"]) == 0
    shown = capsys.readouterr().out
    for words in ("FAILED: tcp:22", "rp-1-3", "✓ boot: 10.0.1.4 answers after 2.5 s", "✗ tcp:22"):
        assert words in shown
    assert "SHA-256 abcd" in shown
    assert "login:" in shown
    assert "leeward drill screenshot web-1" in shown


def test_readiness_is_told_everywhere(drilled: Api, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["drill", "list"], ["item", "list"], ["item", "show", "web-1"], ["status"]):
        assert run(arguments) == 0
        assert "FAILED 1" in capsys.readouterr().out, arguments
    assert run(["drill", "list"]) == 0
    shown = capsys.readouterr().out
    assert "due for" in shown
    assert "web-1: why" in shown


def test_what_is_asked_for_reaches_the_service(drilled: Api, tmp_path: Path) -> None:
    drilled.changes = lambda request: httpx.Response(200, json=DRILL)
    arguments = ["--every", "1d", "--probe", "http:8080/check,text=ok", "--boot", "2m"]
    assert run(["drill", "create", "web-1", *arguments]) == 0
    (method, path, body) = drilled.seen[-1]
    assert (method, path) == ("PUT", "vaults/default/drills/web-1")
    assert body["every_seconds"] == 86400
    assert body["boot_seconds"] == 120
    assert body["probes"][0]["text"] == "ok"
    assert "since_ns" not in body
    taken = tmp_path / "screen.png"
    taken.touch()
    assert run(["drill", "screenshot", "web-1", str(taken)]) != 0
