"""A map opened with changes put off reads as one that took them at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leeward.core.units import BLOCK
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import PAGE_BLOCKS, BlockMap, open_checkpoint
from leeward.replica.segment import EXTENT_DTYPE, ZEROES

PAGES = 3
BLOCKS = PAGES * PAGE_BLOCKS - 1000
SIZE = BLOCKS * BLOCK

near_edges = st.one_of(
    st.integers(0, BLOCKS - 1),
    st.builds(
        lambda page, by: min(max(page * PAGE_BLOCKS + by, 0), BLOCKS - 1),
        st.integers(0, PAGES),
        st.integers(-40, 40),
    ),
)
lengths = st.one_of(st.integers(1, 70), st.integers(1, 2 * PAGE_BLOCKS))


@st.composite
def segments(draw: st.DrawFn) -> NDArray[np.void]:
    """Extents as a segment holds them: long ones are zeros, short ones data or zeros."""
    found: list[tuple[int, int, int]] = []
    at = position = 0
    for start in sorted(draw(st.lists(near_edges, min_size=1, max_size=5))):
        start = max(start, at)
        count = min(draw(lengths), BLOCKS - start)
        if count < 1:
            break
        if count > 4096 - position or draw(st.booleans()):
            found.append((start, count, ZEROES))
        else:
            found.append((start, count, position))
            position += count
        at = start + count
    return np.array(found, EXTENT_DTYPE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(segments(), min_size=1, max_size=3),
    st.lists(segments(), min_size=1, max_size=5),
    st.lists(near_edges, max_size=3),
)
def test_changes_put_off_are_never_missed(
    before: list[NDArray[np.void]], after: list[NDArray[np.void]], looks: list[int]
) -> None:
    store = MemoryStore()
    stored = BlockMap("item", "disk", SIZE)
    for number, extents in enumerate(before, 1):
        stored.apply(1 << 28 | number, extents)
    stored.write_checkpoint(store, "first", epoch=1)
    eager, lazy = open_checkpoint(store, "first"), open_checkpoint(store, "first")
    for number, extents in enumerate(after, 1):
        eager.apply(2 << 28 | number, extents)
        lazy.apply_later(2 << 28 | number, extents)
        if number <= len(looks):  # a page loaded in between takes what comes later at once
            block = looks[number - 1]
            assert (lazy.resolve(block, 1) == eager.resolve(block, 1)).all()
    lazy.write_checkpoint(store, "second", epoch=1)
    reopened = open_checkpoint(store, "second")
    wanted = eager.resolve(0, BLOCKS).tolist()
    assert lazy.resolve(0, BLOCKS).tolist() == wanted
    assert reopened.resolve(0, BLOCKS).tolist() == wanted
