"""Scenarios report what they find: every violation counted, errors among them, one JSON line."""

from __future__ import annotations

import json

import pytest
from scenario.common import Findings, Result, print_result


def test_an_error_in_a_part_is_a_violation_and_the_next_part_still_runs() -> None:
    findings = Findings()
    with findings.part("one"):
        raise ValueError("broken")
    with findings.part("two"):
        findings.check("holds", True)
        findings.check("does not", False, "7 of 8")
    assert findings.violations == ["one: goes through (ValueError: broken)", "does not (7 of 8)"]


def test_the_last_line_is_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(violations=("v",), leaks=(), figures={"cuts": 3.0}, wall_s=1.25)
    print_result("round-trip", result)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {
        "scenario": "round-trip",
        "metrics": {"violations": 1, "leaks": 0, "wall_s": 1.2, "cuts": 3.0},
    }
    assert not result.holds
