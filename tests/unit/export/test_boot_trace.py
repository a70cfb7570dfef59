"""Boot traces: what counts as read, how boots add up, what is fetched from them, and in which ways
they may be wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeward.core.errors import LeewardError, SegmentCorrupt, Unavailable
from leeward.core.units import CHUNK, KIB, MIB
from leeward.export import recording
from leeward.export.prefetch import READ_BYTES_MAX, Prefetch, plan_reads
from leeward.export.recording import BootRecorder, TraceKeeper
from leeward.object_store.memory import MemoryStore
from leeward.replica.boot_trace import (
    CHUNKS_MAX,
    NO_TRACE,
    BootTrace,
    chunks_of,
    merge_boot,
    read_trace,
    sealing_of,
    write_trace,
)
from leeward.replica.catalog import Catalog
from leeward.replica.envelope import KIND_TRACE, seal_envelope
from leeward.replica.layout import trace_name
from leeward.replica.sealing import Key, KeyedStore, keyring

KEY = Key(b"k" * 32)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def chunks(trace: BootTrace, disk: str = "d") -> list[int]:
    return list(chunks_of(trace.disks.get(disk, ())))


def test_the_first_minute_is_recorded_in_order() -> None:
    clock = Clock()
    recorder = BootRecorder(clock=clock)
    recorder.note("d", 5 * CHUNK + 10, CHUNK)
    recorder.note("d", 0, 512)
    clock.now += recording.RECORD_SECONDS - 1
    recorder.note("d", 5 * CHUNK, 512)
    recorder.note("e", 9 * CHUNK, 1)
    clock.now += 2
    recorder.note("d", 7 * CHUNK, 512)
    assert recorder.chunks() == {"d": (5, 6, 0), "e": (9,)}
    assert recorder.is_over


def test_a_successor_of_a_killed_server_records_the_rest_of_the_minute() -> None:
    clock = Clock()
    recorder = BootRecorder(clock=clock)
    recorder.begin(recording.RECORD_SECONDS - 1)
    recorder.note("d", 0, 512)
    clock.now += 2
    recorder.note("d", CHUNK, 512)
    assert recorder.chunks() == {"d": (0,)}


def test_what_hydration_reads_is_left_out() -> None:
    recorder = BootRecorder(clock=Clock())
    recorder.announce("d", 4 * CHUNK, 4 * CHUNK)
    recorder.note("d", 4 * CHUNK, 2 * CHUNK)
    recorder.note("e", 4 * CHUNK, 512)
    recorder.note("d", 7 * CHUNK, 2 * CHUNK)  # reaches beyond what was announced: the guest's own
    assert recorder.chunks() == {"e": (4,), "d": (7, 8)}


def test_what_boots_do_without_is_forgotten_after_some_of_them() -> None:
    first = merge_boot(NO_TRACE, "1", {"d": [3, 4, 9]})
    assert first.disks == {"d": [(3, 2, 0), (9, 1, 0)]}
    second = merge_boot(first, "2", {"d": [9, 20]})
    assert chunks(second) == [9, 20, 3, 4]
    assert merge_boot(second, "2", {"d": [9, 20, 21]}).disks["d"][-1] == (3, 2, 1)  # the same boot
    third = merge_boot(second, "3", {"d": [9, 20]})
    assert chunks(merge_boot(third, "4", {"d": [9, 20]})) == [9, 20]
    assert chunks(merge_boot(third, "4", {"d": [4]})) == [4, 9, 20]


def test_a_trace_is_bounded() -> None:
    trace = merge_boot(NO_TRACE, "1", {"d": range(0, 4 * CHUNKS_MAX, 2)})
    assert len(chunks(trace)) == CHUNKS_MAX
    store = MemoryStore()
    write_trace(store, "item", 1, trace)
    assert read_trace(store, "item") == trace


def test_the_newest_trace_is_kept_alone() -> None:
    store = MemoryStore()
    assert read_trace(store, "item") == NO_TRACE
    for number in range(3):
        write_trace(store, "item", 1, merge_boot(NO_TRACE, str(number), {"d": [number]}))
    assert chunks(read_trace(store, "item")) == [2]
    assert store.list("items/item/") == [trace_name("item", 3)]


def test_the_trace_of_an_encrypted_item_is_sealed() -> None:
    store = MemoryStore()
    ring = keyring([KEY], KEY)
    Catalog.open(KeyedStore(store, ring), "item").take_over(1, disk_urls={})
    assert sealing_of(KeyedStore(store, keyring([KEY])), "item") == (1, KEY.id)
    write_trace(KeyedStore(store, ring), "item", 1, merge_boot(NO_TRACE, "boot-a", {"d": [7]}))
    assert b"boot-a" not in store.get(trace_name("item", 1))
    assert chunks(read_trace(KeyedStore(store, ring), "item")) == [7]
    with pytest.raises(LeewardError):
        read_trace(store, "item")


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 0, 0)],
        [(-1, 1, 0)],
        [(0, 1, -1)],
        [(0, CHUNKS_MAX + 1, 0)],
        [(1 << 40, 1, 0)],
        [(n, 1, 0) for n in range(20000)],
        [(0, 1)],
        "runs",
    ],
)
def test_a_trace_that_cannot_be_is_refused(runs: object) -> None:
    store = MemoryStore()
    body = {"boot": "x", "disks": {"d": runs}}
    store.create(trace_name("item", 1), seal_envelope(KIND_TRACE, 1, body))
    with pytest.raises(SegmentCorrupt):
        read_trace(store, "item")


@given(
    st.lists(st.integers(-5, 400), max_size=300),
    st.integers(1, 300 * CHUNK),
)
def test_reads_cover_the_chunks_and_little_else(wanted: list[int], size: int) -> None:
    reads = list(plan_reads(wanted, size))
    covered: set[int] = set()
    for offset, length in reads:
        assert 0 < length <= READ_BYTES_MAX
        assert offset + length <= size
        covered |= set(range(offset // CHUNK, -(-(offset + length) // CHUNK)))
    within = {chunk for chunk in wanted if 0 <= chunk * CHUNK < size}
    assert within <= covered
    assert len(covered) <= 2 * len(within)


class Disk:
    size_bytes = 64 * MIB

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.failure: LeewardError | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            self.reads.append((offset, length))
        return b""

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_a_trace_is_fetched(executor: ThreadPoolExecutor) -> None:
    disk = Disk()
    Prefetch(disk, range(0, 512, 4), executor).start()
    _wait_until(lambda: len(disk.reads) == 128)
    assert {offset for offset, _ in disk.reads} == {n * CHUNK for n in range(0, 512, 4)}


def test_a_place_that_cannot_be_read_stops_nothing_else(executor: ThreadPoolExecutor) -> None:
    class Rotten(Disk):
        def read(self, offset: int, length: int) -> bytes:
            if offset == 4 * CHUNK:
                raise SegmentCorrupt("rot")
            return super().read(offset, length)

    disk = Rotten()
    Prefetch(disk, range(0, 512, 4), executor).start()
    _wait_until(lambda: len(disk.reads) == 127)


def test_a_store_that_is_away_is_waited_for_and_an_end_ends_it(
    executor: ThreadPoolExecutor,
) -> None:
    disk = Disk()
    disk.failure = Unavailable("away")
    prefetch = Prefetch(disk, range(0, 512, 4), executor)
    prefetch.start()
    time.sleep(0.05)
    disk.failure = None
    _wait_until(lambda: len(disk.reads) == 128)
    disk.failure = Unavailable("away")
    endless = Prefetch(disk, range(0, 512, 4), executor)
    endless.start()
    endless.stop()


def test_what_was_recorded_is_stored_in_time_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "STORE_AFTER_SECONDS", (0.05, 60.0))
    recorder = BootRecorder()
    stored: list[dict[str, Sequence[int]]] = []
    keeper = TraceKeeper(recorder, stored.append)
    recorder.note("d", 0, 64 * KIB)
    keeper.begin()
    keeper.begin()
    _wait_until(lambda: stored == [{"d": (0,)}])
    keeper.flush()
    assert len(stored) == 1  # nothing new
    recorder.note("d", CHUNK, 1)
    keeper.flush()
    assert stored[1:] == [{"d": (0, 1)}]


def test_a_trace_that_cannot_be_stored_is_no_trouble() -> None:
    recorder = BootRecorder()

    def fail(chunks: object) -> None:
        raise Unavailable("away")

    keeper = TraceKeeper(recorder, fail)
    recorder.note("d", 0, 1)
    keeper.flush()


def _wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
