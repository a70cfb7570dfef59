"""The catalog: one owner, no lost or doubled versions, bounded opening."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leeward.core.errors import (
    Conflict,
    Fenced,
    InvalidRequest,
    LeewardError,
    NotFound,
    SegmentCorrupt,
    Unavailable,
)
from leeward.model.recovery import Consistency, point_id
from leeward.object_store import file as file_module
from leeward.object_store.file import create_file_store
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.replica import envelope as envelope_module
from leeward.replica import snapshots as snapshots_module
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk, LoggedCut, State
from leeward.replica.envelope import KIND_SNAPSHOT, parse_envelope, seal_envelope
from leeward.replica.layout import (
    make_segment_id,
    record_name,
    snapshot_name,
    snapshots_prefix,
)
from leeward.replica.snapshots import SNAPSHOT_VERSIONS


def make_cut(
    sequence: int,
    *,
    epoch: int = 1,
    consistency: Consistency = Consistency.CRASH,
    segments: tuple[int, ...] = (),
    checkpoint: str = "",
    name: str = "web",
) -> AppliedCut:
    disks = (
        AppliedDisk(disk="system", size_bytes=4096, segments=segments, checkpoint=checkpoint),
        AppliedDisk(disk="data", size_bytes=8192),
    )
    return AppliedCut(
        epoch=epoch,
        sequence=sequence,
        manifest_sha256=f"{sequence:064x}",
        time_ns=sequence * 1000,
        consistency=consistency,
        disks=disks,
        vm_config={"name": name},
    )


class FaultyStore(MemoryStore):
    """A memory store whose next create may lose its request or its reply; counts requests."""

    def __init__(self) -> None:
        super().__init__()
        self.next_create: Callable[[str, bytes], None] | None = None
        self.requests = 0

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        fault, self.next_create = self.next_create, None
        self.requests += 1
        if fault is not None:
            assert isinstance(data, bytes)
            fault(name, data)
            raise Unavailable("the reply was lost")
        super().create(name, data)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.requests += 1
        return super().get_range(name, offset, length)

    def list(self, prefix: str) -> list[str]:
        self.requests += 1
        return super().list(prefix)


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


def owned(store: MemoryStore, epoch: int = 1) -> Catalog:
    catalog = Catalog.open(store, "web")
    catalog.take_over(epoch)
    return catalog


def test_empty_catalog(store: FaultyStore) -> None:
    catalog = Catalog.open(store, "web")
    assert (catalog.version, catalog.epoch, catalog.points, catalog.newest_cut) == (0, 0, (), None)
    assert catalog.newest_disk_log("system") == ("", ())
    with pytest.raises(NotFound):
        catalog.find_point("latest")
    with pytest.raises(Conflict):
        catalog.append_cuts([make_cut(1)])


def test_points_and_logs_are_what_was_appended(store: FaultyStore) -> None:
    catalog = Catalog.open(store, "web")
    catalog.take_over(1, owner="worker-1", disk_urls={"system": "memory://a"})
    one, two, three = (make_segment_id(catalog.claim, number) for number in (1, 2, 3))
    catalog.append_cuts([make_cut(1, consistency=Consistency.NONE, segments=(one,))])
    catalog.append_cuts(
        [
            make_cut(2, segments=(two,), checkpoint="map"),
            make_cut(3, segments=(three, one), name="renamed"),
        ]
    )
    for reader in (catalog, Catalog.open(store, "web")):
        assert [point.id for point in reader.points] == [point_id(1, 2), point_id(1, 3)]
        assert reader.find_point("latest").sequence == 3
        assert reader.find_point(point_id(1, 2)).time_ns == 2000
        assert reader.disk_log("system", point_id(1, 2)) == ("map", ())
        assert reader.disk_log("system", reader.points[1]) == ("map", (three, one))
        assert reader.disk_log("data", reader.points[1]) == ("", ())
        assert reader.newest_disk_log("system") == ("map", (three, one))
        assert reader.disk_sizes(reader.points[0]) == {"system": 4096, "data": 8192}
        assert reader.vm_config(reader.points[0]) == {"name": "web"}
        assert reader.vm_config(reader.points[1]) == {"name": "renamed"}
        assert reader.disk_urls == {"system": "memory://a"}
        for wrong in ("", "rp-1-1", point_id(1, 1), point_id(2, 2)):
            with pytest.raises(NotFound):
                reader.find_point(wrong)
        with pytest.raises(NotFound):
            reader.disk_log("other", reader.points[0])


def test_refresh_without_news_is_two_requests(store: FaultyStore) -> None:
    writer, reader = owned(store), Catalog.open(store, "web")
    store.requests = 0
    reader.refresh()
    assert store.requests == 2, "the next version, and the next floor"
    store.requests = 0
    writer.append_cuts([make_cut(1)])
    assert store.requests == 2
    store.requests = 0
    reader.refresh()
    assert store.requests == 3
    assert len(reader.points) == 1


def test_earlier_owner_is_fenced_and_changes_nothing(store: FaultyStore) -> None:
    first = owned(store)
    first.append_cuts([make_cut(1)])
    second = owned(store)
    assert second.claim > first.claim
    before = store.list("items/web/catalog/")
    writes: list[Callable[[], None]] = [
        lambda: first.append_cuts([make_cut(2)]),
        lambda: first.seal(2),
        lambda: first.drop_points([point_id(1, 1)]),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            write()
    assert store.list("items/web/catalog/") == before
    second.append_cuts([make_cut(2)])
    assert [point.sequence for point in Catalog.open(store, "web").points] == [1, 2]


def test_owner_paused_between_read_and_create_is_fenced(store: FaultyStore) -> None:
    """The old owner's create is on its way while somebody else takes over and writes on."""
    first = owned(store)

    def pause(name: str, data: bytes) -> None:
        second = owned(store)
        second.append_cuts([make_cut(1, name="second")])
        with pytest.raises(LeewardError):
            store.create(name, data)

    store.next_create = pause
    with pytest.raises(Fenced):
        first.append_cuts([make_cut(1, name="first")])
    reader = Catalog.open(store, "web")
    assert [reader.vm_config(point) for point in reader.points] == [{"name": "second"}]


def test_who_resumes_takes_over_only_from_itself_or_from_nobody_known(
    store: FaultyStore,
) -> None:
    def take_over(owner: str, *, is_resumed: bool) -> None:
        Catalog.open(store, "web").take_over(1, owner=owner, is_resumed=is_resumed)

    owned(store)  # by an owner that did not say who it was
    take_over("one", is_resumed=True)
    take_over("one", is_resumed=True)
    with pytest.raises(Fenced, match="given to one"):
        take_over("two", is_resumed=True)
    take_over("two", is_resumed=False)
    with pytest.raises(Fenced, match="given to two"):
        take_over("one", is_resumed=True)


def test_older_epoch_is_fenced(store: FaultyStore) -> None:
    catalog = owned(store, epoch=2)
    with pytest.raises(Fenced):
        catalog.append_cuts([make_cut(1, epoch=1)])
    with pytest.raises(Fenced):
        catalog.seal(1)
    with pytest.raises(Fenced):
        Catalog.open(store, "web").take_over(1)


def test_seal_refuses_what_is_older_and_is_idempotent(store: FaultyStore) -> None:
    catalog = owned(store)
    catalog.append_cuts([make_cut(1), make_cut(2)])
    catalog.seal(2)
    version = catalog.version
    catalog.seal(2)
    assert (catalog.version, catalog.epoch) == (version, 2)
    with pytest.raises(Fenced):
        catalog.append_cuts([make_cut(3)])
    catalog.append_cuts([make_cut(1, epoch=2)])
    points = Catalog.open(store, "web").points
    assert [(point.epoch, point.sequence) for point in points] == [(1, 1), (1, 2), (2, 1)]
    assert [point.id for point in points] == sorted(point.id for point in points)


@pytest.mark.parametrize("sequence", [1, 2, 4])
def test_cuts_must_follow_each_other(store: FaultyStore, sequence: int) -> None:
    catalog = owned(store)
    catalog.append_cuts([make_cut(1), make_cut(2)])
    with pytest.raises(Conflict):
        catalog.append_cuts([make_cut(sequence)])
    with pytest.raises(InvalidRequest):
        catalog.append_cuts([make_cut(3, segments=(5,))])
    assert len(Catalog.open(store, "web").points) == 2


def test_lost_reply_of_an_append_that_took_place(store: FaultyStore) -> None:
    catalog = owned(store)
    store.next_create = store.create
    catalog.append_cuts([make_cut(1)])
    catalog.append_cuts([make_cut(2)])
    assert [point.sequence for point in Catalog.open(store, "web").points] == [1, 2]


def test_lost_request_can_be_repeated(store: FaultyStore) -> None:
    catalog = owned(store)
    store.next_create = lambda name, data: None
    with pytest.raises(Unavailable):
        catalog.append_cuts([make_cut(1)])
    catalog.append_cuts([make_cut(1)])
    assert len(Catalog.open(store, "web").points) == 1


def test_an_append_whose_directory_could_not_be_synced_is_not_taken_for_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record can be read although a power cut would take it away."""
    catalog = Catalog.open(create_file_store(tmp_path), "web")
    catalog.take_over(1)
    failures, synced = [1, 1, 1], list[str]()

    def sync(path: str) -> None:
        if failures and failures.pop():
            raise OSError(errno.EIO, "Input/output error")
        synced.append(str(path))

    monkeypatch.setattr(file_module, "_fsync_directory", sync)
    with pytest.raises(Unavailable):
        catalog.append_cuts([make_cut(1)])
    assert Catalog.open(create_file_store(tmp_path), "web").points, "it can be read"
    for _ in range(2):
        failures[:] = [1]
        with pytest.raises(Unavailable):
            catalog.refresh()
        assert synced == []
    catalog.refresh()
    assert synced == [str(tmp_path / "items/web/catalog")]
    assert [point.sequence for point in catalog.points] == [1]


def test_late_create_of_a_given_up_append_counts_once(store: FaultyStore) -> None:
    """The first try's request arrives when the second try is made: same cuts, other nonce."""
    catalog, late = owned(store), []
    store.next_create = lambda name, data: late.append((name, data))
    with pytest.raises(Unavailable):
        catalog.append_cuts([make_cut(1)])
    store.create(*late[0])
    catalog.append_cuts([make_cut(1)])
    assert len(catalog.points) == 1
    store.next_create = lambda name, data: late.append((name, data))
    with pytest.raises(Unavailable):
        catalog.append_cuts([make_cut(2)])
    store.create(*late[1])
    with pytest.raises(Conflict):
        catalog.append_cuts([make_cut(2), make_cut(3)])
    assert [point.sequence for point in catalog.points] == [1, 2]
    catalog.append_cuts([make_cut(3)])


def test_two_taking_over_at_once_get_different_claims(store: FaultyStore) -> None:
    claims: list[int] = []

    def race(name: str, data: bytes) -> None:
        claims.append(owned(store).claim)

    store.next_create = race
    claims.append(owned(store).claim)
    assert len(set(claims)) == 2


def test_opening_reads_a_snapshot_and_what_follows(store: FaultyStore) -> None:
    catalog = owned(store)
    sequences = range(1, 2 * SNAPSHOT_VERSIONS + 20)
    for sequence in sequences:
        catalog.append_cuts([make_cut(sequence)])
        if sequence > 50:
            catalog.drop_points([point_id(1, sequence - 50)])
    names = store.list(snapshots_prefix("web"))
    assert 1 <= len(names) <= 3
    store.requests = 0
    reopened = Catalog.open(store, "web")
    assert store.requests < SNAPSHOT_VERSIONS + 50
    assert reopened.points == catalog.points
    assert reopened.version == catalog.version
    assert [reopened.vm_config(point) for point in reopened.points] == [{"name": "web"}] * 50
    claim = reopened.take_over(1)
    reopened.append_cuts([make_cut(sequences[-1] + 1)])
    assert claim == 2


def test_a_state_too_big_for_a_snapshot_fails_no_append(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope_module, "BODY_MAX", 32 << 10)
    catalog = owned(store)
    tries: list[bytes] = []

    def seal(kind: bytes, *arguments: Any) -> bytes:
        tries.append(kind)
        return seal_envelope(kind, *arguments)

    monkeypatch.setattr(snapshots_module, "seal_envelope", seal)
    sequences = range(1, SNAPSHOT_VERSIONS + 20)
    for sequence in sequences:
        catalog.append_cuts([make_cut(sequence)])
    assert tries.count(KIND_SNAPSHOT) == 1, "making one in vain at every append takes its time"
    assert store.list(snapshots_prefix("web")) == []
    reopened = Catalog.open(store, "web")
    assert [point.sequence for point in reopened.points] == list(sequences)


def test_bad_snapshots_are_passed_over(store: FaultyStore) -> None:
    catalog = owned(store)
    for sequence in range(1, SNAPSHOT_VERSIONS + 10):
        catalog.append_cuts([make_cut(sequence)])
    good = store.list(snapshots_prefix("web"))[0]
    store.create(snapshot_name("web", SNAPSHOT_VERSIONS + 1), b"garbled")
    store.create(snapshot_name("web", SNAPSHOT_VERSIONS + 2), store.get(good))
    store.create(f"{snapshots_prefix('web')}other", b"")
    assert Catalog.open(store, "web").points == catalog.points
    store.delete(good)
    assert Catalog.open(store, "web").points == catalog.points


def test_garbled_record_is_never_skipped(store: FaultyStore) -> None:
    catalog = owned(store)
    catalog.append_cuts([make_cut(1)])
    name = record_name("web", 2)
    stored = store.get(name)
    for content in (b"", stored[:-1], b"\0" * 100, store.get(record_name("web", 1))):
        store.delete(name)
        store.create(name, content)
        with pytest.raises(SegmentCorrupt):
            Catalog.open(store, "web")


def test_record_of_another_item_is_corrupt(store: FaultyStore) -> None:
    owned(store)
    store.create(record_name("other", 1), store.get(record_name("web", 1)))
    with pytest.raises(SegmentCorrupt):
        Catalog.open(store, "other")


@pytest.mark.parametrize("seed", range(5))
def test_dropping_points_leaves_the_logs_of_the_others(store: FaultyStore, seed: int) -> None:
    source = random.Random(seed)
    catalog = owned(store)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    checkpoint, replay = "", tuple[int, ...]()
    for sequence in range(1, 61):
        segments = tuple(
            make_segment_id(1, sequence * 10 + index) for index in range(source.randrange(3))
        )
        replay += segments
        name = f"map-{sequence}" if source.random() < 0.2 else ""
        if name:
            checkpoint, replay = name, ()
        kind = Consistency.NONE if source.random() < 0.3 else Consistency.CRASH
        catalog.append_cuts(
            [make_cut(sequence, segments=segments, checkpoint=name, consistency=kind)]
        )
        if kind is Consistency.CRASH:
            expected[point_id(1, sequence)] = (checkpoint, replay)
        if source.random() < 0.3 and expected:
            gone = source.sample(sorted(expected), source.randrange(len(expected)))
            catalog.drop_points([*gone, "rp-unknown"])
            for point in gone:
                del expected[point]
        assert catalog.newest_disk_log("system") == (checkpoint, replay)
    for reader in (catalog, Catalog.open(store, "web")):
        assert {p.id: reader.disk_log("system", p) for p in reader.points} == expected
        assert {reader.vm_config(point)["name"] for point in reader.points} <= {"web"}


def test_a_compaction_replaces_a_disks_log_and_shrinks_the_state(store: FaultyStore) -> None:
    catalog = owned(store)
    for sequence in range(1, 101):
        checkpoint = f"map-{sequence}" if sequence % 10 == 0 else ""
        segment = make_segment_id(1, sequence)
        catalog.append_cuts([make_cut(sequence, segments=(segment,), checkpoint=checkpoint)])
    catalog.drop_points([point.id for point in catalog.points if point.sequence != 15])
    entries = catalog.state.disk_entries("system")
    # Segments stay until a compaction lists others in their place; of the maps only those from
    # which a kept cut is opened.
    assert [cut.sequence for cut, entry in entries if entry.segments] == list(range(1, 101))
    assert [entry.checkpoint for _, entry in entries if entry.checkpoint] == ["map-10", "map-100"]
    log = [
        LoggedCut(epoch=1, sequence=15, segments=(make_segment_id(1, 200),)),
        LoggedCut(epoch=1, sequence=100, segments=(make_segment_id(1, 201),), checkpoint="map"),
    ]
    catalog.compact("system", log)
    for reader in (catalog, Catalog.open(store, "web")):
        assert [cut.sequence for cut in reader.state.cuts] == [15, 100]
        assert reader.disk_log("system", point_id(1, 15)) == ("", (make_segment_id(1, 200),))
        assert reader.newest_disk_log("system") == ("map", ())
    catalog.free(objects=3, bytes=100)
    assert Catalog.open(store, "web").points == catalog.points


def test_a_log_with_cuts_that_are_not_there_is_corrupt(store: FaultyStore) -> None:
    catalog = owned(store)
    catalog.append_cuts([make_cut(1, segments=(make_segment_id(1, 1),))])
    with pytest.raises(SegmentCorrupt):
        catalog.compact("system", [LoggedCut(epoch=1, sequence=2)])
    assert Catalog.open(store, "web").version == 2


def test_snapshots_that_do_not_list_every_segment_are_passed_over(store: FaultyStore) -> None:
    catalog = owned(store)
    for sequence in range(1, SNAPSHOT_VERSIONS + 10):
        catalog.append_cuts([make_cut(sequence)])
    (name,) = store.list(snapshots_prefix("web"))
    _, state = parse_envelope(store.get(name), KIND_SNAPSHOT, State)
    store.delete(name)
    store.create(name, seal_envelope(KIND_SNAPSHOT, 1, replace(state, is_complete=False, kept=())))
    assert Catalog.open(store, "web").points == catalog.points
