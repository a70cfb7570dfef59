"""Exports as processes, read by QEMU's tools; and the same points with no process at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from tests.integration.sockets import listens
from tests.simulation.world import HandClock
from tests.unit.agent.fakes import FakeDriver, vm_spec

from leeward.agent import recovery
from leeward.agent.recovery import ExportPort, HydratorPort, Recoveries
from leeward.cli.main import run
from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.daemons.agent import Exports
from leeward.export.offline import (
    FoundPoint,
    export_to_raw,
    find_point,
    list_points,
    serve_foreground,
)
from leeward.export.start import ExportHandle, find_export, start_export
from leeward.fabric.processes import read_pid_file
from leeward.model.recovery import Consistency, RecoveryPoint, point_id
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.object_store.open import open_store
from leeward.processor.garbage import GRACE_SECONDS
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import BootSpec, ProcessingSpec, ReplicaDisk
from leeward.qemu.overlay import create_overlay, overlay_nodes
from leeward.recovery_points.retention import plan_retention
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.layout import make_segment_id
from leeward.replica.synthetic import synthetic_block, write_full_item, write_full_map

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZES = {"system": 24 * MIB, "data": 20 * MIB}
SEGMENTS = 1
ITEM = "item-web"


class Target:
    """Two storage accounts with one item's replica, and a host's directories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stores = {name: create_file_store(root / name) for name in ("first", "second")}
        by_disk = {"system": self.stores["first"], "data": self.stores["second"]}
        self.point: RecoveryPoint = write_full_item(
            self.stores["first"], by_disk, ITEM, SIZES, segment_count=SEGMENTS
        )
        self.replicas = [
            ReplicaDisk(disk=disk, size_bytes=SIZES[disk], target_url=store.url)
            for disk, store in by_disk.items()
        ]

    def start(self, point_id: str | None = None, *, place: str = "") -> ExportHandle:
        return start_export(
            self.root / place / "run",
            self.root / place / "data",
            "web-1",
            self.stores["first"].url,
            ITEM,
            point_id or self.point.id,
            self.replicas,
        )

    def raw(self, disk: str) -> Path:
        """Return a raw file with what the disk must hold."""
        path = self.root / f"{disk}.expected"
        blocks = [synthetic_block(disk, n, SEGMENTS) for n in range(16 * MIB // 4096)]
        content = b"".join(blocks) * 2
        path.write_bytes(content[: SIZES[disk]])
        return path

    @contextmanager
    def guest(self, export: ExportHandle) -> Iterator[Path]:
        """Yield the socket of a storage daemon that has the system disk as a VM has it, "g"."""
        overlay = self.root / "overlay.qcow2"
        create_overlay(overlay, SIZES["system"])
        arguments = []
        for node in overlay_nodes("system", overlay, export.socket):
            arguments += ["--blockdev", json.dumps(node)]
        socket = self.root / "guest.sock"
        daemon = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *arguments,
                *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
                *("--export", "type=nbd,id=g,node-name=root-system,name=g"),
            ]
        )
        try:
            _wait_until(lambda: listens(socket))
            yield socket
        finally:
            daemon.terminate()
            daemon.wait(60)

    def add_points(self, count: int) -> None:
        """List more points, in which other segments have taken the place of all blocks."""
        catalog = Catalog.open(self.stores["first"], ITEM)
        urls = {replica.disk: replica.target_url for replica in self.replicas}
        for _ in range(count):
            claim = catalog.take_over(1, owner="synthetic", disk_urls=urls)
            disks = []
            for (disk, size), store in zip(SIZES.items(), self.stores.values(), strict=True):
                map_name = write_full_map(store, ITEM, disk, size, claim, SEGMENTS)
                ids = tuple(make_segment_id(claim, index) for index in range(SEGMENTS))
                disks.append(
                    AppliedDisk(disk=disk, size_bytes=size, checkpoint=map_name, segments=ids)
                )
            newest = catalog.newest_cut
            assert newest is not None
            cut = AppliedCut(
                epoch=1,
                sequence=newest.sequence + 1,
                manifest_sha256="0" * 64,
                time_ns=newest.time_ns + 1,
                consistency=Consistency.CRASH,
                disks=tuple(disks),
            )
            catalog.append_cuts([cut])

    def retain_newest(self) -> list[str]:
        """Do what a worker does that keeps the newest point alone, ten minutes and more; return
        the points that are left."""
        spec = ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=create_file_store(self.root / f"cache-{time.time_ns()}").url,
            catalog_url=self.stores["first"].url,
            replicas=tuple(self.replicas),
            tiers=(),
        )
        clock = HandClock()
        processor = ItemProcessor(spec, open_store, clock)
        try:
            processor.retire_points(lambda points: plan_retention(points, spec.tiers))
            for _ in range(2):
                processor.reclaim(is_thorough=True)
                clock.now += GRACE_SECONDS
            processor.reclaim(is_thorough=True)
            return [point.id for point in processor.points]
        finally:
            processor.close()

    @property
    def urls(self) -> list[str]:
        return [store.url for store in self.stores.values()]


@pytest.fixture
def target() -> Iterator[Target]:
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    target = Target(root)
    yield target
    found = find_export(root / "run", root / "data", "web-1")
    if found:
        found.stop()
    shutil.rmtree(root)


def _run(*argv: object) -> str:
    command = [str(one) for one in argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def _uri(export: ExportHandle, disk: str) -> str:
    return f"nbd+unix:///{disk}?socket={export.socket}"


def _server_pid(export: ExportHandle) -> int:
    return int(export.files.server_pid.read_text())


def _is_replaced(export: ExportHandle, server: int) -> bool:
    return _server_pid(export) != server


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_qemus_and_libnbds_tools_read_what_was_stored(target: Target) -> None:
    export = target.start()
    assert export.is_alive()
    listed = json.loads(_run("nbdinfo", "--list", "--json", _uri(export, "")))
    assert {one["export-name"] for one in listed["exports"]} == set(SIZES)
    (info,) = json.loads(_run("nbdinfo", "--json", _uri(export, "system")))["exports"]
    assert info["export-size"] == SIZES["system"]
    assert info["is_read_only"]
    assert info["can_multi_conn"]
    assert info["contexts"] == ["base:allocation"]
    assert export.first_read_ns() <= time.time_ns()
    expected = target.raw("system")
    _run("qemu-img", "compare", "-f", "raw", "-F", "raw", expected, _uri(export, "system"))
    _run("nbdcopy", "--connections=4", _uri(export, "data"), target.root / "copied")
    assert (target.root / "copied").read_bytes() == target.raw("data").read_bytes()


def test_starting_twice_changes_nothing_and_stopping_leaves_nothing(target: Target) -> None:
    first = target.start()
    server = _server_pid(first)
    assert first.first_read_ns() == 0
    second = target.start()
    assert second == first == find_export(target.root / "run", target.root / "data", "web-1")
    assert _server_pid(second) == server
    with NbdClient.connect(first.socket, "system") as client:
        before = time.time_ns()
        client.read(0, 512)
        assert before <= first.first_read_ns() <= time.time_ns()
    first.stop()
    first.stop()
    assert not first.is_alive()
    assert not Path(f"/proc/{server}").exists()
    assert not first.socket.exists()
    assert not first.files.directory.exists()
    assert find_export(target.root / "run", target.root / "data", "web-1") is None


def test_processes_that_nobody_has_noted_are_found_and_ended(target: Target) -> None:
    export = target.start()
    supervisor = read_pid_file(export.files.supervisor_pid)
    server = _server_pid(export)
    assert supervisor is not None
    export.files.supervisor_pid.unlink()  # the agent was killed before it could write it
    export.ensure_running()
    assert _server_pid(export) == server
    export.files.server_pid.unlink()  # the supervisor was killed before it could write it
    os.kill(supervisor.pid, signal.SIGKILL)
    _wait_until(lambda: not export.is_alive())
    assert Path(f"/proc/{server}").exists()
    export.ensure_running()
    _wait_until(lambda: not Path(f"/proc/{server}").exists())
    export.wait_open()
    server = _server_pid(export)
    export.files.supervisor_pid.unlink()
    export.files.server_pid.unlink()
    export.stop()
    _wait_until(lambda: not Path(f"/proc/{server}").exists())


def test_a_configuration_cut_short_by_a_crash_is_written_anew(target: Target) -> None:
    export = target.start()
    export.files.config.write_bytes(b"")
    again = target.start()
    with NbdClient.connect(again.socket, "system") as client:
        client.read(0, 512)


def test_a_point_that_is_not_there_leaves_nothing(target: Target) -> None:
    with pytest.raises(NotFound):
        target.start("rp-9999-00000001")
    assert find_export(target.root / "run", target.root / "data", "web-1") is None
    assert list((target.root / "data" / "exports").iterdir()) == []


def test_killing_server_and_supervisor_gives_qemu_no_error(target: Target) -> None:
    export = target.start()
    expected = target.raw("system").read_bytes()
    seen: list[bytes] = []
    stopped = threading.Event()
    failures: list[Exception] = []

    def guest(socket: Path) -> None:
        try:
            with NbdClient.connect(socket, "g", ()) as client:
                offset = 0
                while not stopped.is_set() or offset < SIZES["system"]:
                    at = offset % SIZES["system"]
                    data = client.read(at, 16384)
                    assert data == expected[at : at + 16384]
                    offset += 16384
                    time.sleep(0.002)
            seen.append(b"end")
        except Exception as error:
            failures.append(error)

    with target.guest(export) as socket:
        reader = threading.Thread(target=guest, args=(socket,))
        reader.start()
        try:
            for _ in range(2):
                time.sleep(0.5)
                server = _server_pid(export)
                os.kill(server, signal.SIGKILL)
                _wait_until(partial(_is_replaced, export, server))
            time.sleep(0.5)
            supervisor = json.loads(export.files.supervisor_pid.read_text())["pid"]
            os.kill(supervisor, signal.SIGKILL)
            os.kill(_server_pid(export), signal.SIGKILL)
            _wait_until(lambda: not export.is_alive())
            time.sleep(0.3)
            export.ensure_running()  # what the next agent does
            time.sleep(0.3)
        finally:
            stopped.set()
        reader.join(60)
        assert failures == []
        assert seen == [b"end"]


@pytest.mark.parametrize("is_restarted", [False, True], ids=["same agent", "next agent"])
def test_an_agent_sees_after_the_export_of_a_vm_that_is_not_made_local(
    target: Target, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    monkeypatch.setattr(recovery, "TEND_SECONDS", 0.1)
    exports = Exports(target.root / "run", target.root / "data")
    driver = FakeDriver()

    def agent() -> Recoveries:
        def make(boot: BootSpec, export: ExportPort) -> HydratorPort:
            raise AssertionError("it reads from its export all its life")

        return Recoveries(driver, target.root / "recoveries", exports, make)

    spec = BootSpec(
        item_id=ITEM,
        epoch=2,
        point_id=target.point.id,
        catalog_url=target.stores["first"].url,
        replicas=tuple(target.replicas),
        vm=vm_spec(),
        networks=(),
        hydrates=False,
    )
    agents = [agent()]
    agents[0].resume()
    agents[0].boot(spec)
    if is_restarted:
        agents[0].shut_down()
    export = exports.find("web-1")
    assert export is not None
    before = read_pid_file(export.files.supervisor_pid)
    assert before is not None
    try:
        for pid in (before.pid, int(export.files.server_pid.read_text())):
            with suppress(ProcessLookupError):  # the agent has ended it already
                os.kill(pid, signal.SIGKILL)
        if is_restarted:
            agents.append(agent())
            agents[-1].resume()
        _wait_until(lambda: read_pid_file(export.files.supervisor_pid) not in (None, before))
        with closing(NbdClient.connect(export.socket, "system", timeout_seconds=60)) as client:
            assert client.read(0, 4096) == synthetic_block("system", 0, SEGMENTS)
    finally:
        for each in agents:
            each.shut_down()
        export.stop()


def test_a_killed_export_finds_its_point_again_after_retention_dropped_all_others(
    target: Target,
) -> None:
    """Nothing of the export runs, its pin is gone, garbage is collected: a test VM's storage is
    what the point said all the same, and once the VM is gone so is the point."""
    export = target.start()
    target.add_points(3)
    store = target.stores["first"]
    with target.guest(export) as socket:
        supervisor = json.loads(export.files.supervisor_pid.read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)
        os.kill(_server_pid(export), signal.SIGKILL)
        _wait_until(lambda: not export.is_alive())
        for name in store.list(f"items/{ITEM}/pins/"):
            store.delete(name)  # nobody has renewed it for long
        assert target.retain_newest() == [target.point.id, point_id(1, 4)]
        export.ensure_running()
        export.wait_open()
        with NbdClient.connect(socket, "g", ()) as client:
            expected = target.raw("system").read_bytes()
            for offset in range(0, SIZES["system"], MIB):
                assert client.read(offset, MIB) == expected[offset : offset + MIB]
        export.stop()
    assert store.list(f"items/{ITEM}/holds/") == []
    assert target.retain_newest() == [point_id(1, 4)]
    with pytest.raises(NotFound):
        target.start()


def test_a_host_that_comes_back_lets_go_of_no_other_ones_point(target: Target) -> None:
    """The VM was booted there first, and runs here now, from an export of the same name."""
    there, here = target.start(), target.start(place="second-host")
    store = target.stores["first"]
    assert len(store.list(f"items/{ITEM}/holds/")) == 2
    there.stop()
    assert len(store.list(f"items/{ITEM}/holds/")) == 1
    here.stop()
    assert store.list(f"items/{ITEM}/holds/") == []


def test_a_store_that_is_away_when_an_export_ends_does_not_keep_it(target: Target) -> None:
    export = target.start()
    (target.root / "first").rename(target.root / "gone")
    export.stop()
    assert find_export(target.root / "run", target.root / "data", "web-1") is None
    (target.root / "gone").rename(target.root / "first")


def test_a_store_that_is_away_makes_a_reader_wait(target: Target) -> None:
    export = target.start()
    with NbdClient.connect(export.socket, "data") as client:
        client.read(0, 4096)
        (target.root / "second").rename(target.root / "gone")
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(bytes(client.read(10 * MIB, 4096))))
        reader.start()
        time.sleep(0.5)
        assert answers == []
        (target.root / "gone").rename(target.root / "second")
        reader.join(60)
        assert answers == [synthetic_block("data", 10 * MIB // 4096, SEGMENTS)]


def test_without_any_process_a_point_is_found_and_written_out(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_points(target.urls, ITEM) == (target.point,)
    assert run(["recovery-point", "list", ITEM, "--store", target.urls[0], "-o", "json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [target.point.id]
    # the accounts were moved since: what the catalog recorded is of no use
    moved = []
    for name in target.stores:
        (target.root / name).rename(target.root / f"moved-{name}")
        moved.append(f"file://{target.root}/moved-{name}")
    found = find_point(moved[::-1], ITEM, "latest")
    assert {replica.disk: replica.target_url for replica in found.replicas} == {
        "system": moved[0],
        "data": moved[1],
    }
    steps: list[tuple[int, int]] = []
    for disk, size in SIZES.items():
        file = target.root / f"{disk}.raw"
        written = export_to_raw(
            found, disk, file, progress=lambda done, total: steps.append((done, total))
        )
        assert written == size
        assert steps[-1] == (size, size)
        assert file.read_bytes() == target.raw(disk).read_bytes()
    with pytest.raises(Conflict):
        export_to_raw(found, "data", target.root / "data.raw")
    with pytest.raises(NotFound):
        export_to_raw(found, "nothing", target.root / "nothing.raw")
    with pytest.raises(InvalidRequest, match="no directory"):
        export_to_raw(found, "data", target.root / "nowhere" / "data.raw")
    with pytest.raises(NotFound):
        find_point(moved, "item-other", "latest")
    with pytest.raises(NotFound):
        find_point(moved, ITEM, "rp-0001-00000009")
    with pytest.raises(Unavailable, match="disk data"):
        find_point(moved[:1], ITEM, "latest")
    with pytest.raises(Unavailable):
        find_point(target.urls, ITEM, "latest")


def test_a_point_is_served_in_the_foreground(target: Target) -> None:
    found: FoundPoint = find_point(target.urls, ITEM, target.point.id)
    socket = target.root / "f.sock"
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve_foreground, args=(found, socket), kwargs={"stop": stop, "on_ready": ready.set}
    )
    thread.start()
    assert ready.wait(60)
    with NbdClient.connect(socket, "data") as client:
        assert client.read(4096, 4096) == synthetic_block("data", 1, SEGMENTS)
    with pytest.raises(Conflict):
        serve_foreground(found, socket, stop=stop)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not socket.exists()
