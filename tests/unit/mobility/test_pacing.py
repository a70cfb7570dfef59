"""A limit holds on average, by the time of day; the store tells how many requests at once pay."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.core.units import MIB
from leeward.mobility.cut import DiskChanges, SegmentContent
from leeward.mobility.pacing import AT_ONCE_MAX, AT_ONCE_START, Concurrency, Throttle
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import BandwidthLimit, Consistency, bandwidth_at
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.replica.segment import BLOCKS, EXTENT_DTYPE


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_limit_holds_on_average() -> None:
    clock = FakeClock()
    throttle = Throttle(lambda: MIB, clock)
    began = clock.now
    for _ in range(100):
        throttle.take(MIB // 2)
    assert 48 <= clock.now - began <= 51


def test_idle_time_is_no_credit_beyond_a_second() -> None:
    clock = FakeClock()
    throttle = Throttle(lambda: MIB, clock)
    clock.sleep(3600)
    began = clock.now
    for _ in range(10):
        throttle.take(MIB)
    assert clock.now - began >= 8


def test_a_limit_that_ends_lets_pass_who_waits() -> None:
    clock = FakeClock()
    throttle = Throttle(lambda: 1 if clock.now < 200 else 0, clock)
    throttle.take(MIB)
    throttle.take(MIB)
    assert 200 <= clock.now < 201


def test_who_waits_when_uploading_ends_is_told() -> None:
    throttle = Throttle(lambda: 1, FakeClock())
    throttle.take(MIB)
    throttle.end()
    with pytest.raises(Unavailable):
        throttle.take(1)


def test_the_first_limit_that_speaks_of_a_time_counts() -> None:
    limits = (
        BandwidthLimit(bytes_per_second=5, start="08:00", end="18:00"),
        BandwidthLimit(bytes_per_second=0, start="22:30", end="06:00"),
        BandwidthLimit(bytes_per_second=50),
    )
    times = {"07:59": 50, "08:00": 5, "17:59": 5, "18:00": 50, "22:30": 0, "00:00": 0, "06:00": 50}
    for time, expected in times.items():
        hour, minute = map(int, time.split(":"))
        assert bandwidth_at(limits, hour * 60 + minute) == expected, time
    assert bandwidth_at((), 0) == 0
    with pytest.raises(InvalidRequest):
        bandwidth_at((BandwidthLimit(bytes_per_second=1, start="8:00"),), 0)


def settle(cost_of: dict[int, float], rounds: int = 200) -> tuple[int, int]:
    """Return the least and the most at once, in the second half, against a store in which a
    request takes `cost_of` the number of requests in flight."""
    clock = FakeClock()
    concurrency = Concurrency(clock)
    concurrency._waiting.append(object())
    seen = []
    for _ in range(rounds):
        at_once = concurrency.limit
        clock.sleep(cost_of[at_once])
        for _ in range(at_once):
            concurrency.took(cost_of[at_once], MIB)
        seen.append(at_once)
    return min(seen[rounds // 2 :]), max(seen[rounds // 2 :])


def test_a_store_that_is_only_far_away_gets_many_at_once() -> None:
    assert settle(dict.fromkeys(range(1, 9), 0.2)) == (AT_ONCE_MAX, AT_ONCE_MAX)


def test_a_store_that_serves_one_after_the_other_gets_few() -> None:
    _, most = settle({n: 0.05 * n for n in range(1, 9)})
    assert most <= 4


def test_a_store_that_fails_gets_fewer_and_more_again() -> None:
    clock = FakeClock()
    concurrency = Concurrency(clock)
    concurrency._waiting.append(object())
    for _ in range(5):
        clock.sleep(2)
        concurrency.failed()
    assert concurrency.limit == 1
    for _ in range(100):
        concurrency.took(0.1, MIB)
    assert concurrency.limit == AT_ONCE_MAX


class FarStore(MemoryStore):
    """Each object takes a while to be stored, however many are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = self.most = 0
        self._counting = threading.Lock()

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        with self._counting:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        threading.Event().wait(0.02)
        super().create(name, data)
        with self._counting:
            self.in_flight -= 1


def cut_of(segments: int) -> Cut:
    extents = np.array([(0, 1, 0)], EXTENT_DTYPE)
    content = SegmentContent(
        unit=BLOCKS, extents=extents, data=(memoryview(bytes(BLOCKS)),), data_bytes=BLOCKS
    )
    disk = DiskChanges(
        disk="sys", size_bytes=1 << 30, segments=(content,) * segments, bytes_written=BLOCKS
    )
    return Cut(disks=(disk,), time_ns=1, consistency=Consistency.CRASH, vm_config={})


def test_an_uploader_sends_more_at_once_to_a_store_that_is_far_away() -> None:
    store = FarStore()
    uploader = Uploader(store, "item-1", 1)
    try:
        assert uploader.concurrency.limit == AT_ONCE_START
        for _ in range(3):
            uploader.upload(cut_of(60))
        assert store.most > AT_ONCE_START
        assert uploader.concurrency.limit > AT_ONCE_START
    finally:
        uploader.close()
