"""The campaign, shortly: nothing violated in a few stories, and planted defects are caught."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.simulation.campaign import CUTS, run_stories
from tests.simulation.mutants import MUTANTS

STORIES = range(6)


def test_nothing_is_violated_although_half_of_the_cuts_meet_a_fault() -> None:
    tally = run_stories(STORIES)
    assert tally.violations == []
    assert tally.cuts == len(STORIES) * CUTS
    assert tally.faulted >= 0.3 * tally.cuts


@pytest.mark.parametrize("name", ["claim-not-renewed", "applied-before-the-catalog"])
def test_a_planted_defect_is_caught(name: str) -> None:
    with MUTANTS[name]():
        assert run_stories(STORIES, until_violation=True).violations


def test_a_campaign_that_is_told_to_end_says_what_it_had(tmp_path: Path) -> None:
    campaign = subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.command", "100000"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any((one / "1").exists() for one in tmp_path.glob("lwcampaign*")):
            assert time.monotonic() < deadline, "it never begins"
            time.sleep(0.1)
        campaign.terminate()
        said, _ = campaign.communicate(timeout=120)
    finally:
        campaign.kill()
        campaign.wait()
    metrics = json.loads(said.splitlines()[-1])["metrics"]
    assert campaign.returncode == 128 + signal.SIGTERM
    assert (metrics["ended_early"], metrics["violations"]) == (1, 0)
    assert metrics["cuts"] == metrics["seeds"] * CUTS > 0


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 10
