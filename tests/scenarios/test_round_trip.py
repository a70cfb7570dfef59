"""There and back on real QEMU, without a guest to wait for: its writes are made through QEMU's
monitor. `make scenario NAME=round-trip` tells the whole story."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from demo.ports import free_port
from scenario.rig import Rig, running_rig
from scenario.round_trip import identity

from leeward.core.units import KIB, MIB
from leeward.daemons.places import Places, run_directory
from leeward.model.recovery import ItemState
from leeward.qemu.session import QmpSession

DISK_BYTES = 8 * MIB
PLACE = ("--region", "east", "--resource-group", "web-rg")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running_rig(free_port()) as rig:
        yield rig


def create_vm(rig: Rig) -> bytearray:
    """VM web-1 runs in east; return what its disk holds."""
    content = bytearray(os.urandom(512 * KIB) + bytes(DISK_BYTES - 512 * KIB))
    image = rig.directory / "disk.raw"
    image.write_bytes(content)
    subnets = ("--address-space", "10.10.0.0/16", "--subnet", "front=10.10.1.0/24")
    rig.run("resource-group", "create", "web-rg", "--region", "east")
    rig.run("network", "create", "corp", *PLACE, *subnets)
    rig.run("storage-account", "create", "websystem", *PLACE)
    rig.run(
        *("vm", "create", "web-1", *PLACE, "--memory", "64M"),
        *("--disk", f"system=websystem,image={image}", "--disk", "scratch=websystem,size=1M"),
        *("--nic", "front=corp/front"),
    )
    return content


def write(rig: Rig, region: str, content: bytearray, offset: int, pattern: int) -> None:
    """4 KiB are written as a guest would, in `region` and in `content`."""
    home = Places(rig.data).host(region, f"{region}-1")
    spare = run_directory(home, home.name) / "vm" / "web-1" / "spare"
    session = QmpSession.connect(spare)
    try:
        device = "/machine/peripheral/dev-system/virtio-backend"
        line = f'qemu-io -d {device} "write -P {pattern} {offset} 4096"'
        said = session.execute("human-monitor-command", {"command-line": line})
        assert not said, said
    finally:
        session.close()
    content[offset : offset + 4096] = bytes([pattern]) * 4096


def check_newest(rig: Rig, content: bytearray) -> None:
    """The newest recovery point holds just that."""
    copy = rig.directory / "copy.raw"
    copy.unlink(missing_ok=True)
    stores = [part for url in rig.store_urls() for part in ("--store", url)]
    rig.run(*("export", rig.item().id, "latest", "--disk", "system", "--raw", str(copy)), *stores)
    found = copy.read_bytes()
    differs = [at for at in range(0, DISK_BYTES, 4096) if found[at:][:4096] != content[at:][:4096]]
    assert differs == []


def move(rig: Rig, target: str) -> None:
    rig.run("failover", "web-1", "--planned", "--power-off-seconds", "0.2")
    assert rig.machine(target).name == "web-1"
    rig.run("commit", "web-1")
    rig.run("reprotect", "web-1")
    assert rig.item().source_region == target
    rig.wait("protected", lambda: rig.item().state is ItemState.PROTECTED)


def test_there_and_back_with_what_was_written_on_both_sides(rig: Rig) -> None:
    content = create_vm(rig)
    origin = identity(rig.machine("east"))
    rig.run("protect", "east/web-1", "--to", "west", "--exclude-disk", "scratch")
    write(rig, "east", content, 6 * MIB, 17)
    move(rig, "west")
    kept = list(rig.data.glob("regions/east/storage/websystem/disks/*.kept"))
    assert len(kept) == 1, "the disk that was never replicated is nowhere else"
    write(rig, "west", content, 3 * MIB, 34)
    write(rig, "west", content, 0, 51)
    move(rig, "east")
    home = identity(rig.machine("east"))
    assert (home.name, home.resource_group, home.nics) == (
        origin.name,
        origin.resource_group,
        origin.nics,
    )
    assert home.accounts == origin.accounts[:1]
    shipped = rig.item().health.replication
    assert shipped is not None
    assert shipped.bytes_shipped < 128 * KIB
    check_newest(rig, content)
