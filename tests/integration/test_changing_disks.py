"""Disks that come, grow and go while their VM is replicated: what is in which recovery point."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.integration.replication_rig import Rig, Target, replication_rig
from tests.integration.storage_daemon import LoggedWriters, PrefixChecker, wait_until

from leeward.core.units import MIB
from leeward.mobility.record import RecordFile
from leeward.model.recovery import Consistency, ReplicationState
from leeward.nbd.client import NbdClient
from leeward.qemu import mirror
from leeward.qemu.nodes import block_nodes
from leeward.replica.manifest import CutManifest

pytestmark = pytest.mark.integration
EXTRA = "extra"
SIZE = 8 * MIB


@pytest.fixture
def rig() -> Iterator[Rig]:
    with replication_rig() as rig:
        yield rig


class Changing:
    """A VM under two writers on its first disks, and a third disk whose content the test knows."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.daemon.fill("sys", 8 * MIB, 4 * MIB)
        self.writers = LoggedWriters(rig.daemon, count=2, area_offset=2 * MIB)
        rig.writers.append(self.writers)
        self._checker = PrefixChecker(self.writers, rig.daemon.content())
        self.target = Target(rig.store, dict(rig.daemon.disks))
        self.extra = bytearray()
        self.writers.start()

    def restart(self, *disks: str) -> None:
        """As an agent does that is told of other disks."""
        assert self.rig.replicator is not None
        self.rig.replicator.stop(detach=False)
        self.rig.spec = replace(self.rig.spec, disks=disks)
        self.rig.start()

    def plug(self) -> None:
        """Have the third disk in the VM, with content that no write has brought there."""
        daemon = self.rig.daemon
        image = daemon.image(EXTRA)
        subprocess.run(["truncate", "-s", str(SIZE), str(image)], check=True)
        self.extra = bytearray(SIZE)
        self.extra[MIB : 4 * MIB] = random.Random(7).randbytes(3 * MIB)
        image.write_bytes(self.extra)
        session = daemon.session()
        file = {"driver": "file", "node-name": f"file-{EXTRA}", "filename": str(image)}
        session.execute("blockdev-add", file)
        node = {"driver": "raw", "node-name": f"disk-{EXTRA}", "file": f"file-{EXTRA}"}
        session.execute("blockdev-add", node)
        self.export()
        self.target.images[EXTRA] = bytearray(SIZE)

    def export(self) -> None:
        export = {"type": "nbd", "id": f"guest-{EXTRA}", "name": EXTRA, "writable": True}
        session = self.rig.daemon.session()
        session.execute("block-export-add", {**export, "node-name": f"disk-{EXTRA}"})

    def end_export(self) -> None:
        session = self.rig.daemon.session()
        session.execute("block-export-del", {"id": f"guest-{EXTRA}", "mode": "hard"})

        def is_gone() -> bool:
            exports = session.execute("query-block-exports")
            return all(export["id"] != f"guest-{EXTRA}" for export in exports)

        wait_until(is_gone, "the guest lets the disk go")

    def grow(self) -> None:
        """Have the disk twice as large. A virtio device shares it meanwhile, an export does not."""
        session = self.rig.daemon.session()
        mirror.detach(session, EXTRA)
        self.end_export()
        session.execute("block_resize", {"node-name": f"disk-{EXTRA}", "size": 2 * SIZE})
        self.export()
        self.extra += bytes(SIZE)
        self.target.images[EXTRA] += bytes(SIZE)

    def write(self, offset: int, data: bytes) -> None:
        with NbdClient.connect(self.rig.daemon.nbd_socket, EXTRA) as client:
            client.write(offset, data)
        self.extra[offset : offset + len(data)] = data

    def wait_point(self) -> CutManifest:
        """Return the next recovery point; all points up to it are checked."""
        sequence = self.rig.wait_point(seconds=60)
        while True:
            cut = self.target.apply_next()
            assert cut is not None
            if cut.consistency is not Consistency.NONE:
                images = {disk: self.target.images[disk] for disk in self.rig.daemon.disks}
                assert self._checker.check(images) == []
            if cut.sequence == sequence:
                return cut

    def disks_of(self, cut: CutManifest) -> set[str]:
        return {disk.disk for disk in cut.disks}


def test_a_disk_that_comes_grows_and_goes_is_in_the_points_in_which_it_belongs(rig: Rig) -> None:
    vm = Changing(rig)
    rig.start()
    assert vm.disks_of(vm.wait_point()) == {"sys", "data"}

    vm.plug()
    vm.restart("sys", "data", EXTRA)
    cut = vm.wait_point()
    assert vm.disks_of(cut) == {"sys", "data", EXTRA}
    assert vm.target.images[EXTRA] == vm.extra, "swept before it counts"
    vm.write(5 * MIB, b"new" * 1024 + bytes(1024))
    vm.wait_point()
    assert vm.target.images[EXTRA] == vm.extra

    assert rig.replicator is not None
    rig.replicator.stop(detach=False)
    vm.grow()
    vm.write(SIZE - MIB, b"over the old end" * 131072)  # nobody receives it but the bitmaps
    rig.start()
    cut = vm.wait_point()
    assert {disk.disk: disk.size_bytes for disk in cut.disks}[EXTRA] == 2 * SIZE
    vm.write(2 * SIZE - 4096, bytes(range(256)) * 16)
    vm.wait_point()
    assert vm.target.images[EXTRA] == vm.extra

    vm.restart("sys", "data")
    rig.wait_state(ReplicationState.STREAMING)
    assert vm.disks_of(vm.wait_point()) == {"sys", "data"}
    session = rig.daemon.session()
    assert not block_nodes(session)[f"disk-{EXTRA}"].bitmaps
    vm.end_export()
    for node in (f"disk-{EXTRA}", f"file-{EXTRA}"):
        session.execute("blockdev-del", {"node-name": node})
    vm.writers.stop()
    vm.wait_point()
    content = rig.daemon.content()
    assert {disk: vm.target.images[disk] for disk in content} == content
    assert vm.writers.errors == []


def test_a_disk_that_came_is_swept_whole_though_agent_tap_and_journals_are_lost_meanwhile(
    rig: Rig,
) -> None:
    rig.tuning = replace(rig.tuning, sweep_cut_bytes=MIB)
    vm = Changing(rig)
    rig.start()
    vm.wait_point()
    vm.plug()
    vm.restart("sys", "data", EXTRA)
    record = rig.places.data_dir / "replication" / "item-1.json"
    wait_until(lambda: RecordFile(record, 1).value.unswept == (EXTRA,), "the sweep is due")
    rig.drop_agent()
    rig.lose_tap()
    rig.start()
    assert vm.disks_of(vm.wait_point()) == {"sys", "data", EXTRA}
    assert vm.target.images[EXTRA] == vm.extra
    wait_until(lambda: RecordFile(record, 1).value.unswept == (), "all of it is known now")
