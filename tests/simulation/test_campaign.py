"""The campaign, shortly: nothing violated in a few stories, and planted defects are caught."""

from __future__ import annotations

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


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 10
