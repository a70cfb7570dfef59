"""Compaction's plan against dictionaries: what every block refers to, and what is dead."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.core.errors import DataIntegrity
from leeward.processor import compaction_plan
from leeward.processor.compaction_plan import (
    DEAD_PERCENT_CHEAP,
    DEAD_PERCENT_MIN,
    Group,
    LogSegment,
    check_window,
    percent_to_free,
    plan_window,
    replace_victims,
)
from leeward.replica.layout import make_segment_id
from leeward.replica.overlay import visible
from leeward.replica.segment import EXTENT_DTYPE, ZEROES

DISK_BLOCKS = 64
Content = dict[int, tuple[int, int]]
"""block → (segment, position), (0, 0) where it was made zeros."""


@st.composite
def segments(draw: st.DrawFn, number: int) -> LogSegment:
    """Extents anywhere, some of them zeros, their data in any order."""
    edges = sorted(draw(st.sets(st.integers(0, DISK_BLOCKS), max_size=10)))
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    is_zero = [draw(st.integers(0, 3)) == 0 for _ in ranges]
    position, positions = 0, dict[int, int]()
    for index in draw(st.permutations(range(len(ranges)))):
        if not is_zero[index]:
            positions[index] = position
            position += ranges[index][1] - ranges[index][0]
    extents = [
        (start, end - start, positions.get(index, ZEROES))
        for index, (start, end) in enumerate(ranges)
    ]
    return LogSegment(make_segment_id(1, number), np.array(extents, EXTENT_DTYPE), position)


windows = st.integers(0, 9).flatmap(
    lambda count: st.tuples(*(segments(number) for number in range(1, count + 1)))
)


def content_of(window: tuple[LogSegment, ...] | list[LogSegment]) -> Content:
    content: Content = {}
    for segment in window:
        for start, count, position in segment.extents.tolist():
            for index in range(count):
                is_zero = position == ZEROES
                content[start + index] = (
                    (0, 0) if is_zero else (segment.segment_id, position + index)
                )
    return content


def new_segments(groups: tuple[Group, ...]) -> tuple[list[LogSegment], dict[int, Group]]:
    made = [
        LogSegment(make_segment_id(2, number), group.extents, len(group.segments))
        for number, group in enumerate(groups, 1)
    ]
    return made, {segment.segment_id: group for segment, group in zip(made, groups, strict=True)}


def back(content: Content, moved: dict[int, Group]) -> Content:
    """Return the content with blocks of new segments as what they were moved from."""
    return {
        block: (int(moved[segment].segments[at]), int(moved[segment].positions[at]))
        if segment in moved
        else (segment, at)
        for block, (segment, at) in content.items()
    }


@settings(deadline=None, max_examples=120)
@given(windows, st.sets(st.integers(1, 9)), st.integers(1, 80), st.integers(0, 9))
def test_a_compacted_window_shows_what_it_showed(
    window: tuple[LogSegment, ...], spared: set[int], moved_max: int, cuts: int
) -> None:
    with (
        patch.object(compaction_plan, "GROUP_BLOCKS", 16),
        patch.object(compaction_plan, "PIECE_BLOCKS", 3),
        patch.object(compaction_plan, "SMALL_COUNT_MIN", 4),
    ):
        plan = plan_window(
            window,
            spared=frozenset(make_segment_id(1, number) for number in spared),
            moved_blocks_max=moved_max,
        )
    made, moved = new_segments(plan.groups)
    by_id = {segment.segment_id: segment for segment in [*window, *made]}
    listed = [segment.segment_id for segment in window]
    lists = [tuple(listed[:cuts]), tuple(listed[cuts:])]
    replaced = replace_victims(lists, plan, [segment.segment_id for segment in made])
    after = [by_id[each] for entry in replaced for each in entry]
    assert back(content_of(after), moved) == content_of(window)
    check_window(window, after, moved)
    assert not set(plan.victims) & {each for entry in replaced for each in entry}
    assert not {make_segment_id(1, number) for number in spared} & set(plan.victims)
    assert all(len(group.segments) <= 16 for group in plan.groups)
    check_figures(window, plan)


def check_figures(window: tuple[LogSegment, ...], plan: compaction_plan.WindowPlan) -> None:
    live = [segment for segment, _ in content_of(window).values() if segment]
    data = sum(segment.data_blocks for segment in window)
    assert (plan.live_blocks, plan.dead_blocks) == (len(live), data - len(live))
    moved = sum(segment in plan.victims for segment in live)
    assert plan.moved_blocks == moved == sum(len(group.segments) for group in plan.groups)


@settings(deadline=None, max_examples=100)
@given(windows, st.integers(0, 100))
def test_victims_are_those_with_much_dead_and_only_those(
    window: tuple[LogSegment, ...], percent: int
) -> None:
    plan = plan_window(window, dead_percent_min=percent)
    content = content_of(window)
    found = visible([segment.extents for segment in window])
    candidates, freeable = 0, 0
    for index, segment in enumerate(window):
        live = sum(owner == segment.segment_id for owner, _ in content.values())
        dead = segment.data_blocks - live
        dead_percent = 100.0
        if (found["layer"] == index).any():
            dead_percent = 100 * dead / max(segment.data_blocks, 1)
        expected = dead_percent >= max(percent, DEAD_PERCENT_MIN)
        assert (segment.segment_id in plan.victims) == expected
        if dead_percent >= DEAD_PERCENT_MIN:
            candidates += 1
            freeable += dead
    assert (plan.candidates, plan.dead_by_percent.sum()) == (candidates, freeable)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 50), min_size=101, max_size=101), st.integers(-10, 3000))
def test_the_deadest_go_first_until_enough_is_freed(dead: list[int], wanted: int) -> None:
    percent = percent_to_free(np.array(dead), wanted)
    assert DEAD_PERCENT_MIN <= percent <= DEAD_PERCENT_CHEAP
    assert sum(dead[percent:]) >= wanted or percent == DEAD_PERCENT_MIN
    assert sum(dead[percent + 1 :]) < wanted or percent == DEAD_PERCENT_CHEAP


@settings(deadline=None, max_examples=80)
@given(windows, st.data())
def test_a_window_that_lost_anything_does_not_pass(
    window: tuple[LogSegment, ...], data: st.DataObject
) -> None:
    """A range of a new segment left out, or a block taken from elsewhere, is noticed; unless what
    was there before shows the same."""
    plan = plan_window(window)
    if not any(len(group.extents) for group in plan.groups):
        return
    made, moved = new_segments(plan.groups)
    gone = set(plan.victims)
    kept = [segment for segment in window if segment.segment_id not in gone]
    last = max(index for index, segment in enumerate(window) if segment.segment_id in gone)
    at = sum(segment.segment_id not in gone for segment in window[:last])
    broken = data.draw(st.sampled_from(range(len(made))))
    extents = made[broken].extents.copy()
    if len(moved[made[broken].segment_id].segments) and data.draw(st.booleans()):
        moved[made[broken].segment_id].positions[0] += 1
    else:
        extents = np.delete(extents, data.draw(st.sampled_from(range(len(extents)))))
    made[broken] = LogSegment(made[broken].segment_id, extents, made[broken].data_blocks)
    after = [*kept[:at], *made, *kept[at:]]
    if back(content_of(after), moved) == content_of(window):
        check_window(window, after, moved)
        return
    with pytest.raises(DataIntegrity):
        check_window(window, after, moved)
