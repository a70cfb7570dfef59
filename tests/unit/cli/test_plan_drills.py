"""`leeward recovery-plan drill` against a service that is a dictionary."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cli.fake_api import Api, api
from tests.unit.cli.test_drills import READINESS, RESULT

from leeward.cli.main import run

__all__ = ["api"]

FINDINGS: list[dict[str, Any]] = [
    {"name": "db pre sure", "passed": True, "detail": "nobody is asked in a drill"},
    {"name": "web-1 tcp:22", "passed": False, "detail": "not within 60 s: refused"},
]
OF_PLAN = {
    "plan": "site",
    "host": "west-1",
    "verdict": RESULT["verdict"],
    "findings": FINDINGS,
}


@pytest.fixture
def drilled(api: Api) -> Api:
    """Give a service whose plan has been drilled once."""
    drill = {"name": "site", "vault": "default", "every_seconds": 86400}
    standing = {"plan": "site", "drill": drill, "readiness": READINESS}
    never: dict[str, Any] = {"plan": "other", "drill": None, "readiness": {}}
    api.pages["vaults/default/plan-drills"] = {"items": [standing, never]}
    api.pages["vaults/default/recovery-plans/site/drills"] = {"items": [OF_PLAN]}
    api.pages["vaults/default/recovery-plans/other/drills"] = {"items": []}
    return api


def test_what_each_plan_has_proven_is_listed(
    drilled: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recovery-plan", "drill", "list"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "every 24 h",
        "FAILED 1 min ago",
        "site: why",
        "when asked",
        "unproven",
    ):
        assert words in shown


def test_status_tells_it_too(drilled: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 0
    shown = capsys.readouterr().out
    assert "site: why" in shown
    assert "when asked" in shown


def test_evidence_is_shown(drilled: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recovery-plan", "drill", "show", "site"]) == 0
    shown = capsys.readouterr().out
    for words in ("FAILED: tcp:22", "job-7, on host west-1", "✓ db pre sure", "✗ web-1 tcp:22"):
        assert words in shown
    assert run(["recovery-plan", "drill", "show", "other"]) == 0
    assert "leeward recovery-plan drill run other" in capsys.readouterr().out
