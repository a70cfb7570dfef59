"""What the scenario postgres calls lost, invented or wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenario.postgres_load import CLIENTS, Load, Survived, judge

POINT = 1000
CLEAN = "exit code 0"


def load(acknowledged: int, sent: int) -> Load:
    """Return a load of whose clients each has so many commits acknowledged and sent before POINT,
    and one more of each after it."""
    made = Load("nowhere:1", 2)
    for journal in made.journals.values():
        journal.acknowledged_ns += [*range(1, acknowledged + 1), POINT + 1]
        journal.sent_ns += [*range(1, sent + 1), POINT + 1]
    return made


def survived(count: int, *, lowest: int = 1) -> Survived:
    """Return a database with so many lines of each client."""
    lines = {(2, client): (count, lowest, lowest + count - 1) for client in range(1, CLIENTS + 1)}
    return Survived(lines=lines, sums=(3, 3, 3), amcheck=CLEAN)


@pytest.mark.parametrize("count", [5, 6], ids=["without", "with"])
def test_what_was_sent_and_not_acknowledged_may_be_there_or_not(count: int) -> None:
    verdict = judge(load(5, 6), survived(count), None, POINT)
    assert (verdict.lost, verdict.invented, verdict.problems) == (0, 0, ())


def test_an_acknowledged_commit_that_is_missing_is_lost() -> None:
    verdict = judge(load(5, 6), survived(3), None, POINT)
    assert (verdict.lost, verdict.invented) == (2 * CLIENTS, 0)
    assert "3 lines, not 5 to 6" in verdict.problems[0]


def test_what_was_sent_after_the_point_is_invented() -> None:
    verdict = judge(load(5, 6), survived(7), None, POINT)
    assert (verdict.lost, verdict.invented) == (0, CLIENTS)
    assert len(verdict.problems) == CLIENTS


def test_nothing_there_is_lost_too_and_a_gap_is_a_problem() -> None:
    empty = replace(survived(0), lines={})
    assert judge(load(5, 6), empty, None, POINT).lost == 5 * CLIENTS
    assert "numbered 2 to 6" in judge(load(5, 6), survived(5, lowest=2), None, POINT).problems[0]


def test_what_was_there_before_must_be_there_as_it_was() -> None:
    before = Survived(lines={(1, 1): (9, 1, 9)}, sums=(0, 0, 0), amcheck=CLEAN)
    verdict = judge(load(5, 6), survived(5), before, POINT)
    assert verdict.problems == ("run and client (1, 1): None, not (9, 1, 9) as before",)


@pytest.mark.parametrize(
    "wrong", [{"sums": (3, 3, 4)}, {"amcheck": "heap table ...: corrupt; exit code 2"}]
)
def test_unequal_sums_and_damage_are_problems(wrong: dict[str, object]) -> None:
    assert judge(load(5, 6), replace(survived(5), **wrong), None, POINT).problems  # type: ignore[arg-type]
