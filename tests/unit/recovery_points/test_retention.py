"""Tiers drop what they should, keep what they must, and do not change their mind."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from leeward.model.recovery import (
    DEFAULT_TIERS,
    Consistency,
    RecoveryPoint,
    RetentionTier,
    SharedMark,
)
from leeward.recovery_points.retention import plan_retention

SECOND = 1_000_000_000


def point(sequence: int, seconds: float, epoch: int = 1) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-{epoch:08d}-{sequence:012d}",
        epoch=epoch,
        sequence=sequence,
        time_ns=int(seconds * SECOND),
        consistency=Consistency.CRASH,
    )


def keep(points: list[RecoveryPoint], tiers: tuple[RetentionTier, ...]) -> list[RecoveryPoint]:
    dropped = set(plan_retention(points, tiers))
    return [candidate for candidate in points if candidate.id not in dropped]


def test_default_tiers_over_three_days() -> None:
    points: list[RecoveryPoint] = []
    for sequence in range(1, 3 * 86400 // 10 + 1):
        points.append(point(sequence, sequence * 10))
        if sequence % 6 == 0:
            points = keep(points, DEFAULT_TIERS)
    newest = points[-1].time_ns
    ages = [(newest - each.time_ns) / SECOND for each in points]
    assert sum(age <= 600 for age in ages) == 61
    minutes = [age for age in ages if 600 < age <= 7200]
    assert len(minutes) == 110
    hours = [age for age in ages if age > 7200]
    assert len(hours) == 22
    assert max(ages) <= 86400
    assert all(older - newer <= 3600 for older, newer in pairwise(hours))


def test_of_every_period_the_first_application_consistent_point_stays_beside_the_first() -> None:
    frozen = {30: "rp-a", 45: "rp-b", 90: "rp-c"}
    points = [
        replace(point(n, n), id=frozen[n], consistency=Consistency.APPLICATION)
        if n in frozen
        else point(n, n)
        for n in range(1, 2001)
    ]
    kept = keep(points, (RetentionTier(every_seconds=60, for_seconds=86400),))
    assert [each.time_ns // SECOND for each in kept[:5]] == [1, 30, 60, 90, 120]
    assert plan_retention(kept, (RetentionTier(every_seconds=60, for_seconds=86400),)) == ()


def test_planning_again_drops_nothing_more() -> None:
    rnd = random.Random(7)
    times = sorted(rnd.uniform(0, 100_000) for _ in range(2000))
    points = [point(index + 1, seconds) for index, seconds in enumerate(times)]
    kept = keep(points, DEFAULT_TIERS)
    assert 0 < len(kept) < len(points)
    assert plan_retention(kept, DEFAULT_TIERS) == ()


def test_a_dead_source_keeps_its_last_copies() -> None:
    points = [point(1, 100), point(2, 101)]
    assert plan_retention(points, DEFAULT_TIERS) == ()


def test_newest_stays_without_tiers_and_everything_may_be_absent() -> None:
    points = [point(1, 1), point(2, 2), point(1, 3, epoch=2)]
    assert plan_retention(points, ()) == (points[0].id, points[1].id)
    assert plan_retention([], DEFAULT_TIERS) == ()


def test_a_clock_that_steps_back_drops_nothing_young() -> None:
    points = [point(1, 1000), point(2, 5), point(3, 6)]
    assert plan_retention(points, DEFAULT_TIERS) == ()


@pytest.mark.parametrize("step", [-30, -1800, -3600])
def test_a_clock_that_was_set_back_makes_no_hole_where_it_comes_by_again(step: int) -> None:
    """The minutes that it counts anew are others, each with a point of its own."""
    made: dict[str, int] = {}
    points: list[RecoveryPoint] = []
    for now in range(0, 3 * 3600, 20):
        points.append(point(now + 1, 1_700_000_000 + now + (step if now > 3600 else 0)))
        made[points[-1].id] = now
        if now % 60 == 0:
            points = keep(points, DEFAULT_TIERS)
    last = [made[each.id] for each in points if made[each.id] >= 3700]
    assert last[0] < 3900
    assert max(newer - older for older, newer in pairwise(last)) <= 120


def test_a_clock_that_steps_forward_drops_nothing_young() -> None:
    """A host that takes up a wrong time once must not cost all that was recovered to before."""
    year = 365 * 86400
    points = [point(n, n + (year if n > 50 else 0)) for n in range(1, 101)]
    kept = keep(points, DEFAULT_TIERS)
    assert kept[0] == points[0]
    assert len(kept) > 50


def test_a_long_silence_counts_no_longer_than_the_tiers_can_tell() -> None:
    tiers = (RetentionTier(every_seconds=86400, for_seconds=30 * 86400),)
    points = [point(n, n * 86400) for n in range(1, 41)]
    kept = keep(points, tiers)
    assert kept == points[9:], "days count in full where points are kept daily"


def test_points_beyond_every_tier_go() -> None:
    tiers = (RetentionTier(every_seconds=0, for_seconds=10),)
    points = [point(1, 0), point(2, 90), point(3, 100)]
    assert plan_retention(points, tiers) == (points[0].id,)


GROUP = "cg-1"
TIERS = (
    RetentionTier(every_seconds=0, for_seconds=60),
    RetentionTier(every_seconds=60, for_seconds=1200),
)


def shared_history(rnd: random.Random, member: str, attempts: list[SharedMark]) -> dict[str, str]:
    """Return, by point, the shared point it belongs to, after a member has taken part in these
    attempts, made points of its own between them and dropped what its tiers do not want."""
    points: list[RecoveryPoint] = []
    for mark in attempts:
        for shared in (*[None] * rnd.randrange(4), mark):
            sequence = points[-1].sequence + 1 if points else 1
            own = point(sequence, mark.time_ns / SECOND + rnd.uniform(-0.2, 0.2))
            points.append(replace(own, id=f"{member}-{sequence}", shared=shared))
        if rnd.random() < 0.3:
            dropped = set(plan_retention(points, TIERS, group=GROUP))
            points = [each for each in points if each.id not in dropped]
    dropped = set(plan_retention(points, TIERS, group=GROUP))
    return {e.id: e.shared.id for e in points if e.id not in dropped and e.shared is not None}


def test_all_members_keep_the_same_shared_points() -> None:
    for seed in range(20):
        rnd = random.Random(seed)
        marks: list[SharedMark] = []
        void: set[str] = set()
        time_ns = previous_ns = 1_700_000_000 * SECOND
        for number in range(120):
            time_ns += int(rnd.choice([5, 20, 45]) * SECOND)
            mark = SharedMark(
                id=f"sp-{number:04d}",
                group=GROUP,
                members=("a", "b"),
                time_ns=time_ns,
                previous_ns=previous_ns,
            )
            marks.append(mark)
            if rnd.random() < 0.2 and number < 119:
                void.add(mark.id)  # the other did not hold: a point of the first alone
            else:
                previous_ns = time_ns
        complete = [mark for mark in marks if mark.id not in void]
        kept = [
            sorted(shared_history(random.Random(f"{seed}{member}"), member, taken).values())
            for member, taken in (("a", marks), ("b", complete))
        ]
        assert [each for each in kept[0] if each not in void] == kept[1]
        assert complete[-1].id in kept[1]
        assert 15 < len(kept[1]) < 45


def test_points_once_shared_in_another_group_are_like_any_other() -> None:
    points = []
    for number in range(1, 100):
        mark = SharedMark(id=f"sp-{number}", group="gone", members=("a",), time_ns=number * SECOND)
        points.append(replace(point(number, number * 10), shared=mark))
    plain = [replace(each, shared=None) for each in points]
    assert plan_retention(points, TIERS, group=GROUP) == plan_retention(plain, TIERS)
    assert plan_retention(points, TIERS) == plan_retention(plain, TIERS)
