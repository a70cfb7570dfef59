"""An operator's words find the point they mean, or a sentence that says why not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.cli.output import format_time
from leeward.core.errors import InvalidRequest, NotFound
from leeward.failover.select import select_point
from leeward.model.recovery import Consistency, RecoveryPoint

SECOND = 1_000_000_000


def point(sequence: int, seconds: int, consistency: Consistency) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-1-{sequence}",
        epoch=1,
        sequence=sequence,
        time_ns=seconds * SECOND,
        consistency=consistency,
    )


POINTS = (
    point(3, 30, Consistency.CRASH),
    point(1, 10, Consistency.CRASH),
    point(2, 20, Consistency.APPLICATION),
)


@pytest.mark.parametrize(
    ("wanted", "sequence"),
    [
        ("latest", 3),
        ("latest-processed", 3),
        ("latest-app-consistent", 2),
        ("rp-1-1", 1),
        ("1970-01-01T00:00:29Z", 2),
        ("1970-01-01T00:00:30", 3),
        ("1970-01-01T01:00:10+01:00", 1),
        ("1970-01-01 01:00:20.000+01:00", 2),  # as it is shown
    ],
)
def test_finds(wanted: str, sequence: int) -> None:
    assert select_point(POINTS, wanted, item="web-1").sequence == sequence


@pytest.mark.parametrize("wanted", ["rp-9-9", "1970-01-01T00:00:09Z"])
def test_not_found(wanted: str) -> None:
    with pytest.raises(NotFound, match="no recovery point"):
        select_point(POINTS, wanted, item="web-1")


def test_a_time_as_it_is_shown_finds_the_point_it_was_shown_of() -> None:
    late = replace(point(4, 40, Consistency.CRASH), time_ns=40 * SECOND + 361_900_000)
    shown = format_time(late.time_ns)
    assert select_point((*POINTS, late), shown, item="web-1").sequence == 4


def test_without_an_application_consistent_point_it_says_what_makes_one() -> None:
    with pytest.raises(NotFound, match="no application-consistent recovery point") as caught:
        select_point((POINTS[0],), "latest-app-consistent", item="web-1")
    assert "`leeward recovery-point create web-1` makes one" in str(caught.value)


def test_none_made_yet() -> None:
    with pytest.raises(NotFound, match="has no recovery point"):
        select_point((), "latest", item="web-1")


def test_nonsense() -> None:
    with pytest.raises(InvalidRequest, match="neither an id nor a time"):
        select_point(POINTS, "yesterday", item="web-1")
