"""Patience and read-ahead, against devices in memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from leeward.core.errors import DataIntegrity, NotFound, Unavailable
from leeward.export.config import ExportConfig
from leeward.export.patience import Patience, PatientDevice
from leeward.export.points import Nobody, PointExports
from leeward.export.read_ahead import (
    BLOCK_BYTES,
    CACHE_BYTES,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    ReadAhead,
)
from leeward.export.reopening import OpenedDisk
from leeward.protocol.fabric import ReplicaDisk

SIZE = 32 << 20
CONTENT = random.Random(5).randbytes(SIZE)


class Disk:
    """Notes what is read of it; fails with `failures` first."""

    size_bytes = SIZE

    def __init__(self, failures: list[Exception] | None = None) -> None:
        self.reads: list[tuple[int, int]] = []
        self.failures = failures or []
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self.failures:
                raise self.failures.pop(0)
            self.reads.append((offset, length))
        return CONTENT[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        if self.failures:
            raise self.failures.pop(0)
        return [(length, True)]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_a_store_that_is_away_is_waited_for() -> None:
    disk = Disk([Unavailable("away"), Unavailable("away")])
    answered: list[int] = []
    device = PatientDevice(disk, Patience(), lambda offset, length: answered.append(offset))
    assert device.read(3, 5) == CONTENT[3:8]
    assert answered == [3]
    disk.failures = [Unavailable("away")]
    assert device.extents(0, 4096) == [(4096, True)]


def test_rotten_data_is_not_waited_for() -> None:
    device = PatientDevice(Disk([DataIntegrity("rot")]), Patience())
    with pytest.raises(DataIntegrity):
        device.read(0, 1)


def test_giving_up_ends_a_wait() -> None:
    patience = Patience()
    device = PatientDevice(Disk([Unavailable("away")] * 1000), patience)
    threading.Timer(0.05, patience.give_up).start()
    with pytest.raises(Unavailable):
        device.read(0, 1)


def test_a_sequential_reader_finds_its_blocks_fetched(executor: ThreadPoolExecutor) -> None:
    disk = Disk()
    device = ReadAhead(disk, executor)
    step = 64 << 10
    for offset in range(0, SIZE, step):
        assert device.read(offset, step) == CONTENT[offset : offset + step]
    ahead = [read for read in disk.reads if read[1] == BLOCK_BYTES]
    assert len(ahead) == len(set(ahead))
    assert len(disk.reads) - len(ahead) <= BLOCK_BYTES // step * 2  # those that began the stream
    assert sum(length for _, length in disk.reads) <= SIZE + WINDOW_BYTES_MAX


def test_a_random_reader_fetches_nothing_else(executor: ThreadPoolExecutor) -> None:
    disk = Disk()
    device = ReadAhead(disk, executor)
    wanted = [(offset, 4096) for offset in range(0, SIZE, 2 << 20)]
    random.Random(1).shuffle(wanted)
    for offset, length in wanted:
        assert device.read(offset, length) == CONTENT[offset : offset + length]
    assert sorted(disk.reads) == sorted(wanted)


def test_blocks_fetched_ahead_are_bounded(executor: ThreadPoolExecutor) -> None:
    device = ReadAhead(Disk(), executor)
    for offset in range(0, SIZE, 1 << 20):
        device.read(offset, 1 << 20)
    assert len(device._blocks) * BLOCK_BYTES <= CACHE_BYTES


def test_a_failed_fetch_is_read_again(executor: ThreadPoolExecutor) -> None:
    disk = Disk()
    device = ReadAhead(disk, executor)
    device.read(0, BLOCK_BYTES)
    disk.failures = [Unavailable("away")] * 4
    with suppress(Unavailable):
        for offset in range(BLOCK_BYTES, SIZE, BLOCK_BYTES):
            device.read(offset, BLOCK_BYTES)
    assert len(disk.failures) < 4
    disk.failures = []
    for offset in range(0, SIZE, 77_777):
        length = min(77_777, SIZE - offset)
        assert device.read(offset, length) == CONTENT[offset : offset + length]


def _exports(executor: ThreadPoolExecutor, results: list[object]) -> PointExports:
    def close() -> None:
        results.append("closed")

    def opener(_: ExportConfig) -> dict[str, OpenedDisk]:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return {"d": OpenedDisk(Disk(), Disk(), close)}

    config = ExportConfig(
        export_id="x",
        socket="/x",
        catalog_url="memory://x",
        item_id="i",
        point_id="p",
        replicas=(ReplicaDisk(disk="d", size_bytes=SIZE, target_url="memory://x"),),
    )
    return PointExports(config, opener, patience=Patience(), executor=executor, watcher=Nobody())


def test_a_point_is_opened_once_and_waited_for(executor: ThreadPoolExecutor) -> None:
    results: list[object] = [Unavailable("away"), "opened"]
    exports = _exports(executor, results)
    assert list(exports) == ["d"]
    assert exports["d"] is exports["d"]
    assert exports["d"].size_bytes == SIZE
    with pytest.raises(KeyError):
        exports["e"]
    exports.close()
    assert results == ["closed"]


def test_a_point_that_is_gone_is_said(executor: ThreadPoolExecutor) -> None:
    with pytest.raises(NotFound):
        _exports(executor, [NotFound("no such point")])["d"]


def test_what_is_announced_is_fetched_through_the_bulk_device(
    executor: ThreadPoolExecutor,
) -> None:
    disk, bulk = Disk(), Disk()
    device = ReadAhead(disk, executor, bulk=bulk)
    for offset in range(0, SIZE, 1 << 20):
        device.expect(offset, 1 << 20)
        assert device.read(offset, 1 << 20) == CONTENT[offset : offset + (1 << 20)]
    assert disk.reads == []
    assert sorted(bulk.reads) == [(at, BLOCK_BYTES) for at in range(0, SIZE, BLOCK_BYTES)]
    device.expect(0, SIZE)  # more than is worth fetching at once
    assert len(device._blocks) * BLOCK_BYTES <= CACHE_BYTES


def test_the_window_grows_only_for_a_reader_that_catches_up(executor: ThreadPoolExecutor) -> None:
    disk = Disk()
    device = ReadAhead(disk, executor)
    step = 128 << 10
    for offset in range(0, 4 << 20, step):
        device.read(offset, step)
        _wait_idle(device)
    ahead = max(offset + length for offset, length in disk.reads) - (4 << 20)
    assert ahead <= 2 * WINDOW_BYTES_MIN


def _wait_idle(device: ReadAhead) -> None:
    for block in list(device._blocks.values()):
        block.data.result()
