"""A source VM's writes as a model, and the stores they travel through.

Owns: which bytes each cut must give. Must not know: how cuts are stored. Used by the tests of the
uploader, the processor and the whole path.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tests.simulation.faults import FaultPlan, FaultyStore

from leeward.core.clock import Clock, SystemClock
from leeward.core.errors import NotFound
from leeward.mobility.cut import CutDisk, SweepRead, build_cut
from leeward.mobility.journal import KIND_WRITE, KIND_ZEROES, RECORD_DTYPE
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import Consistency, RecoveryPoint
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.replica.catalog import Catalog
from leeward.replica.checkpoint import read_checkpoint_head
from leeward.replica.disk import open_point
from leeward.replica.layout import segment_name
from leeward.replica.manifest import applied_prefix, parse_sequence

ITEM = "web-1"
EPOCH = 1
SECTOR = 512
DISKS = (CutDisk("system", 160 * SECTOR + 64 * 1024), CutDisk("data", 64 * 1024 + 3 * SECTOR))
"""The second ends inside a 4 KiB block."""
WRITES = 6
URLS = {"cache": "memory://cache", "system": "memory://first", "data": "memory://second"}


@dataclass
class Source:
    """A VM that writes at random. contents: time of a cut → both disks' bytes then."""

    seed: int
    contents: dict[int, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._images = [bytearray(disk.size_bytes) for disk in DISKS]
        self._time_ns = 1_700_000_000_000_000_000

    def next_cut(
        self,
        *,
        consistency: Consistency = Consistency.CRASH,
        ranges: Sequence[tuple[int, int, int]] = (),
    ) -> Cut:
        """Write, and return the cut that holds it all. ranges: (disk, offset, length), else random
        ones."""
        records: list[tuple[int, ...]] = []
        buffer = bytearray()
        reads: list[SweepRead] = []
        for disk, offset, length in ranges or [self._range() for _ in range(WRITES)]:
            image = self._images[disk]
            kind = self._random.choice((KIND_WRITE, KIND_WRITE, KIND_WRITE, KIND_ZEROES))
            data = self._random.randbytes(length) if kind == KIND_WRITE else bytes(length)
            image[offset : offset + length] = data
            if self._random.random() < 0.2:
                reads.append(SweepRead(disk, offset, length, len(records), data))
                continue
            records.append((kind, disk, 0, length, offset, 0, len(buffer), 0))
            if kind == KIND_WRITE:
                buffer += data
        self._time_ns += 1_000_000_000
        self.contents[self._time_ns] = tuple(bytes(image) for image in self._images)
        changes = build_cut(
            np.array(records, dtype=RECORD_DTYPE),
            first_position=0,
            buffer_of=lambda _: bytes(buffer),
            sweep=reads,
            disks=DISKS,
        )
        return Cut(
            disks=changes,
            time_ns=self._time_ns,
            consistency=consistency,
            vm_config={"name": ITEM, "cut": len(self.contents)},
        )

    def step_clock(self, seconds: int) -> None:
        """The source's clock is set forward or back; no two cuts have the same time."""
        self._time_ns += seconds * 1_000_000_000 + self._random.randint(1, 1000)

    def whole_cut(self, *, is_swept: bool = True) -> Cut:
        """Return a cut that holds all of every disk, as a full sweep's are together; or nothing."""
        self._time_ns += 1_000_000_000
        self.contents[self._time_ns] = tuple(bytes(image) for image in self._images)
        reads = [
            SweepRead(index, 0, disk.size_bytes, 0, bytes(self._images[index]))
            for index, disk in enumerate(DISKS if is_swept else ())
        ]
        changes = build_cut(
            np.array([], dtype=RECORD_DTYPE),
            first_position=0,
            buffer_of=lambda _: b"",
            sweep=reads,
            disks=DISKS,
        )
        return Cut(
            disks=changes,
            time_ns=self._time_ns,
            consistency=Consistency.CRASH,
            vm_config={"name": ITEM, "cut": len(self.contents)},
        )

    def _range(self) -> tuple[int, int, int]:
        disk = self._random.randrange(2)
        sectors = DISKS[disk].size_bytes // SECTOR
        if self._random.random() < 0.5:
            count = self._random.randint(1, 5)
        else:
            count = 8 * self._random.randint(1, 6)
        first = self._random.randrange(sectors - count)
        return disk, first * SECTOR, count * SECTOR


@dataclass
class World:
    """The stores of one item, and processes that see them through fault plans."""

    stores: dict[str, MemoryStore] = field(
        default_factory=lambda: {url: MemoryStore(url) for url in URLS.values()}
    )

    @property
    def cache(self) -> MemoryStore:
        return self.stores[URLS["cache"]]

    @property
    def catalog_store(self) -> MemoryStore:
        return self.stores[URLS["system"]]

    def spec(self, epoch: int = EPOCH) -> ProcessingSpec:
        return ProcessingSpec(
            item_id=ITEM,
            epoch=epoch,
            cache_url=URLS["cache"],
            catalog_url=URLS["system"],
            replicas=tuple(
                ReplicaDisk(disk=disk.name, size_bytes=disk.size_bytes, target_url=URLS[disk.name])
                for disk in DISKS
            ),
        )

    @contextmanager
    def uploader(self, plan: FaultPlan | None = None, epoch: int = EPOCH) -> Iterator[Uploader]:
        store = FaultyStore(self.cache, plan or FaultPlan(), "cache")
        uploader = Uploader(store, ITEM, epoch, workers=1)
        try:
            yield uploader
        finally:
            uploader.close()

    @contextmanager
    def processor(
        self, plan: FaultPlan | None = None, epoch: int = EPOCH, clock: Clock | None = None
    ) -> Iterator[ItemProcessor]:
        plan = plan or FaultPlan()

        def open_store(url: str) -> ObjectStore:
            return FaultyStore(self.stores[url], plan, url.removeprefix("memory://"))

        processor = ItemProcessor(self.spec(epoch), open_store, clock or SystemClock(), copiers=1)
        try:
            yield processor
        finally:
            processor.close()

    _catalog: Catalog | None = None

    def catalog(self) -> Catalog:
        """Return the catalog as it is now, the same object each time."""
        if self._catalog is None:
            self._catalog = Catalog.open(self.catalog_store, ITEM)
        self._catalog.refresh()
        return self._catalog

    def points(self) -> tuple[RecoveryPoint, ...]:
        return self.catalog().points

    def replica_objects(self) -> dict[tuple[str, str], int]:
        """Return the sizes of all segments and maps in the target, by (URL, name)."""
        return {
            (URLS[disk.name], name): size
            for disk in DISKS
            for name, size in self.stores[URLS[disk.name]].sizes(f"items/{ITEM}/disks/").items()
        }

    def needed_objects(self) -> set[tuple[str, str]]:
        """Return those that the catalog and the maps it names refer to."""
        needed: set[tuple[str, str]] = set()
        for cut in self.catalog().state.cuts:
            for entry in cut.disks:
                url = URLS[entry.disk]
                needed |= {(url, segment_name(ITEM, entry.disk, each)) for each in entry.segments}
                if entry.checkpoint:
                    head = read_checkpoint_head(self.stores[url], entry.checkpoint)
                    objects = {at.object_name for at in head.pages.values()}
                    needed |= {(url, name) for name in objects | {entry.checkpoint}}
        return needed

    def objects(self) -> set[tuple[str, str]]:
        return {(url, name) for url, store in self.stores.items() for name in store.list("")}

    def contents(self, point: RecoveryPoint) -> tuple[bytes, ...]:
        """Return both disks' bytes at a point, read from the target's stores alone."""
        stores = {disk.name: self.stores[URLS[disk.name]] for disk in DISKS}
        disks = open_point(self.catalog_store, stores, ITEM, point.id)
        try:
            return tuple(disks[disk.name].read(0, disk.size_bytes) for disk in DISKS)
        finally:
            for disk in disks.values():
                disk.close()

    def check(self, source: Source, *, known: Sequence[RecoveryPoint] = ()) -> None:
        """Assert that every listed point is whole and right, and that what the source was told is
        applied is in the catalog. known: points verified before, not read again."""
        catalog = self.catalog()
        for point in catalog.points:
            if point not in known:
                assert self.contents(point) == source.contents[point.time_ns], point
        newest = catalog.newest_cut
        for name in self.cache.list(applied_prefix(ITEM)):
            assert newest is not None, name
            assert parse_sequence(name) <= newest.position, name


class HandClock(SystemClock):
    """Stands still until it is set. Nobody sleeps by it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        pass


def drain(processor: ItemProcessor) -> None:
    """Step until nothing waits."""
    for _ in range(1000):
        if processor.step().idle:
            return
    raise NotFound("the processor never comes to rest")
