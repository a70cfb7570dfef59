"""The block map against a dictionary, through changes, checkpoints and reopening."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leeward.core.errors import SegmentCorrupt
from leeward.core.units import GIB, KIB
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import PAGE_BLOCKS, BlockMap, open_checkpoint
from leeward.replica.layout import FRAGMENTED, checkpoint_name, make_segment_id
from leeward.replica.runs import join_pieces
from leeward.replica.segment import EXTENT_DTYPE, ZEROES

Model = dict[int, tuple[int, int]]
"""block → (segment id, position); blocks that are not in it are zeros."""

SIZES = [20 * KIB, 3 * 1024 * KIB, 3 * GIB + 12 * KIB]


@st.composite
def extents_of(draw: st.DrawFn, block_count: int) -> NDArray[np.void]:
    """Sorted extents in a few crowded places, some of them zeros."""
    homes = [0, max(0, PAGE_BLOCKS - 40), max(0, block_count - 60)]
    at = min(draw(st.sampled_from(homes)), block_count - 1)
    extents, position = [], draw(st.integers(0, 30))
    for gap, count, has_data in draw(
        st.lists(
            st.tuples(st.integers(0, 20), st.sampled_from([1, 3, 16, 17, 70]), st.booleans()),
            min_size=1,
            max_size=8,
        )
    ):
        start = at + gap
        count = min(count, block_count - start)
        if count <= 0:
            break
        extents.append((start, count, position if has_data else ZEROES))
        position += count + draw(st.integers(0, 2))
        at = start + count
    return np.array(extents, EXTENT_DTYPE)


@st.composite
def zero_extent(draw: st.DrawFn, block_count: int) -> NDArray[np.void]:
    """One long extent of zeros that may cover whole pages."""
    start = draw(st.sampled_from([0, 1, 17, PAGE_BLOCKS - 3, PAGE_BLOCKS]))
    start = min(start, block_count - 1)
    end = draw(st.sampled_from([PAGE_BLOCKS, 2 * PAGE_BLOCKS, 2 * PAGE_BLOCKS + 5, block_count]))
    return np.array([(start, max(1, min(end, block_count) - start), ZEROES)], EXTENT_DTYPE)


def apply_to_model(model: Model, segment_id: int, extents: NDArray[np.void]) -> None:
    for start, count, position in extents.tolist():
        if position == ZEROES:
            for block in [block for block in model if start <= block < start + count]:
                del model[block]
        else:
            model.update((start + index, (segment_id, position + index)) for index in range(count))


def check(block_map: BlockMap, model: Model, first: int, count: int) -> None:
    """The runs of a range are gapless, maximal, and say what the model says."""
    found: Model = {}
    at, previous = first, None
    for block, length, segment_id, position in block_map.resolve(first, count).tolist():
        assert block == at
        assert length > 0
        at += length
        if previous is not None:
            assert (segment_id, position) != previous, "two runs could have been one"
        previous = (segment_id, position + length) if segment_id else (0, 0)
        if segment_id:
            found.update((block + index, (segment_id, position + index)) for index in range(length))
    assert at == first + count
    assert found == {b: where for b, where in model.items() if first <= b < first + count}


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(SIZES))
def test_map_equals_dictionary(data: st.DataObject, size_bytes: int) -> None:
    store, model = MemoryStore(), Model()
    block_map = BlockMap("item", "disk", size_bytes)
    count = block_map.block_count
    for number in range(1, data.draw(st.integers(1, 8)) + 1):
        step = data.draw(st.sampled_from(["extents", "extents", "zeros", "store", "reopen"]))
        if step in ("extents", "zeros"):
            make = extents_of if step == "extents" else zero_extent
            extents = data.draw(make(count))
            segment_id = make_segment_id(1, number)
            block_map.apply(segment_id, extents)
            apply_to_model(model, segment_id, extents)
        else:
            name = checkpoint_name("item", "disk", 1, number)
            block_map.write_checkpoint(store, name, epoch=1)
            assert block_map.dirty_page_count == 0
            if step == "reopen":
                block_map = open_checkpoint(store, name)
        first = data.draw(st.integers(0, count - 1))
        length = data.draw(st.integers(0, min(200, count - first)))
        check(block_map, model, first, length)
    check(block_map, model, 0, count)
    for first in (1, 5, 13, 40, PAGE_BLOCKS - 30):
        check(block_map, model, min(first, count), max(0, min(70, count - first)))
    blocks = np.array([*model, 0, count - 1, min(count - 1, PAGE_BLOCKS)])
    segments, positions = block_map.lookup(blocks)
    expected = [model.get(block, (0, 0)) for block in blocks.tolist()]
    assert list(zip(segments.tolist(), positions.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_older_checkpoints_stay_as_they_were(data: st.DataObject) -> None:
    store, model, block_map = MemoryStore(), Model(), BlockMap("item", "disk", SIZES[2])
    versions: list[tuple[str, Model]] = []
    for number in range(1, 5):
        extents = data.draw(extents_of(block_map.block_count))
        block_map.apply(make_segment_id(2, number), extents)
        apply_to_model(model, make_segment_id(2, number), extents)
        name = checkpoint_name("item", "disk", 2, number)
        block_map.write_checkpoint(store, name, epoch=1)
        versions.append((name, dict(model)))
    for name, expected in versions:
        reopened = open_checkpoint(store, name)
        check(reopened, expected, 0, reopened.block_count)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_garbled_or_torn_checkpoint_is_corrupt(data: st.DataObject) -> None:
    store, block_map = MemoryStore(), BlockMap("item", "disk", 2 * GIB)
    extents = np.array([(index * 7, 5, index * 5) for index in range(300)], EXTENT_DTYPE)
    block_map.apply(make_segment_id(1, 1), extents)
    block_map.write_checkpoint(store, "whole", epoch=1)
    stored = bytearray(store.get("whole"))
    if data.draw(st.booleans()):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    store.create("garbled", bytes(stored))
    with pytest.raises(SegmentCorrupt):
        open_checkpoint(store, "garbled").resolve(0, block_map.block_count)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_no_checkpoint(noise: bytes, with_magic: bool) -> None:
    store = MemoryStore()
    store.create("noise", b"LWCK\x01\x00" + noise if with_magic else noise)
    with pytest.raises(SegmentCorrupt):
        open_checkpoint(store, "noise")


def test_fragmented_chunks_are_never_joined() -> None:
    """Two neighbours in the pool may lie as far apart there as two chunks of one run would."""
    slots = np.array([5, 21, 37], np.uint64) + np.uint64(FRAGMENTED)
    ones = np.ones(3, np.int64)
    places, lengths, references = join_pieces(np.arange(3), ones, slots, 16)
    assert places.tolist() == [0, 1, 2]
    assert lengths.tolist() == [1, 1, 1]
    assert (references == slots).all()
