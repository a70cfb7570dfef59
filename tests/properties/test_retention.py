"""Which points the tiers keep, against a plain model that counts on its fingers."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.model.recovery import Consistency, RecoveryPoint, RetentionTier, point_id
from leeward.recovery_points.retention import plan_retention

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS

tiers = st.lists(
    st.tuples(st.sampled_from([0, 1, 10, 60]), st.sampled_from([5, 30, 120, 600])),
    max_size=4,
    unique_by=lambda tier: tier[1],
).map(
    lambda drawn: [RetentionTier(every_seconds=every, for_seconds=reach) for every, reach in drawn]
)
gaps = st.lists(st.integers(0, 90), max_size=60)


def points_of(gap_seconds: list[int]) -> list[RecoveryPoint]:
    points, now = [], START_NS
    for sequence, gap in enumerate(gap_seconds, 1):
        now += gap * SECOND_NS
        points.append(
            RecoveryPoint(
                id=point_id(1, sequence),
                epoch=1,
                sequence=sequence,
                time_ns=now,
                consistency=Consistency.CRASH,
            )
        )
    return points


def kept_by_model(points: list[RecoveryPoint], wanted: list[RetentionTier]) -> set[str]:
    kept = {points[-1].id} if points else set()
    for at, point in enumerate(points):
        age = (points[-1].time_ns - point.time_ns) // SECOND_NS
        reaching = [tier for tier in wanted if age <= tier.for_seconds]
        if not reaching:
            continue
        tier = min(reaching, key=lambda tier: tier.for_seconds)
        every_ns = tier.every_seconds * SECOND_NS
        earlier = {other.time_ns // every_ns for other in points[:at]} if every_ns else set()
        if not every_ns or point.time_ns // every_ns not in earlier:
            kept.add(point.id)
    return kept


@settings(deadline=None, max_examples=200)
@given(gaps, tiers)
def test_kept_is_what_the_tiers_say(gap_seconds: list[int], wanted: list[RetentionTier]) -> None:
    points = points_of(gap_seconds)
    dropped = plan_retention(points, wanted)
    assert {point.id for point in points} - set(dropped) == kept_by_model(points, wanted)
    left = [point for point in points if point.id not in dropped]
    assert plan_retention(left, wanted) == (), "what is kept stays kept while nothing comes"


@settings(deadline=None, max_examples=100)
@given(gaps, tiers)
def test_a_point_that_was_dropped_early_would_not_be_kept_later(
    gap_seconds: list[int], wanted: list[RetentionTier]
) -> None:
    """With periods that divide each other and are no longer than their tier, thinning as points
    come leaves what thinning at the end does."""
    points = points_of(gap_seconds)
    if any(tier.every_seconds > tier.for_seconds for tier in wanted):
        return
    ordered = sorted(wanted, key=lambda tier: tier.for_seconds)
    if any(a.every_seconds > b.every_seconds for a, b in itertools.pairwise(ordered)):
        return
    left: list[RecoveryPoint] = []
    for point in points:
        left.append(point)
        dropped = plan_retention(left, wanted)
        left = [each for each in left if each.id not in dropped]
        assert left[-1] is point
    assert {point.id for point in left} == kept_by_model(points, wanted)
