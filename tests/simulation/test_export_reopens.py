"""An export that could not renew its pin finds its point's data where compaction has moved it.

Its host was cut off from the store for longer than a pin lasts, or stood still, while the worker
went on: what it was reading has been deleted, its recovery point, held, is listed still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from tests.simulation.readers import FullStore
from tests.simulation.test_compaction import Thinned, short_distances  # noqa: F401
from tests.simulation.world import DISKS, ITEM, URLS

from leeward.core.errors import ObjectMissing, Unavailable
from leeward.export.config import ExportConfig
from leeward.export.patience import Patience
from leeward.export.points import Nobody, PointExports
from leeward.export.reopening import OpenedDisk
from leeward.model.recovery import RecoveryPoint
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ReplicaDisk
from leeward.replica.disk import open_point


@dataclass
class Host:
    """A host with an export of one of the item's points; while it is cut off it renews no pin."""

    item: Thinned
    point: RecoveryPoint
    opened: list[Mapping[str, OpenedDisk]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    is_cut_off: bool = True

    def open(self, config: ExportConfig) -> Mapping[str, OpenedDisk]:
        if self.failures:
            raise self.failures.pop(0)
        store = self.item.world.catalog_store
        disks = open_point(
            FullStore(store) if self.is_cut_off else store,
            {disk.name: self.item.world.stores[URLS[disk.name]] for disk in DISKS},
            ITEM,
            config.point_id,
            cache_bytes=0,
        )
        self.opened.append(
            {name: OpenedDisk(disk, disk, close=disk.close) for name, disk in disks.items()}
        )
        return self.opened[-1]

    def read(self, exports: PointExports) -> tuple[bytes, ...]:
        return tuple(bytes(exports[disk.name].read(0, disk.size_bytes)) for disk in DISKS)

    @property
    def content(self) -> tuple[bytes, ...]:
        return self.item.source.contents[self.point.time_ns]


@pytest.fixture
def host() -> Host:
    item = Thinned(5)
    return Host(item, item.world.points()[1])


@pytest.fixture
def processor(host: Host) -> Iterator[ItemProcessor]:
    with host.item.world.processor(clock=host.item.clock) as processor:
        yield processor


@pytest.fixture
def exports(host: Host) -> Iterator[PointExports]:
    replicas = tuple(
        ReplicaDisk(disk=disk.name, size_bytes=disk.size_bytes, target_url=URLS[disk.name])
        for disk in DISKS
    )
    config = ExportConfig(
        export_id="e",
        socket="",
        catalog_url=URLS["system"],
        item_id=ITEM,
        point_id=host.point.id,
        replicas=replicas,
    )
    with ThreadPoolExecutor(2) as executor:
        exports = PointExports(
            config, host.open, patience=Patience(), executor=executor, watcher=Nobody()
        )
        for disk in DISKS:
            assert exports[disk.name].size_bytes == disk.size_bytes
        yield exports
        exports.close()


def test_what_was_moved_while_it_was_cut_off_is_read_from_where_it_is(
    host: Host, processor: ItemProcessor, exports: PointExports
) -> None:
    host.item.settle(processor)
    system = host.opened[0][DISKS[0].name].device
    with pytest.raises(ObjectMissing):
        system.read(0, system.size_bytes)
    host.is_cut_off = False
    host.failures = [Unavailable("the store is away once more")]
    assert host.read(exports) == host.content
    assert len(host.opened) == 2, "once, for all its disks"
    host.item.settle(processor)
    assert host.read(exports) == host.content, "it is pinned again"
    for disk in DISKS:
        covered = sum(length for length, _ in exports[disk.name].extents(0, disk.size_bytes))
        assert covered == disk.size_bytes


def test_data_that_is_missing_from_its_point_is_told(
    host: Host, processor: ItemProcessor, exports: PointExports
) -> None:
    for disk in DISKS:
        for name in host.item.world.stores[URLS[disk.name]].list(f"items/{ITEM}/disks/"):
            if "/segments/" in name:
                host.item.world.stores[URLS[disk.name]].delete(name)
    with pytest.raises(ObjectMissing):
        host.read(exports)


def test_a_point_that_is_gone_is_told_as_its_missing_data(
    host: Host, processor: ItemProcessor, exports: PointExports
) -> None:
    processor.drop_points(lambda points: [host.point.id])
    host.item.settle(processor)
    host.item.settle(processor)
    with pytest.raises(ObjectMissing):
        host.read(exports)
