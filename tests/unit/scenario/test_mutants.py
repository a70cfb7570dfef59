"""Defects that a scenario plants reach the processes they are meant for, and those only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenario.__main__ import main
from scenario.common import Findings
from scenario.consistency_group import _check_order
from scenario.mutants import MUTANTS, prepare, times_acted
from scenario.rig import Part

AGENT = ("-m", "leeward.cli.main", "agent", "--help", "--name")
TAP = ("-m", "leeward.mobility.tap", "no-such-configuration.json")
WORKER = ("-m", "leeward.cli.main", "worker", "--help")
ACT = """
import sys
sys.orig_argv[1:] = ["-m", "leeward.cli.main", "agent", "--name", "east-2"]
del sys.modules["sitecustomize"]  # it has seen what this process was really started as
import sitecustomize
from leeward.agent.meetings import _Gate
assert _Gate(None, None).held()
"""


def start(directory: Path, name: str, *arguments: str) -> int:
    """Return the pid of a process that was started, and has ended, with the defect prepared."""
    environment = {**os.environ, **prepare(name, directory, late_host="east-2")}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_planted_where_it_is_meant_to_be(name: str, tmp_path: Path) -> None:
    part = MUTANTS[name].part
    arguments = (*AGENT, "east-1") if part is Part.AGENT else TAP
    directory = tmp_path / "marks"
    pid = start(directory, name, *arguments)
    assert times_acted(directory, pid, part=part) == 0  # it is there, and nothing has met it yet
    assert times_acted(directory, pid) == -1


def test_one_host_is_late(tmp_path: Path) -> None:
    directory = tmp_path / "marks"
    pid = start(directory, "holds-acknowledge", *AGENT, "east-2")
    assert times_acted(directory, pid) == 0
    assert times_acted(directory, pid, part=Part.TAP) == -1


def test_other_processes_have_nothing_planted(tmp_path: Path) -> None:
    directory = tmp_path / "marks"
    start(directory, "no-barrier", *WORKER)
    assert not [*directory.glob("*-*")]


def test_every_time_that_it_acts_is_noted(tmp_path: Path) -> None:
    directory = tmp_path / "marks"
    pid = start(directory, "no-barrier", "-c", ACT)
    assert times_acted(directory, pid, part=Part.AGENT) == 1


@pytest.mark.parametrize(
    ("leader", "follower", "violations"), [(7, 7, 0), (8, 7, 0), (7, 8, 1), (9, 7, 1)]
)
def test_a_point_that_is_no_moment_of_both_is_a_violation(
    leader: int, follower: int, violations: int
) -> None:
    findings = Findings()
    _check_order(findings, "sp-1", leader, follower)
    assert len(findings.violations) == violations


@pytest.mark.parametrize("name", ["consistency-group", "plan"])
def test_a_defect_that_a_scenario_does_not_know_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scenario", name, "no-such-defect"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("MUTANT: 'no-such-defect' is none")
