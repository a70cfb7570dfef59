"""Old records of a catalog deleted: what is read then, by whom, and what is told if it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from tests.properties.test_catalog_floor import Worker

from leeward.core.errors import Fenced, LeewardError, SegmentCorrupt, Unavailable
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.processor import trimming
from leeward.processor.found_items import find_items
from leeward.replica import snapshots
from leeward.replica.boot_trace import sealing_of
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import Floor
from leeward.replica.envelope import KIND_FLOOR, KIND_SNAPSHOT, open_envelope, seal_envelope
from leeward.replica.floors import create_floor, newest_floor
from leeward.replica.layout import (
    catalog_prefix,
    floor_name,
    floors_prefix,
    parse_record_version,
    record_name,
    snapshot_name,
    snapshots_prefix,
)

ITEM = "web"
SNAPSHOT_VERSIONS, FLOOR_VERSIONS = 3, 7


@pytest.fixture(autouse=True)
def short_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_VERSIONS", SNAPSHOT_VERSIONS)
    monkeypatch.setattr(trimming, "FLOOR_VERSIONS", FLOOR_VERSIONS)


class Failing(MemoryStore):
    """A store whose operation of a number fails, before it is done or after."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.is_done = False

    def _meet(self, operation: Callable[[], None]) -> None:
        self.left -= 1
        if self.left:
            operation()
            return
        if self.is_done:
            operation()
        raise Unavailable("no reply")

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._meet(lambda: super(Failing, self).create(name, data))

    def delete(self, name: str) -> None:
        self._meet(lambda: super(Failing, self).delete(name))


def work(worker: Worker, count: int) -> None:
    for index in range(count):
        worker.append(f"{index:064x}")
        worker.trimmer.trim()


def owner_of(store: MemoryStore) -> Worker:
    worker = Worker(store)
    worker.catalog.take_over(1)
    return worker


def versions(store: MemoryStore) -> list[int]:
    return [parse_record_version(name) for name in store.list(catalog_prefix(ITEM))]


def garble(store: MemoryStore, names: Sequence[str]) -> None:
    for name in names:
        store.delete(name)
        store.create(name, b"garbled")


def test_what_is_stored_stays_small_and_everything_is_read() -> None:
    store = MemoryStore()
    worker = owner_of(store)
    most = 0
    for _ in range(20):
        work(worker, 10)
        most = max(most, len(versions(store)))
        assert Catalog.open(store, ITEM).state.cuts == worker.catalog.state.cuts
    assert most < 3 * FLOOR_VERSIONS + 3 * SNAPSHOT_VERSIONS
    floor = worker.catalog.state.floor
    assert versions(store) == list(range(floor.previous, worker.catalog.version + 1))
    assert {floor.version, floor.previous} <= {
        int(name[-16:]) for name in store.list(snapshots_prefix(ITEM))
    }
    assert len(store.list(floors_prefix(ITEM))) == floor.number
    again = owner_of(store)
    work(again, 30)
    assert sealing_of(store, ITEM) == (1, "")
    with pytest.raises(Fenced):
        worker.append("0" * 64)


@pytest.mark.parametrize("good", ["version", "previous"])
def test_a_reader_falls_back_to_the_floors_own_snapshots(good: str) -> None:
    store = MemoryStore()
    worker = owner_of(store)
    work(worker, 100)
    floor = worker.catalog.state.floor
    left = snapshot_name(ITEM, getattr(floor, good))
    garble(store, [name for name in store.list(snapshots_prefix(ITEM)) if name != left])
    assert Catalog.open(store, ITEM).state.cuts == worker.catalog.state.cuts
    work(owner_of(store), 50)


def test_who_read_long_ago_reads_on_to_what_it_says_now() -> None:
    store = MemoryStore()
    worker = owner_of(store)
    readers = []
    for _ in range(60):
        work(worker, 1)
        readers.append(Catalog.open(store, ITEM))
    for reader in readers:
        reader.refresh()
        assert reader.state == worker.catalog.state


def test_what_a_sleeper_writes_below_the_floor_counts_for_nobody_and_is_taken_away() -> None:
    store = MemoryStore()
    sleeper = owner_of(store)
    work(sleeper, 5)
    worker = owner_of(store)
    work(worker, 60)
    before = store.list("")
    assert sleeper.catalog.version + 1 not in versions(store), "it must be able to create it"
    with pytest.raises(Fenced):
        sleeper.append("0" * 64)
    assert store.list("") == before
    taken = Worker(store)
    taken.catalog.take_over(1)
    assert taken.catalog.state.cuts == worker.catalog.state.cuts


def test_what_a_sleeper_left_below_the_floor_is_deleted_with_the_next() -> None:
    store = MemoryStore()
    worker = owner_of(store)
    first = store.get(record_name(ITEM, 1))
    work(worker, 60)
    store.create(record_name(ITEM, 1), first)
    assert Catalog.open(store, ITEM).state == worker.catalog.state
    work(worker, 2 * FLOOR_VERSIONS)
    assert versions(store)[0] == worker.catalog.state.floor.previous


def test_a_replica_of_before_floors_is_read_and_gets_some() -> None:
    store = MemoryStore()
    worker = owner_of(store)
    for index in range(50):
        worker.append(f"{index:064x}")
    for name in store.list(snapshots_prefix(ITEM)):
        body = json.loads(open_envelope(store.get(name), KIND_SNAPSHOT).body)
        del body["floor"]
        store.delete(name)
        store.create(name, seal_envelope(KIND_SNAPSHOT, 1, body))
    assert not store.list(floors_prefix(ITEM))
    later = owner_of(store)
    assert later.catalog.state.cuts == worker.catalog.state.cuts
    assert later.catalog.state.floor == Floor()
    work(later, 40)
    assert versions(store)[0] == later.catalog.state.floor.previous > 1
    assert Catalog.open(store, ITEM).state == later.catalog.state


def test_a_floor_that_is_damaged_is_passed_over_once_a_snapshot_says_it() -> None:
    store = MemoryStore()
    worker = owner_of(store)
    work(worker, 20)
    reader = Catalog.open(store, ITEM)
    while worker.catalog.state.floor.number == reader.state.floor.number:
        work(worker, 1)
    garble(store, [floor_name(ITEM, worker.catalog.state.floor.number)])
    with pytest.raises(SegmentCorrupt):
        reader.refresh()
    work(worker, 1)  # a snapshot follows each floor
    reader.refresh()
    assert reader.state == worker.catalog.state
    work(worker, 40)
    reader.refresh()
    assert reader.state == Catalog.open(store, ITEM).state == worker.catalog.state


@pytest.mark.parametrize("are_floors_there", [False, True])
def test_a_catalog_whose_beginning_is_lost_is_not_taken_for_an_empty_one(
    are_floors_there: bool,
) -> None:
    store = MemoryStore()
    work(owner_of(store), 60)
    reader = Catalog.open(store, ITEM)
    for name in store.list(snapshots_prefix(ITEM)):
        store.delete(name)
    for name in () if are_floors_there else store.list(floors_prefix(ITEM)):
        store.delete(name)
    with pytest.raises(SegmentCorrupt, match="snapshot"):
        Catalog.open(store, ITEM)
    (found,) = find_items(["memory://x"], {"memory://x": store}.__getitem__).items
    assert "snapshot" in found.problem
    reader.refresh()  # it knows


def test_what_is_no_record_makes_a_catalog_neither_empty_nor_lost() -> None:
    store = MemoryStore()
    store.create(f"{catalog_prefix(ITEM)}.nfs0001", b"of another program")
    assert Catalog.open(store, ITEM).version == 0
    work(owner_of(store), 60)
    assert Catalog.open(store, ITEM).version > 0


@pytest.mark.parametrize(
    "change",
    [
        {"item_id": "other"},
        {"number": 9},
        {"version": 0},
        {"previous": -1},
        {"previous": 10**6},
    ],
)
def test_a_floor_that_says_what_cannot_be_is_corrupt(change: dict[str, object]) -> None:
    store = MemoryStore()
    work(owner_of(store), 5)
    body = {"item_id": ITEM, "number": 1, "version": 4, "sha256": "", "previous": 0} | change
    store.create(floor_name(ITEM, 1), seal_envelope(KIND_FLOOR, 1, body))
    with pytest.raises(SegmentCorrupt, match="floor 1 of item web"):
        Catalog.open(store, ITEM)


def test_a_floor_that_a_power_cut_took_is_there_again_before_the_next() -> None:
    """Else who has read up to the one before would see no other for ever."""
    store = MemoryStore()
    worker = owner_of(store)
    work(worker, 40)
    reader = Catalog.open(store, ITEM)
    number = worker.catalog.state.floor.number
    while worker.catalog.state.floor.number == number:
        work(worker, 1)
    lost = floor_name(ITEM, number + 1)
    content = store.get(lost)
    store.delete(lost)
    work(worker, 60)
    assert store.get(lost) == content
    reader.refresh()
    assert reader.state == worker.catalog.state


def test_a_floor_whose_reply_was_lost_is_there_and_another_ones_is_told() -> None:
    store = Failing()
    floor = Floor(item_id=ITEM, number=1, version=9, sha256="0" * 64)
    for is_done in (True, False):
        store.left, store.is_done = 1, is_done
        assert create_floor(store, 1, floor)
        assert newest_floor(store, ITEM, Floor()) == floor
        store.left = -1
        assert not create_floor(store, 1, replace(floor, version=8))
        store.delete(floor_name(ITEM, 1))


def test_what_was_read_up_to_a_floor_counts_only_if_it_is_what_the_floor_names() -> None:
    """A sleeper has written the version that a reader comes to next, where it had been deleted."""
    store, other = MemoryStore(), MemoryStore()
    worker = owner_of(store)
    work(worker, 5)
    for name in store.list(""):
        other.create(name, store.get(name))
    reader = Catalog.open(store, ITEM)
    next_name = record_name(ITEM, reader.version + 1)
    owner_of(other)
    work(worker, 60)
    store.create(next_name, other.get(next_name))
    for name in store.list(floors_prefix(ITEM)):
        store.delete(name)
    floor = Floor(item_id=ITEM, number=1, version=reader.version + 1, sha256="0" * 64)
    store.create(floor_name(ITEM, 1), seal_envelope(KIND_FLOOR, 1, floor))
    reader.refresh()
    assert reader.state.cuts == worker.catalog.state.cuts


@pytest.mark.parametrize("folder", ["snapshots", "catalog"])
def test_a_floor_needs_a_good_snapshot_of_its_version(folder: str) -> None:
    store = MemoryStore()
    worker = owner_of(store)
    for index in range(30):
        worker.append(f"{index:064x}")
    kept = store.list(snapshots_prefix(ITEM))[-snapshots.SNAPSHOTS_KEPT]
    kept = kept.replace("snapshots", folder)
    content = store.get(kept)
    garble(store, [kept])
    worker.trimmer.trim()
    assert not store.list(floors_prefix(ITEM))
    state = worker.catalog.state
    assert not worker.catalog.raise_floor(state.version, state.sha256), "it has no snapshot"
    assert not worker.catalog.raise_floor(state.version + 1, state.sha256)
    store.delete(kept)
    store.create(kept, content)
    worker.trimmer.trim()
    assert store.list(floors_prefix(ITEM)) == [floor_name(ITEM, 1)]
    assert versions(store) == list(range(1, worker.catalog.version + 1))


def test_a_round_deletes_so_many_and_ends_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    worker = owner_of(store)
    trimmer = trimming.CatalogTrimmer(worker, ITEM, store)
    monkeypatch.setattr(trimming, "RECORDS_MAX", 3)
    for _ in range(2):
        for index in range(30):
            worker.append(f"{index:064x}")
        assert trimmer.trim(is_stopping=lambda: True) == 0
    assert trimmer.is_waiting
    assert trimmer.trim() == 3
    assert trimmer.trim(is_thorough=True) > 3
    assert not trimmer.is_waiting
    assert trimmer.trim() == 0
    sizes = store.sizes("")
    assert trimmer.stored_bytes() == sum(sizes.values())


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_whoever_dies_at_any_operation_is_followed_by_one_that_goes_on(is_done: bool) -> None:
    """A worker whose n-th creation or deletion gets no reply is never seen again."""
    for number in range(1, 40):
        store = Failing()
        work(owner_of(store), 30)
        reader, doomed = Catalog.open(store, ITEM), owner_of(store)
        store.left, store.is_done = number, is_done
        known = doomed.catalog.newest_cut
        try:
            for _ in range(30):
                work(doomed, 1)
                known = doomed.catalog.newest_cut
        except LeewardError:
            pass
        store.left = -1
        heir = owner_of(store)
        assert known in heir.catalog.state.cuts
        work(heir, 30)
        with pytest.raises(Fenced):
            doomed.append("0" * 64)
        reader.refresh()
        assert reader.state == Catalog.open(store, ITEM).state == heir.catalog.state
        assert versions(store)[0] == heir.catalog.state.floor.previous


def test_a_version_in_doubt_that_was_deleted_since_is_in_doubt_no_more() -> None:
    store = MemoryStore()
    work(owner_of(store), 60)
    reader = Catalog.open(store, ITEM)
    reader._doubted = 3
    store.delete(record_name(ITEM, reader.version))  # as if two floors had come since it was read
    reader.refresh()
    assert reader._doubted == 0
