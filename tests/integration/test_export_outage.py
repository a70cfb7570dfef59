"""A store that goes away under a guest that boots from it, and again while its disk is made local:
the guest waits, and has seen no error in the end. Real QEMU, the export's real processes.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.far_store import FarProxy
from bench.image_replica import write_replica
from tests.contracts.servers import s3_url
from tests.integration.sockets import open_monitor
from tests.integration.test_export_boot import boot_sector

from leeward.export.hydration import HydrationPlan, Hydrator
from leeward.export.start import ExportHandle, start_export
from leeward.object_store.file import create_file_store
from leeward.object_store.open import open_store
from leeward.protocol.fabric import ReplicaDisk
from leeward.qemu.mirror import run_state
from leeward.qemu.overlay import add_overlay_bitmaps, create_overlay, overlay_nodes
from leeward.qemu.session import QmpSession
from leeward.replica.boot_trace import chunks_of, read_trace

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 48 * MIB
ITEM = "item-web"
DISK = "d"


class Site:
    """An item's replica in a store that can be taken away and given back, and a guest over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.image = root / "image.raw"
        content = boot_sector(SIZE) + random.Random(4).randbytes(SIZE - 512)
        self.image.write_bytes(content)
        self.session: QmpSession | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start_export(self, url: str) -> ExportHandle:
        replica = ReplicaDisk(disk=DISK, size_bytes=SIZE, target_url=url)
        return start_export(
            self.root / "run", self.root / "host", "web-1", url, ITEM, "latest", [replica]
        )

    def start_guest(self, export: ExportHandle) -> QmpSession:
        """The guest runs: it reads its disk from end to end, says "D" then, "E" at any error."""
        create_overlay(self.overlay, SIZE)
        nodes = overlay_nodes(DISK, self.overlay, export.socket)
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "32"),
                *("-accel", "tcg"),
                *(part for node in nodes for part in ("-blockdev", json.dumps(node))),
                *("-device", f"virtio-blk-pci,drive=root-{DISK},werror=stop,rerror=stop"),
                *("-serial", f"file:{self.root}/serial"),
                *("-qmp", f"unix:{self.root}/qmp.sock,server=on,wait=off"),
            ],
            stderr=subprocess.DEVNULL,
        )
        self.session = open_monitor(self.root / "qmp.sock")
        add_overlay_bitmaps(self.session, [DISK])
        self.session.execute("cont")
        return self.session

    @property
    def overlay(self) -> Path:
        return self.root / "d.qcow2"

    def said(self) -> str:
        return (self.root / "serial").read_text(errors="replace").strip()

    def hydrator(self, session: QmpSession, export: ExportHandle) -> Hydrator:
        plan = HydrationPlan(vm_id="vm", disks=(DISK,), nbd_socket=self.root / "nbd.sock")
        return Hydrator(plan, qmp=lambda: session, base=export)

    def end_guest(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def compare(self) -> None:
        argv = ("qemu-img", "compare", "-f", "raw", "-F", "qcow2")
        subprocess.run([*argv, str(self.image), str(self.overlay)], check=True)


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    site = Site(root)
    yield site
    site.end_guest()
    shutil.rmtree(root, ignore_errors=True)


def survive(
    site: Site,
    export: ExportHandle,
    *,
    take_away: Callable[[], None],
    give_back: Callable[[], None],
    away_seconds: float,
) -> None:
    """Boot and hydrate, the store gone for a while in both."""
    session = site.start_guest(export)
    _wait_until(lambda: site.overlay.stat().st_size > 4 * MIB)
    take_away()
    time.sleep(away_seconds)
    assert (site.said(), run_state(session)) == ("", "running")
    assert site.overlay.stat().st_size < SIZE
    give_back()
    hydrator = site.hydrator(session, export)
    hydrator.start()
    _wait_until(lambda: hydrator.status().bytes_done > 0)
    take_away()
    time.sleep(away_seconds)
    assert not hydrator.is_done
    assert run_state(session) == "running"
    give_back()
    assert hydrator.wait_done(timeout_seconds=120)
    _wait_until(site.said)
    assert site.said() == "D"
    assert run_state(session) == "running"
    site.end_guest()
    site.compare()


def test_a_store_that_is_gone_for_a_moment_costs_the_guest_nothing_but_time(site: Site) -> None:
    store = create_file_store(site.root / "store")
    write_replica(store, ITEM, {DISK: site.image})
    export = site.start_export(store.url)

    def take_away() -> None:
        (site.root / "store").rename(site.root / "gone")

    def give_back() -> None:
        (site.root / "gone").rename(site.root / "store")

    try:
        survive(site, export, take_away=take_away, give_back=give_back, away_seconds=1)
    finally:
        export.stop()


@pytest.mark.slow
def test_a_far_store_cut_off_for_ten_seconds(site: Site) -> None:
    url = s3_url()
    write_replica(open_store(url), ITEM, {DISK: site.image})
    endpoint = url.split("endpoint=")[1].split("&")[0]
    with FarProxy(int(endpoint.rpartition(":")[2]), delay_seconds=0.02) as proxy:
        export = site.start_export(url.replace(endpoint, f"http://127.0.0.1:{proxy.port}"))
        try:
            survive(site, export, take_away=proxy.cut, give_back=proxy.mend, away_seconds=10)
        finally:
            export.stop()


@pytest.mark.slow
def test_a_boot_is_recorded_and_the_next_one_finds_its_data_fetched(site: Site) -> None:
    url = s3_url()
    write_replica(open_store(url), ITEM, {DISK: site.image})
    export = site.start_export(url)
    site.start_guest(export)
    _wait_until(site.said)
    site.end_guest()
    export.stop()
    trace = read_trace(open_store(url), ITEM)
    chunks = list(chunks_of(trace.disks[DISK]))
    assert chunks[:64] == list(range(64))  # all of the disk, had it been read within a minute
    cache = site.root / "host" / "export-cache"
    shutil.rmtree(cache)
    export = site.start_export(url)
    try:  # nobody reads anything yet
        _wait_until(lambda: _bytes_of(cache) > len(chunks) * (64 << 10) * 0.9)
    finally:
        export.stop()


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _wait_until(condition: Callable[[], object], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
