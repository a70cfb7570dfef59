"""Cuts become visible whole, in order, and once; an uploader that died is followed by another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest

from leeward.core.errors import Conflict, Fenced, InvalidRequest, ObjectExists, Unavailable
from leeward.mobility.cut import CutDisk, build_cut
from leeward.mobility.journal import KIND_WRITE, RECORD_DTYPE
from leeward.mobility.upload import RUN_AHEAD_MAX, Cut, Uploader
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    applied_name,
    cut_name,
    decode_manifest,
    encode_applied,
    manifest_sha256,
)
from leeward.replica.segment import decode_segment

ITEM = "web-1"
DISKS = (CutDisk("system", 1 << 20), CutDisk("data", 1 << 20))


class Watched(MemoryStore):
    """A memory store that notes creates in order and can refuse or lose them."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[str] = []
        self.refuse: Callable[[str], bool] = lambda name: False
        self.lose_reply: Callable[[str], bool] = lambda name: False

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.refuse(name):
            raise Unavailable("the store is full")
        super().create(name, data)
        self.created.append(name)
        if self.lose_reply(name):
            raise Unavailable("the reply was lost")


def make_cut(fill: int, time_ns: int = 1) -> Cut:
    records = np.array(
        [(KIND_WRITE, disk, 0, 8192, 4096 + 512 * disk, 0, 0, 0) for disk in (0, 1)],
        dtype=RECORD_DTYPE,
    )
    buffer = bytes([fill]) * 8192
    changes = build_cut(
        records, first_position=0, buffer_of=lambda _: buffer, sweep=(), disks=DISKS
    )
    return Cut(
        disks=changes, time_ns=time_ns, consistency=Consistency.CRASH, vm_config={"name": ITEM}
    )


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def uploader(store: Watched) -> Iterator[Uploader]:
    with closing(Uploader(store, ITEM, 3)) as uploader:
        yield uploader


def manifest_of(store: MemoryStore, sequence: int) -> CutManifest:
    return decode_manifest(store.get(cut_name(ITEM, 3, sequence)))


def apply(store: MemoryStore, sequence: int) -> None:
    """Do what the worker does to the cache once it has applied a cut."""
    data = store.get(cut_name(ITEM, 3, sequence))
    marker = AppliedMarker(sequence=sequence, manifest_sha256=manifest_sha256(data))
    store.create(applied_name(ITEM, 3, sequence), encode_applied(3, marker))
    store.delete(cut_name(ITEM, 3, sequence))


def test_manifests_chain_and_name_verified_segments(store: Watched, uploader: Uploader) -> None:
    first, second = uploader.upload(make_cut(1, 10)), uploader.upload(make_cut(2, 20))
    one, two = manifest_of(store, 1), manifest_of(store, 2)
    assert (one.sequence, one.parent_sha256) == (1, "")
    assert (two.sequence, two.parent_sha256) == (2, first.manifest_sha256)
    assert second.manifest_sha256 == manifest_sha256(store.get(cut_name(ITEM, 3, 2)))
    assert (two.time_ns, two.vm_config, two.bytes_written) == (20, {"name": ITEM}, 16384)
    assert [disk.disk for disk in two.disks] == ["system", "data"]
    for disk in two.disks:
        for ref in disk.segments:
            stored = store.get(ref.name)
            decoded = decode_segment(stored, sha256=ref.sha256)
            assert len(stored) == ref.bytes
            assert (decoded.header.disk, decoded.header.sequence) == (disk.disk, 2)
            assert (decoded.header.epoch, decoded.header.unit) == (3, ref.unit)
            assert set(decoded.data()) == {2}


def test_the_manifest_is_created_after_all_segments(store: Watched, uploader: Uploader) -> None:
    uploader.upload(make_cut(1))
    assert store.created[-1] == cut_name(ITEM, 3, 1)
    assert len(store.created) == 4  # system: blocks; data: blocks and sectors


def test_statistics_count_what_was_committed(store: Watched, uploader: Uploader) -> None:
    shipped = [uploader.upload(make_cut(fill)).bytes_shipped for fill in (1, 2)]
    assert uploader.bytes_written == 32768
    assert uploader.bytes_shipped == sum(shipped) == sum(store.size(n) for n in store.list(""))
    assert uploader.committed_sequence == 2


@pytest.mark.parametrize("part", ["segments", "cuts"])
@pytest.mark.parametrize("how", ["refuse", "lose_reply"])
def test_after_unavailable_the_same_cut_goes_on(
    store: Watched, uploader: Uploader, part: str, how: str
) -> None:
    uploader.upload(make_cut(1))
    cut = make_cut(2)
    setattr(store, how, lambda name: f"/{part}/" in name)
    with pytest.raises(Unavailable):
        uploader.upload(cut)
    setattr(store, how, lambda name: False)
    assert (how, part) == ("lose_reply", "cuts") or not store.list(f"items/{ITEM}/cuts/")[1:]
    assert uploader.upload(cut).sequence == 2
    assert uploader.upload(make_cut(3)).sequence == 3
    assert manifest_of(store, 3).parent_sha256 == manifest_sha256(store.get(cut_name(ITEM, 3, 2)))
    assert len(store.created) == len(set(store.created)) == 12
    assert uploader.bytes_shipped == sum(store.size(name) for name in store.created)


def test_a_lost_reply_to_a_cut_applied_meanwhile_is_settled(
    store: Watched, uploader: Uploader
) -> None:
    cut = make_cut(1)
    store.lose_reply = lambda name: "/cuts/" in name
    with pytest.raises(Unavailable):
        uploader.upload(cut)
    store.lose_reply = lambda name: False
    apply(store, 1)
    real_create = store.create

    def create(name: str, data: Buffer | Sequence[Buffer]) -> None:
        if name == cut_name(ITEM, 3, 1):
            raise ObjectExists("a slow store still has it")
        real_create(name, data)

    store.create = create  # type: ignore[method-assign]
    assert uploader.upload(cut).sequence == 1
    assert uploader.upload(make_cut(2)).sequence == 2


def test_a_successor_goes_on_after_the_newest_cut(store: Watched, uploader: Uploader) -> None:
    uploader.upload(make_cut(1))
    last = uploader.upload(make_cut(2))
    with closing(Uploader(store, ITEM, 3)) as successor:
        assert successor.resume() == 3
        successor.upload(make_cut(3))
    assert manifest_of(store, 3).parent_sha256 == last.manifest_sha256


def test_a_successor_goes_on_after_the_applied_marker(store: Watched, uploader: Uploader) -> None:
    uploader.upload(make_cut(1))
    last = uploader.upload(make_cut(2))
    apply(store, 1)
    apply(store, 2)
    with closing(Uploader(store, ITEM, 3)) as successor:
        assert successor.applied_sequence() == 2
        assert successor.upload(make_cut(3)).sequence == 3
    assert manifest_of(store, 3).parent_sha256 == last.manifest_sha256


def test_an_older_epoch_neither_hinders_nor_a_newer_is_overrun(store: Watched) -> None:
    with closing(Uploader(store, ITEM, 3)) as old, closing(Uploader(store, ITEM, 4)) as new:
        old.upload(make_cut(1))
        assert new.upload(make_cut(2)).sequence == 1
        with pytest.raises(Fenced, match="newer"):
            old.resume()


def test_cuts_run_ahead_and_become_visible_in_order(store: Watched, uploader: Uploader) -> None:
    first, second = uploader.begin(make_cut(1)), uploader.begin(make_cut(2))
    with pytest.raises(InvalidRequest, match="in the order"):
        uploader.commit(second)
    assert store.list(f"items/{ITEM}/cuts/") == []
    assert uploader.commit(first).sequence == 1
    assert uploader.commit(second).sequence == 2


def test_running_ahead_is_bounded(uploader: Uploader) -> None:
    for fill in range(RUN_AHEAD_MAX):
        uploader.begin(make_cut(fill))
    with pytest.raises(InvalidRequest, match="already wait"):
        uploader.begin(make_cut(9))


def test_another_uploaders_cut_is_a_conflict_and_then_gone_past(
    store: Watched, uploader: Uploader
) -> None:
    uploader.upload(make_cut(1))
    with closing(Uploader(store, ITEM, 3)) as other:
        other.upload(make_cut(7))
    cut = make_cut(2)
    with pytest.raises(Conflict, match="other content"):
        uploader.upload(cut)
    assert uploader.upload(cut).sequence == 3


def test_an_abandoned_cut_that_arrived_late_is_gone_past(
    store: Watched, uploader: Uploader
) -> None:
    store.lose_reply = lambda name: "/cuts/" in name
    with pytest.raises(Unavailable):
        uploader.upload(make_cut(1))
    store.lose_reply = lambda name: False
    uploader.abandon()
    assert uploader.upload(make_cut(2)).sequence == 2


def test_a_damaged_marker_is_waited_out(store: Watched, uploader: Uploader) -> None:
    """It says nothing against the cut at hand: the records must not be given up for it."""
    uploader.upload(make_cut(1))
    marker = applied_name(ITEM, 3, 1)
    store.create(marker, b"damaged")
    store.delete(cut_name(ITEM, 3, 1))
    with closing(Uploader(store, ITEM, 3)) as successor:
        with pytest.raises(Unavailable, match="damaged"):
            successor.upload(make_cut(2))
        store.delete(marker)
        fresh = AppliedMarker(sequence=1, manifest_sha256=manifest_sha256(b"x"))
        store.create(marker, encode_applied(3, fresh))
        assert successor.upload(make_cut(2)).sequence == 2
