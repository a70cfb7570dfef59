"""Holding recovery points keeps just these, and changes nothing for any other."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.properties.test_retention import points_of

from leeward.model.recovery import RecoveryPoint, RetentionTier, SharedMark
from leeward.processor.held_points import plan_around_held
from leeward.recovery_points.retention import plan_retention

HOUR = 3600
tiers = st.lists(
    st.tuples(st.sampled_from([0, 60, 600]), st.sampled_from([120, HOUR, HOUR + 90, 5 * HOUR])),
    max_size=4,
    unique_by=lambda tier: tier[1],
).map(
    lambda drawn: [RetentionTier(every_seconds=every, for_seconds=reach) for every, reach in drawn]
)
"""Longer than the longest gap that counts in full, 1 h: a point within one changes others' ages."""
gaps = st.lists(st.sampled_from([0, 1, 7, 40, 90, HOUR, 3 * HOUR]), max_size=40)
spans = st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=4)
"""Held: (which point, until how many more have come)."""


def shared(points: list[RecoveryPoint]) -> list[RecoveryPoint]:
    """Return the points as those of a group."""
    marked, previous_ns = [], 0
    for point in points:
        mark = SharedMark(
            id=f"m-{point.sequence}",
            group="g",
            members=("a", "b"),
            time_ns=point.time_ns,
            previous_ns=previous_ns,
        )
        marked.append(replace(point, shared=mark))
        previous_ns = point.time_ns
    return marked


@settings(deadline=None, max_examples=200)
@example(
    [0, 90, 3 * HOUR, 7], [RetentionTier(every_seconds=600, for_seconds=3690)], [(1, 9)], False
)
@given(gaps, tiers, spans, st.booleans())
def test_a_held_point_stays_and_no_other_is_lost_for_it(
    gap_seconds: list[int],
    wanted: list[RetentionTier],
    held_spans: list[tuple[int, int]],
    is_group: bool,
) -> None:
    points = points_of(gap_seconds)
    group = ""
    if is_group:
        points, group = shared(points), "g"

    def plan(listed: object) -> tuple[str, ...]:
        return plan_retention(listed, wanted, group=group)  # type: ignore[arg-type]

    alone: list[RecoveryPoint] = []
    left: list[RecoveryPoint] = []
    for now, point in enumerate(points):
        alone.append(point)
        left.append(point)
        gone = set(plan(alone))
        alone = [each for each in alone if each.id not in gone]
        held = {
            points[at].id for at, more in held_spans if at <= now <= at + more and at < len(points)
        }
        before = {each.id for each in left}
        dropped = set(plan_around_held(left, held, plan))
        left = [each for each in left if each.id not in dropped]
        assert before & held <= {each.id for each in left}, "what is held stays"
        ids, expected = {each.id for each in left}, {each.id for each in alone}
        assert ids >= expected, "and nothing is lost for it"
        if max(gap_seconds) <= HOUR:
            assert ids - held == expected - held, "nor is anything else kept"
    if max(gap_seconds, default=0) <= HOUR:
        dropped = set(plan_around_held(left, set(), plan))
        assert [each for each in left if each.id not in dropped] == alone, "let go, it is dropped"


@settings(deadline=None, max_examples=50)
@given(gaps, tiers)
def test_with_nothing_held_the_plan_is_the_plan(
    gap_seconds: list[int], wanted: list[RetentionTier]
) -> None:
    points = points_of(gap_seconds)

    def plan(listed: object) -> tuple[str, ...]:
        return plan_retention(listed, wanted)  # type: ignore[arg-type]

    assert plan_around_held(points, set(), plan) == plan(points)
