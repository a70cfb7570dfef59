"""An operator's words find the point they mean, or a sentence that says why not."""

from __future__ import annotations

import pytest

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
    ],
)
def test_finds(wanted: str, sequence: int) -> None:
    assert select_point(POINTS, wanted, item="web-1").sequence == sequence


@pytest.mark.parametrize("wanted", ["rp-9-9", "1970-01-01T00:00:09Z"])
def test_not_found(wanted: str) -> None:
    with pytest.raises(NotFound, match="no recovery point"):
        select_point(POINTS, wanted, item="web-1")


def test_none_made_yet() -> None:
    with pytest.raises(NotFound, match="has no recovery point"):
        select_point((), "latest", item="web-1")


def test_nonsense() -> None:
    with pytest.raises(InvalidRequest, match="neither an id nor a time"):
        select_point(POINTS, "yesterday", item="web-1")
