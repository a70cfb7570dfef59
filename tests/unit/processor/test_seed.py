"""Seeding: the log's newest state becomes what old disks hold, and only what differs is stored."""

from __future__ import annotations

import random

import pytest

from leeward.core.clock import SystemClock
from leeward.core.errors import Fenced
from leeward.core.units import MIB
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor.apply import Numbers, open_replica
from leeward.processor.seed import seed_replica
from leeward.protocol.fabric import ReplicaDisk, SeedSpec
from leeward.replica.catalog import Catalog

SIZE = 24 * MIB
WHERE = "memory://target"


class Image:
    """A disk in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, any(self.content[offset : offset + length]))]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.content[offset : offset + len(view)]


class Region:
    """The target's one store."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def open(self, url: str) -> ObjectStore:
        assert url == WHERE
        return self.store

    def seed(self, epoch: int, image: Image) -> int:
        """Return the bytes stored."""
        replica = ReplicaDisk(disk="d", size_bytes=SIZE, target_url=WHERE)
        spec = SeedSpec(
            item_id="item-1", epoch=epoch, vm_id="v", catalog_url=WHERE, replicas=(replica,)
        )
        said = seed_replica(spec, self.open, {"d": image}, SystemClock())
        assert said.is_seeded
        return said.bytes_stored

    def newest(self) -> bytes:
        """Return what the log holds now."""
        catalog = Catalog.open(self.store, "item-1")
        replica = open_replica(catalog, self.store, "d", Numbers(0))
        with replica.reader(cache_bytes=MIB, threads=1) as disk:
            content = disk.read(0, SIZE)
        replica.close()
        return content


def _image() -> Image:
    image = Image(bytes(SIZE))
    image.content[MIB : 3 * MIB] = random.Random(1).randbytes(2 * MIB)
    image.content[-4096:] = b"e" * 4096
    return image


def test_an_empty_log_takes_the_data_and_no_holes() -> None:
    region, image = Region(), _image()
    assert region.seed(2, image) == 2 * MIB + 4096
    assert region.newest() == image.content
    assert Catalog.open(region.store, "item-1").points == ()


def test_a_log_of_an_earlier_direction_takes_only_what_differs() -> None:
    region, image = Region(), _image()
    region.seed(2, image)
    image.content[2 * MIB : 2 * MIB + 4096] = bytes(4096)  # data became zeros
    image.content[9 * MIB + 5 : 9 * MIB + 6] = b"x"  # zeros became data
    assert region.seed(5, image) == 2 * 4096
    assert region.newest() == image.content
    assert region.seed(8, image) == 0


def test_asked_again_it_does_nothing_and_an_older_epoch_is_refused() -> None:
    region, image = Region(), _image()
    region.seed(5, image)
    objects = len(region.store.list("items/"))
    assert region.seed(5, image) == 0
    assert len(region.store.list("items/")) == objects
    with pytest.raises(Fenced):
        region.seed(2, image)
