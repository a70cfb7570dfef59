"""What a local store has called created survives a power cut anywhere; each fsync is needed."""

from __future__ import annotations

import pytest
from tests.simulation.power_cut import cut_power_everywhere
from tests.simulation.power_mutants import POWER_MUTANTS


def test_what_was_created_survives_a_power_cut_anywhere() -> None:
    assert cut_power_everywhere() == ""


@pytest.mark.parametrize("name", POWER_MUTANTS)
def test_an_fsync_that_is_missing_is_noticed(name: str) -> None:
    with POWER_MUTANTS[name]():
        assert cut_power_everywhere()
