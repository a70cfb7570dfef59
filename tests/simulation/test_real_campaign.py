"""The campaign on real processes, shortly, and what it is to catch."""

from __future__ import annotations

import pytest
from tests.simulation.real_campaign import (
    HUNTS,
    hunt,
    kill_agent,
    receive,
    restart_daemon,
    run_real,
)
from tests.simulation.real_mutants import REAL_MUTANTS


def test_invariant_2_a_cut_holds_whole_requests_only() -> None:
    assert receive(range(10)) == ""


def test_a_cut_across_a_half_received_request_is_caught() -> None:
    assert hunt("cut-across-a-half-received-request")


@pytest.mark.integration
def test_invariant_2_every_point_is_a_prefix_though_agent_and_daemon_die() -> None:
    tally = run_real(25, formats=("raw",), faults=(kill_agent, restart_daemon), seconds=60)
    assert tally.violations == []
    assert sum(tally.faults.values()) > 0


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("name", list(HUNTS))
def test_a_defect_planted_in_the_agent_is_caught(name: str) -> None:
    assert hunt(name)


def test_every_defect_has_a_hunt() -> None:
    assert set(HUNTS) < set(REAL_MUTANTS)
