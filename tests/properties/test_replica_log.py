"""The whole log of an item against plain byte arrays, at every recovery point, and its owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leeward.core.errors import Conflict, Fenced, Unavailable
from leeward.core.units import BLOCK, KIB, MIB
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.replica.block_map import BlockMap
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.disk import open_point, replay_map
from leeward.replica.layout import checkpoint_name, make_segment_id, segment_name
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    ZEROES,
    SegmentHeader,
    encode_segment,
)

ITEM = "item"
SIZES = {"system": 300 * KIB, "data": 2 * MIB + 512}


@dataclass
class Writer:
    """What a worker does with an item, in small: segments, maps, checkpoints, catalog."""

    stores: dict[str, MemoryStore]
    catalog_store: MemoryStore
    contents: dict[str, bytearray] = field(
        default_factory=lambda: {disk: bytearray(size) for disk, size in SIZES.items()}
    )
    number: int = 0
    sequence: int = 0

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begin anew as after a crash: from what is stored."""
        self.catalog = Catalog.open(self.catalog_store, ITEM)
        self.catalog.take_over(1)
        self.maps = {disk: self._open_map(disk) for disk in SIZES}

    def _open_map(self, disk: str) -> BlockMap:
        checkpoint, segments = self.catalog.newest_disk_log(disk)
        return replay_map(self.stores[disk], ITEM, disk, SIZES[disk], checkpoint, segments)

    def cut(self, changes: dict[str, NDArray[np.void]], checkpoints: set[str], seed: int) -> str:
        """Apply changes to disks and return the new point's id."""
        self.sequence += 1
        disks = tuple(
            self._apply(disk, changes.get(disk), disk in checkpoints, seed) for disk in SIZES
        )
        cut = AppliedCut(
            epoch=1,
            sequence=self.sequence,
            manifest_sha256="",
            time_ns=self.sequence,
            consistency=Consistency.CRASH,
            disks=disks,
        )
        self.catalog.append_cuts([cut])
        return self.catalog.points[-1].id

    def _apply(
        self, disk: str, extents: NDArray[np.void] | None, with_checkpoint: bool, seed: int
    ) -> AppliedDisk:
        segments: tuple[int, ...] = ()
        if extents is not None:
            segments = (self._store_segment(disk, extents, seed),)
        name = ""
        if with_checkpoint:
            name = checkpoint_name(ITEM, disk, self.catalog.claim, self.sequence)
            self.maps[disk].write_checkpoint(self.stores[disk], name, epoch=1)
        return AppliedDisk(disk=disk, size_bytes=SIZES[disk], segments=segments, checkpoint=name)

    def _store_segment(self, disk: str, extents: NDArray[np.void], seed: int) -> int:
        self.number += 1
        segment_id = make_segment_id(self.catalog.claim, self.number)
        has_data = extents["position"] != ZEROES
        blocks = int(extents["count"][has_data].sum())
        data = np.random.default_rng(seed).bytes(blocks * BLOCK)
        header = SegmentHeader(ITEM, disk, 1, self.sequence, BLOCKS)
        encoded = encode_segment(header, extents, data, compression="zstd")
        self.stores[disk].create(segment_name(ITEM, disk, segment_id), encoded.parts)
        self.maps[disk].apply(segment_id, extents)
        content = self.contents[disk]
        for start, count, position in extents.tolist():
            new = bytes(count * BLOCK)
            if position != ZEROES:
                new = data[position * BLOCK : (position + count) * BLOCK]
            low, high = start * BLOCK, min((start + count) * BLOCK, len(content))
            content[low:high] = new[: high - low]
        return segment_id


@st.composite
def changes_of(draw: st.DrawFn, disk: str) -> NDArray[np.void]:
    """Sorted extents anywhere on the disk, the last block included, some of them zeros."""
    count = -(-SIZES[disk] // BLOCK)
    edges = sorted(draw(st.sets(st.integers(0, count), min_size=2, max_size=12)))
    extents, position = [], 0
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        is_zero = draw(st.integers(0, 3)) == 0
        extents.append((start, end - start, ZEROES if is_zero else position))
        position += 0 if is_zero else end - start
    return np.array(extents, EXTENT_DTYPE)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_point_reads_as_it_was(data: st.DataObject) -> None:
    stores = {disk: MemoryStore(disk) for disk in SIZES}
    catalog_store = stores["system"]
    writer = Writer(stores, catalog_store)
    expected: dict[str, dict[str, bytes]] = {}
    for seed in range(data.draw(st.integers(1, 6))):
        changed = data.draw(st.sets(st.sampled_from(sorted(SIZES))))
        changes = {disk: data.draw(changes_of(disk)) for disk in sorted(changed)}
        checkpoints = data.draw(st.sets(st.sampled_from(sorted(SIZES))))
        point = writer.cut(changes, checkpoints, seed)
        expected[point] = {disk: bytes(content) for disk, content in writer.contents.items()}
        if data.draw(st.integers(0, 3)) == 0:
            writer.open()
    dropped = data.draw(st.sets(st.sampled_from(sorted(expected))))
    writer.catalog.drop_points(dropped)
    for point in expected.keys() - dropped:
        disks = open_point(catalog_store, stores, ITEM, point, cache_bytes=200 * KIB)
        for disk, reader in disks.items():
            with reader:
                content = expected[point][disk]
                assert reader.read(0, reader.size_bytes) == content
                offset = data.draw(st.integers(0, len(content)))
                length = data.draw(st.integers(0, len(content) - offset))
                assert reader.read(offset, length) == content[offset : offset + length]
                _check_extents(reader.extents(offset, length), content[offset:], length)


def _check_extents(extents: list[tuple[int, bool]], content: bytes, length: int) -> None:
    assert sum(size for size, _ in extents) == length
    at = 0
    for index, (size, has_data) in enumerate(extents):
        assert size > 0
        assert index == 0 or has_data != extents[index - 1][1]
        assert has_data or not any(content[at : at + size])
        at += size


class PausingStore(MemoryStore):
    """Holds back creates until they are let go, as a paused process or a slow wire does."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[str, bytes]] | None = None

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.held is not None:
            assert isinstance(data, bytes)
            self.held.append((name, data))
            raise Unavailable("no reply")
        super().create(name, data)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["cut", "hold", "take"])), max_size=25)
)
def test_the_log_has_one_writer(steps: list[tuple[int, str]]) -> None:
    """Three workers append and take over in any order, requests arrive late: whoever was told that
    its cut is in the log finds it there, once, and after a take-over the one before is Fenced."""
    store = PausingStore()
    catalogs = [Catalog.open(store, ITEM) for _ in range(3)]
    owner = -1
    late: list[tuple[str, bytes]] = []
    acknowledged: dict[int, str] = {}
    for step, (who, action) in enumerate(steps):
        catalog = catalogs[who]
        if action == "take":
            catalog.take_over(1)
            owner = who
            continue
        sequence = catalog.newest_cut.sequence + 1 if catalog.newest_cut else 1
        digest = f"{step:064x}"
        cut = AppliedCut(
            epoch=1,
            sequence=sequence,
            manifest_sha256=digest,
            time_ns=step,
            consistency=Consistency.CRASH,
            disks=(),
        )
        if action == "hold":
            store.held = late
        try:
            catalog.append_cuts([cut])
            assert who == owner, "an owner that was replaced could write"
            acknowledged[sequence] = digest
        except Fenced:
            assert who != owner
        except (Conflict, Unavailable):
            pass
        finally:
            store.held = None
        if step % 3 == 0 and late:
            _deliver(store, late.pop())
            for reader in catalogs:
                if reader.claim:
                    continue
                reader.refresh()
    final = Catalog.open(store, ITEM)
    log = {cut.sequence: cut.manifest_sha256 for cut in final._state.cuts}
    assert sorted(log) == list(range(1, len(log) + 1))
    assert acknowledged.items() <= log.items()


def _deliver(store: PausingStore, request: tuple[str, bytes]) -> None:
    try:
        store.create(*request)
    except Conflict:
        return
