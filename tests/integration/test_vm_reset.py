"""A VM that is reset goes on streaming: its QEMU, its mirrors and its tap are the same."""

from __future__ import annotations

import subprocess

import pytest
from tests.integration.replication_rig import replication_rig
from tests.integration.sockets import listens
from tests.integration.storage_daemon import StorageDaemon, wait_until

from leeward.core.units import MIB
from leeward.model.recovery import ReplicationState

pytestmark = pytest.mark.integration


class Machine(StorageDaemon):
    """A real QEMU with the disks; its firmware finds nothing to boot. Writes go through its
    monitor into the device's own backend: below it they would pass the mirror by."""

    def start(self) -> None:
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64"]
        command += ["-machine", "q35", "-accel", "tcg"]
        for disk in self.disks:
            file = f"driver=file,node-name=file-{disk},filename={self.image(disk)}"
            node = f"driver=raw,node-name=disk-{disk},file=file-{disk}"
            device = f"virtio-blk-pci,id=dev-{disk},drive=disk-{disk}"
            command += ["-blockdev", file, "-blockdev", node, "-device", device]
        command += ["-qmp", f"unix:{self.qmp_socket},server=on,wait=off"]
        self.qmp_socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(command)
        wait_until(lambda: listens(self.qmp_socket), "QEMU is up")

    def write(self, disk: str, offset: int, length: int, pattern: int) -> None:
        backend = f"/machine/peripheral/dev-{disk}/virtio-backend"
        line = f'qemu-io -d {backend} "write -P {pattern} {offset} {length}"'
        said = self.session().execute("human-monitor-command", {"command-line": line})
        assert "rror" not in str(said), said


def test_a_vm_that_is_reset_streams_on() -> None:
    with replication_rig() as rig:
        rig.daemon.kill()
        machine = Machine(rig.daemon.directory, rig.daemon.disks)
        rig.daemon = machine
        machine.start()
        machine.write("sys", 0, MIB, 1)
        replicator = rig.start()
        rig.wait_state(ReplicationState.STREAMING)
        rig.wait_point()
        tap, shipped = rig.tap_pid, replicator.status().bytes_shipped
        for pattern in (2, 3):
            machine.session().execute("system_reset")
            machine.write("data", 4 * MIB, 64 << 10, pattern)
            rig.wait_point()
        assert replicator.status().state is ReplicationState.STREAMING
        assert rig.tap_pid == tap
        assert replicator.status().bytes_shipped - shipped < MIB
        sequence, target = rig.wait_point(), rig.target()
        while target.sequence < sequence:
            assert target.apply_next() is not None
        content = {disk: machine.image(disk).read_bytes() for disk in machine.disks}
        assert {disk: bytes(image) for disk, image in target.images.items()} == content
