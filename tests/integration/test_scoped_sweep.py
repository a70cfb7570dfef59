"""A target seeded with the disks a VM was booted with gets what it wrote since, and no more.

Where that is not known for sure, digests tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.integration.replication_rig import ITEM, Rig, replication_rig
from tests.integration.test_digest_sweep import Worker, lose_host, wait_point

from leeward.core.clock import SystemClock
from leeward.core.units import KIB, MIB
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.processor.seed import seed_replica
from leeward.protocol.fabric import ReplicaDisk, SeedSpec
from leeward.qemu.overlay import add_overlay_bitmaps

pytestmark = pytest.mark.integration
EPOCH = 4


class Bytes:
    """A disk of the former source: what the new one's held when it was booted."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self._content[offset : offset + len(view)]


@contextmanager
def failed_over() -> Iterator[tuple[Rig, Worker]]:
    """A VM on qcow2 disks that know what it has written since its boot; a target seeded with what
    they held then."""
    with replication_rig(format="qcow2") as rig:
        rig.daemon.fill("sys", 8 * MIB, 12 * MIB)
        rig.daemon.fill("data", 10 * MIB, 8 * MIB, seed=2)
        target = create_file_store(rig.places.data_dir / "target")
        replicas = tuple(
            ReplicaDisk(disk=disk, size_bytes=size, target_url=target.url)
            for disk, size in rig.daemon.disks.items()
        )
        seed_replica(
            SeedSpec(item_id=ITEM, epoch=3, vm_id="v", catalog_url=target.url, replicas=replicas),
            lambda _: target,
            {disk: Bytes(bytes(content)) for disk, content in rig.daemon.content().items()},
            SystemClock(),
        )
        add_overlay_bitmaps(rig.daemon.session(), sorted(rig.daemon.disks))
        rig.spec = replace(rig.spec, epoch=EPOCH, is_based=True)
        worker = Worker(rig, target, epoch=EPOCH)
        try:
            yield rig, worker
        finally:
            worker.stop()


def write(rig: Rig, disk: str, offset: int, data: bytes) -> None:
    with NbdClient.connect(rig.daemon.nbd_socket, disk) as client:
        client.write(offset, data)


def shipped(rig: Rig) -> int:
    assert rig.replicator is not None
    return rig.replicator.status().bytes_shipped


def test_what_was_written_since_the_boot_travels_to_the_block() -> None:
    with failed_over() as (rig, worker):
        noise = bytes(range(256)) * 16
        for index in range(64):  # each in another 64 KiB
            write(rig, "sys", MIB + index * 128 * KIB, noise[index:] + noise[:index])
        write(rig, "data", 23 * MIB, b"n" * 4096)
        rig.start()
        wait_point(rig, worker)
        assert worker.contents() == rig.daemon.content()
        assert shipped(rig) < 65 * 4096 + 64 * KIB


def test_bitmaps_that_cannot_be_believed_are_not() -> None:
    with failed_over() as (rig, worker):
        write(rig, "sys", 9 * MIB, b"known, then forgotten" + bytes(491))
        lose_host(rig)
        rig.daemon.start()
        rig.tuning = replace(rig.tuning, digests_seconds=30.0)
        rig.start()
        wait_point(rig, worker)
        assert worker.contents() == rig.daemon.content()
        assert shipped(rig) < MIB
