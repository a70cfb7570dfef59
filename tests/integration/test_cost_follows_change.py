"""Invariant 6: cost follows change, not disk size: on the wire, and when a point is opened."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.replication_rig import Rig, replication_rig

from leeward.core.units import BLOCK, GIB, KIB, MIB, TIB
from leeward.model.recovery import ReplicationState
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.object_store.store import Buffer, ObjectStore
from leeward.replica.disk import open_point
from leeward.replica.synthetic import synthetic_block, write_full_item

pytestmark = pytest.mark.integration

DISK = "data"
BLOCKS_WRITTEN = 400
TIMES_WRITTEN = 3
SEGMENT_COUNT = 4


@dataclass(frozen=True)
class Wire:
    """Bytes put into the cache: for an empty disk's initial replication, and for one cut."""

    initial: int
    cut: int


def shipped(rig: Rig, first: int, last: int) -> int:
    """Return the bytes of segments and manifests of the cuts [first, last]."""
    store = rig.store._store
    names = [
        name
        for kind in ("cuts", "segments")
        for name in store.list(f"items/{rig.spec.item_id}/{kind}/")
    ]
    wanted = [n for n in names if first <= int(n.rpartition("/")[2].split("-")[1]) <= last]
    return sum(store.size(name) for name in wanted)


def write_blocks(rig: Rig, size_bytes: int) -> None:
    """Write random blocks all over the disk, each several times; they cannot be compressed."""
    rng = random.Random(7)
    places = rng.sample(range(size_bytes // BLOCK), BLOCKS_WRITTEN)
    with NbdClient.connect(rig.daemon.nbd_socket, DISK) as client:
        for _ in range(TIMES_WRITTEN):
            for place in places:
                client.write(place * BLOCK, rng.randbytes(BLOCK))


def wire_bytes(size_bytes: int) -> Wire:
    with replication_rig(disks={DISK: size_bytes}) as rig:
        rig.start()
        rig.wait_state(ReplicationState.STREAMING, seconds=40)
        initial = rig.wait_point(seconds=40)
        rig.drop_agent()  # the tap goes on: whoever comes next makes one cut of all of it
        before = rig.last_sequence()
        write_blocks(rig, size_bytes)
        rig.start()
        last = rig.wait_point(seconds=40)
        return Wire(shipped(rig, 1, initial), shipped(rig, before + 1, last))


def test_invariant_6_wire_bytes_follow_blocks_written_not_disk_size() -> None:
    small, large = wire_bytes(GIB), wire_bytes(64 * GIB)
    unique = BLOCKS_WRITTEN * BLOCK
    for wire in (small, large):
        assert unique <= wire.cut <= 1.05 * unique
        assert wire.initial < 16 * KIB
    assert large.cut == pytest.approx(small.cut, rel=0.02)


class CountingStore:
    """A store that counts what is read from it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    @property
    def url(self) -> str:
        return self._store.url

    def _count(self, data: bytes) -> bytes:
        with self._lock:
            self.bytes_read += len(data)
            self.requests += 1
        return data

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._store.create(name, data)

    def get(self, name: str) -> bytes:
        return self._count(self._store.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._count(self._store.get_range(name, offset, length))

    def size(self, name: str) -> int:
        self._count(b"")
        return self._store.size(name)

    def list(self, prefix: str) -> list[str]:
        names = self._store.list(prefix)
        self._count("\n".join(names).encode())
        return names

    def sizes(self, prefix: str) -> dict[str, int]:
        sizes = self._store.sizes(prefix)
        self._count("\n".join(sizes).encode())
        return sizes

    def delete(self, name: str) -> None:
        self._store.delete(name)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="lw"))
    yield path
    shutil.rmtree(path)


@dataclass(frozen=True)
class Cost:
    """Bytes and requests to open a point, and to read one block of it as well."""

    opened: int
    read: int
    requests: int


def open_and_read(directory: Path, size_bytes: int) -> Cost:
    store = CountingStore(create_file_store(directory / str(size_bytes)))
    point = write_full_item(
        store, {DISK: store}, "item-1", {DISK: size_bytes}, segment_count=SEGMENT_COUNT
    )
    store.bytes_read = store.requests = 0
    disk = open_point(store, {DISK: store}, "item-1", point.id)[DISK]
    opened = store.bytes_read
    block = size_bytes // BLOCK - 5
    assert disk.read(block * BLOCK, BLOCK) == synthetic_block(DISK, block, SEGMENT_COUNT)
    cost = Cost(opened, store.bytes_read, store.requests)
    disk.close()
    return cost


def test_invariant_6_opening_a_point_reads_the_same_of_any_disk(directory: Path) -> None:
    small, large = open_and_read(directory, GIB), open_and_read(directory, TIB)
    assert large.opened <= 256 * KIB
    assert large.read <= MIB
    assert large.read - large.opened <= 1.1 * (small.read - small.opened)
    assert large.requests <= small.requests + 2
