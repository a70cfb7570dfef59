"""The mirror to the tap on real QEMU: attach, standby, resume, detach, and what is left after."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.sockets import open_monitor
from tests.integration.storage_daemon import LoggedWriters, StorageDaemon, wait_until

from leeward.core.errors import HypervisorRefused
from leeward.core.units import MIB
from leeward.mobility.tap_client import Tap, TapConfig, stop_watchdog
from leeward.nbd.client import NbdClient
from leeward.qemu import bitmaps, mirror
from leeward.qemu.mirror import JobPhase
from leeward.qemu.nodes import BlockNode, block_nodes
from leeward.qemu.session import QmpSession

pytestmark = pytest.mark.integration
DISKS = {"sys": 8 * MIB, "data": 8 * MIB}


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lw") as directory:
        yield Path(directory)


@pytest.fixture
def config(root: Path) -> Iterator[TapConfig]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lw") as shm:
        yield TapConfig(
            item_id="item-1",
            disks=tuple(DISKS.items()),
            run_dir=root / "run",
            shm_dir=Path(shm),
            data_dir=root / "data",
            buffer_bytes=MIB,
            buffer_count=32,
        )
        stop_watchdog(root / "run")


@pytest.fixture
def tap(config: TapConfig) -> Iterator[Tap]:
    tap = Tap.start_or_adopt(config)
    yield tap
    tap.stop()


@pytest.fixture
def daemon(root: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(root, DISKS)
    daemon.start()
    yield daemon
    daemon.kill()


@pytest.fixture
def session(daemon: StorageDaemon) -> QmpSession:
    return daemon.session()


def phases(session: QmpSession) -> list[JobPhase]:
    return [one.phase for one in mirror.inspect(session, list(DISKS))]


def test_attach_and_detach_under_load_leave_nothing_and_hurt_nobody(
    daemon: StorageDaemon, session: QmpSession, tap: Tap
) -> None:
    writers = LoggedWriters(daemon, count=4, area_bytes=MIB)
    writers.start()
    for _ in range(5):
        for disk in DISKS:
            mirror.attach(session, disk, tap.socket)
            mirror.attach(session, disk, tap.socket)
        assert phases(session) == [JobPhase.RUNNING] * 2
        written = writers.write_count
        wait_until(lambda: writers.write_count > written + 50, "writes pass")  # noqa: B023
        tap.release(tap.journal.position())
        for disk in DISKS:
            mirror.detach(session, disk)
            mirror.detach(session, disk)
        assert phases(session) == [JobPhase.ABSENT] * 2
        assert not [name for name in block_nodes(session) if name.startswith("tap")]
    writers.stop()
    assert writers.errors == []


def test_a_mirror_without_its_tap_stands_by_knows_what_is_missing_and_resumes(
    daemon: StorageDaemon, session: QmpSession, config: TapConfig
) -> None:
    tap = Tap.start_or_adopt(config)
    mirror.attach(session, "sys", tap.socket)
    os.kill(tap.pid, signal.SIGKILL)
    tap.close()
    with NbdClient.connect(daemon.nbd_socket, "sys") as client:
        client.write(MIB, bytes([7]) * 8192)
    wait_until(lambda: phases(session)[0] is JobPhase.STANDBY, "standing by")
    assert mirror.inspect(session, ["sys"])[0].dirty_bytes == 8192
    with pytest.raises(HypervisorRefused, match="live tap"):
        mirror.detach(session, "sys")
    assert phases(session)[0] is JobPhase.STANDBY
    successor = Tap.start_or_adopt(config)

    def is_clean() -> bool:
        mirror.resume(session, "sys")
        return mirror.inspect(session, ["sys"])[0].is_clean

    wait_until(is_clean, "clean again")
    mirror.resume(session, "sys")
    mirror.detach(session, "sys")
    successor.stop()


def test_generations_are_added_listed_merged_and_removed_on_all_disks(
    daemon: StorageDaemon, session: QmpSession
) -> None:
    def nodes() -> list[BlockNode]:
        return [block_nodes(session)[f"disk-{disk}"] for disk in DISKS]

    disks = nodes()
    bitmaps.add_generation(session, disks, epoch=3, number=1)
    with NbdClient.connect(daemon.nbd_socket, "data") as client:
        client.write(0, bytes([1]) * 4096)
    bitmaps.add_generation(session, disks, epoch=3, number=2)
    bitmaps.drain(session, disks)
    found = bitmaps.list_generations(nodes())
    assert [(one.epoch, one.number, one.dirty_bytes) for one in found] == [(3, 1, 4096), (3, 2, 0)]
    assert all(one.is_trustworthy for one in found)
    for _ in range(2):  # an earlier merge is replaced
        bitmaps.merge_generations(session, nodes(), epoch=3, numbers=[1, 2])
    merged = block_nodes(session)["disk-data"].bitmap(bitmaps.sweep_name(3))
    assert merged is not None
    assert (merged.dirty_bytes, merged.is_recording) == (4096, False)
    bitmaps.remove_generations(session, nodes(), epoch=3, numbers=[1])
    session.execute("block-dirty-bitmap-remove", {"node": "disk-sys", "name": "lw-3-2"})
    assert [one.is_trustworthy for one in bitmaps.list_generations(nodes())] == [False]
    bitmaps.remove_all(session, nodes())
    assert not any(block_nodes(session)[f"disk-{disk}"].bitmaps for disk in DISKS)


def test_a_real_qemu_is_freed_of_a_dead_tap_by_stopping_the_guest(
    root: Path, config: TapConfig
) -> None:
    subprocess.run(["qemu-img", "create", "-q", str(root / "sys"), "8M"], check=True)
    command = ["qemu-system-x86_64", "-machine", "none", "-accel", "tcg", "-nodefaults"]
    command += ["-display", "none", "-qmp", f"unix:{root}/qmp,server=on,wait=off"]
    command += ["-blockdev", f"driver=file,node-name=file-sys,filename={root}/sys"]
    command += ["-blockdev", "driver=raw,node-name=disk-sys,file=file-sys"]
    process = subprocess.Popen(command)
    try:
        session = open_monitor(root / "qmp")
        address = {"type": "unix", "data": {"path": f"{root}/nbd"}}
        session.execute("nbd-server-start", {"addr": address})
        export = {"type": "nbd", "id": "e", "node-name": "disk-sys", "writable": True}
        session.execute("block-export-add", export)
        tap = Tap.start_or_adopt(config)
        mirror.attach(session, "sys", tap.socket)
        tap.stop()
        with NbdClient.connect(root / "nbd", "disk-sys") as client:
            client.write(0, bytes([1]) * 4096)
        wait_until(
            lambda: mirror.inspect(session, ["sys"])[0].phase is JobPhase.STANDBY, "standing by"
        )
        mirror.detach(session, "sys")
        assert mirror.inspect(session, ["sys"])[0].phase is JobPhase.ABSENT
        assert mirror.run_state(session) == "running"
        session.close()
    finally:
        process.kill()
        process.wait()
