"""What the driver's verbs make and refuse, with VMs that stand before their first instruction."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.fabric_rig import Rig, rig

from leeward.core.errors import (
    Conflict,
    HypervisorRefused,
    InvalidRequest,
    LeewardError,
    NotFound,
)
from leeward.fabric import accelerator, disks, namespaces, processes
from leeward.fabric.networks import bridge_of, namespace_of
from leeward.fabric.records import Phase, Records, VmRecord
from leeward.model.resources import PowerState
from leeward.protocol.fabric import DiskSpec
from leeward.qemu.machine import Accelerator
from leeward.qemu.nbd_exports import ensure_nbd_server
from leeward.qemu.nodes import block_nodes
from leeward.qemu.overlay import OVERLAY_BITMAP, has_overlay_bitmap

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture
def host() -> Iterator[Rig]:
    with rig() as made:
        yield made


def test_a_paused_vm_stands_until_started_and_has_the_promised_nodes(host: Rig) -> None:
    driver = host.driver()
    spec = host.empty_vm()
    status = driver.create_vm(spec, paused=True)
    assert status.power is PowerState.PAUSED
    assert driver.create_vm(replace(spec, made_for="job-2")) == status, "again it changes nothing"
    assert driver.made_for(spec.vm_id) == spec.made_for == ""
    nodes = driver.disk_nodes("empty")
    assert [(one.disk, one.node, one.size_bytes) for one in nodes] == [
        ("system", "disk-system", 1 << 20),
        ("data", "disk-data", 1 << 20),
    ]
    session = driver.qmp("empty")
    assert session is driver.qmp("empty")
    known = {one["node-name"] for one in session.execute("query-named-block-nodes")}
    assert {"disk-system", "file-system", "disk-data", "file-data"} <= known
    assert driver.start_vm("empty").power is PowerState.RUNNING
    assert driver.stop_vm("empty", force=True).power is PowerState.STOPPED
    with pytest.raises(Conflict, match="not running"):
        driver.qmp("empty")
    assert driver.start_vm("empty", paused=True).power is PowerState.PAUSED
    with pytest.raises(Conflict, match="exists already"):
        driver.create_vm(replace(spec, memory_mib=65))
    ensure_nbd_server(driver.qmp("empty"), driver.nbd_socket("empty"))
    assert driver.nbd_socket("empty").is_socket()
    driver.delete_vm("empty")
    assert host.traces() == []
    assert not driver.nbd_socket("empty").exists()
    with pytest.raises(NotFound):
        driver.vm_status("empty")


def test_a_refused_vm_leaves_nothing(host: Rig) -> None:
    driver = host.driver()
    spec = host.empty_vm()
    taken = Path(spec.disks[1].directory) / "empty-data.qcow2"
    taken.parent.mkdir(parents=True)
    taken.write_text("somebody's")
    with pytest.raises(Conflict, match="exists already") as clash:
        driver.create_vm(spec)
    assert clash.value.field == "disks"
    assert host.traces() == [str(taken)]
    taken.unlink()
    missing = replace(spec, disks=(spec.disks[0], host.disk("data", image=Path("/no/such.img"))))
    with pytest.raises(InvalidRequest, match=r"no image /no/such\.img") as error:
        driver.create_vm(missing)
    assert error.value.field == "image"
    with pytest.raises(Conflict) as hungry:
        driver.create_vm(replace(spec, memory_mib=1 << 24))
    assert hungry.value.field == "memory_mib"
    broken = replace(spec, disks=(spec.disks[0], replace(spec.disks[1], name="system-2")))
    driver.create_vm(broken, paused=True)
    (Path(broken.disks[1].directory) / "empty-system-2.qcow2").write_text("not an image")
    driver.stop_vm("empty", force=True)
    with pytest.raises(HypervisorRefused, match="QEMU would not start"):
        driver.start_vm("empty")
    assert driver.vm_status("empty").power is PowerState.STOPPED
    driver.delete_vm("empty")
    assert host.traces() == []


def test_qemu_missing_is_said_before_anything_is_made(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidRequest, match="qemu-system-x86_64 is not installed"):
        host.driver().create_vm(host.empty_vm())
    assert host.traces() == []


def test_addresses_clash_within_a_network_only(host: Rig) -> None:
    driver = host.driver()
    one, two = host.network("1"), host.network("2")
    driver.apply_network(one)
    driver.apply_network(two)
    driver.create_vm(host.empty_vm("first", nics=host.nics(one)), paused=True)
    with pytest.raises(Conflict, match="belongs to interface nic0 of first") as clash:
        driver.create_vm(host.empty_vm("second", nics=host.nics(one)), paused=True)
    assert clash.value.field == "address"
    status = driver.create_vm(host.empty_vm("second", nics=host.nics(two)), paused=True)
    assert status.forwards[0].host_port != driver.vm_status("first").forwards[0].host_port


def test_a_killed_forward_comes_back_on_the_same_port(host: Rig) -> None:
    driver = host.driver()
    network = host.network("f")
    driver.apply_network(network)
    status = driver.create_vm(host.empty_vm("web", nics=host.nics(network)), paused=True)
    forward = processes.read_pid_file(host.directory / "data/vms/web/forward.pid")
    assert forward is not None
    processes.end(forward, grace_seconds=0)
    driver.close()
    successor = host.driver()
    successor.remove_leftovers()
    assert successor.vm_status("web").forwards == status.forwards
    port = status.forwards[0].host_port
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    # QEMU may end by itself; then so does the forward
    qemu = processes.identify(status.pid)
    forward = processes.read_pid_file(host.directory / "data/vms/web/forward.pid")
    assert qemu is not None
    assert forward is not None
    processes.end(qemu, grace_seconds=0)
    _wait_gone(forward)


def _wait_gone(process: processes.ProcessIdentity) -> None:
    deadline = time.monotonic() + 90
    while processes.is_alive(process):
        assert time.monotonic() < deadline, "it outlives its VM"
        processes.reap()
        time.sleep(0.02)


def test_user_networking_needs_no_privilege(host: Rig) -> None:
    driver = host.driver(is_privileged=False)
    network = host.network("u")
    driver.apply_network(network)
    status = driver.create_vm(host.empty_vm("web", nics=host.nics(network)), paused=True)
    assert not namespaces.exists(namespace_of(network.network_id))
    answer = driver.qmp("web").execute("human-monitor-command", {"command-line": "info usernet"})
    assert f" {status.forwards[0].host_port} " in answer
    assert "10.77.0.4  8080" in answer
    driver.delete_vm("web")
    driver.delete_network(network.network_id)
    assert host.traces() == []


def test_a_network_changes_only_where_nobody_is(host: Rig) -> None:
    driver = host.driver()
    network = host.network("c")
    name = namespace_of(network.network_id)
    driver.apply_network(network)
    driver.apply_network(network)
    assert {bridge_of("front"), bridge_of("back")} <= set(namespaces.links(name))
    moved = replace(network.subnets[1], prefix="10.78.0.0/24", gateway="10.78.0.1")
    driver.apply_network(replace(network, subnets=(network.subnets[0], moved)))
    assert namespaces.addresses(name, bridge_of("back")) == {"10.78.0.1/24"}
    driver.apply_network(replace(network, subnets=network.subnets[:1]))
    assert bridge_of("back") not in namespaces.links(name)
    driver.create_vm(host.empty_vm("web", nics=host.nics(network)[:1]), paused=True)
    with pytest.raises(Conflict, match="used by web"):
        driver.apply_network(replace(network, subnets=(moved,)))
    assert bridge_of("front") in namespaces.links(name)


def test_a_network_outlives_no_loss_of_the_state_directory(host: Rig) -> None:
    driver = host.driver()
    network = host.network("l")
    driver.apply_network(network)
    server = processes.read_pid_file(
        host.directory / f"data/networks/{network.network_id}/dhcp-front/dnsmasq.pid"
    )
    assert server is not None
    shutil.rmtree(host.directory / "data")
    repairs = host.driver().remove_leftovers()
    assert [repair for repair in repairs if network.network_id in repair] == list(repairs)
    assert len(repairs) == 1
    assert not namespaces.exists(namespace_of(network.network_id))
    assert not processes.is_alive(server)
    assert host.traces() == []


def test_what_cannot_be_repaired_does_not_keep_the_agent_down(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = host.driver()
    network = host.network("b")
    driver.apply_network(network)
    driver.create_vm(host.empty_vm(), paused=True)
    namespaces.remove(namespace_of(network.network_id))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        repairs = host.driver().remove_leftovers()
    assert repairs == (
        f"network {network.network_id} is still broken: ip (iproute2) is not installed",
    )
    host.driver().remove_leftovers()
    assert namespaces.exists(namespace_of(network.network_id))


def test_a_disk_from_a_recovery_point_has_its_base_until_it_is_forgotten(
    host: Rig, tmp_path: Path
) -> None:
    """The base is qemu-nbd's here; the export passes the same to the driver."""
    point = tmp_path / "point.raw"
    point.write_bytes(bytes(4 << 20))
    base = host.directory / "base"
    argv = ["qemu-nbd", "-r", "-t", "-f", "raw", "-x", "system", "-k", str(base), str(point)]
    driver = host.driver()
    spec = replace(host.empty_vm("rec"), disks=(host.disk("system", size_bytes=0),))
    with subprocess.Popen(argv) as server:
        while not base.exists():
            assert server.poll() is None
            time.sleep(0.01)
        driver.create_vm(spec, bases={"system": base}, paused=True)
        disk = driver.disk_nodes("rec")[0]
        assert (disk.node, disk.size_bytes, disk.is_hydrating) == ("disk-system", 4 << 20, True)
        nodes = block_nodes(driver.qmp("rec"))
        assert {"root-system", "disk-system", "file-system", "base-system"} <= set(nodes)
        assert nodes["disk-system"].bitmap(OVERLAY_BITMAP) is not None
        with pytest.raises(InvalidRequest, match="there is no disk data"):
            driver.create_vm(replace(spec, vm_id="r2"), bases={"data": base})
        driver.forget_bases("rec")
        assert not driver.disk_nodes("rec")[0].is_hydrating
        driver.stop_vm("rec", force=True)
        server.terminate()
    driver.start_vm("rec", paused=True)
    nodes = block_nodes(driver.qmp("rec"))
    assert "base-system" not in nodes
    # lost with a QEMU that was killed; a fresh one would not know what was written before
    assert not has_overlay_bitmap(nodes["disk-system"])
    driver.delete_vm("rec")
    base.unlink(missing_ok=True)
    assert host.traces() == []


def test_an_overlay_that_a_lost_host_left_is_in_the_way_only_while_it_is_in_use(
    host: Rig, tmp_path: Path
) -> None:
    disk = host.disk("system", size_bytes=4 << 20)
    left = Path(disk.directory) / "rec-system.0123abcd.qcow2"
    left.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(left), "4M"], check=True)
    content = left.read_bytes()
    broken = left.with_name("rec-system.qcow2")  # of an earlier version, its host's disk was full
    broken.write_bytes(b"QFI\xfb")
    spec, driver = replace(host.empty_vm("rec"), disks=(disk,)), host.driver()
    with (
        qemu_nbd(tmp_path / "user", "-f", "qcow2", str(left)),
        pytest.raises(Conflict, match="is in use"),
    ):
        driver.create_vm(spec, bases={"system": host.directory / "base"}, paused=True)
    with point_served(host, tmp_path) as base:
        driver.create_vm(spec, bases={"system": base}, paused=True)
        driver.delete_vm("rec")
    assert left.read_bytes() == content
    left.unlink()
    broken.unlink()
    assert host.traces() == []


@pytest.mark.parametrize("how", ["told to delete it", "killed while it made it"])
def test_a_host_that_comes_back_deletes_no_overlay_but_its_own(
    host: Rig, tmp_path: Path, how: str
) -> None:
    """Two hosts share a store. What the first one had of the VM goes when it is back; the VM runs
    on the second one by then, from another recovery point, under the same name."""
    disk = host.disk("system", size_bytes=4 << 20)
    spec = replace(host.empty_vm("rec"), disks=(disk,))
    first, second = host.driver(), Rig(host.directory / "second").driver()
    with point_served(host, tmp_path) as base:
        first.create_vm(spec, bases={"system": base}, paused=True)
        (lost,) = Path(disk.directory).iterdir()
        first.stop_vm("rec", force=True)
        second.create_vm(spec, bases={"system": base}, paused=True)
        (runs,) = set(Path(disk.directory).iterdir()) - {lost}
        if how == "told to delete it":
            first.delete_vm("rec")
        else:
            record_of(host, "rec").write_text(
                record_of(host, "rec").read_text().replace('"ready"', '"creating"')
            )
            assert "left half-made" in host.driver().remove_leftovers()[0]
        assert list(Path(disk.directory).iterdir()) == [runs]
        second.delete_vm("rec")
    assert host.traces() == []


def test_a_vm_whose_start_cannot_be_noted_does_not_run(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next agent would end it as half-started, however long it has run by then."""
    driver = host.driver()
    driver.create_vm(host.empty_vm("vm"), paused=True)
    driver.stop_vm("vm", force=True)
    put = Records.put

    def full(records: Records[object], record_id: str, record: object) -> None:
        if isinstance(record, VmRecord) and record.phase is Phase.READY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(records, record_id, record)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "put", full)
        with pytest.raises(OSError, match="No space"):
            driver.start_vm("vm", paused=True)
    assert driver.vm_status("vm").power is PowerState.STOPPED
    assert driver.start_vm("vm", paused=True).power is PowerState.PAUSED
    assert host.driver().remove_leftovers() == ()
    assert driver.vm_status("vm").power is PowerState.PAUSED


def test_a_disk_that_is_kept_takes_no_other_ones_place(host: Rig) -> None:
    disk = host.disk("system")
    driver = host.driver()
    for _ in range(2):
        driver.create_vm(replace(host.empty_vm("vm"), disks=(disk,)), paused=True)
        driver.delete_vm("vm", keep_disks=("system",))
    kept = sorted(Path(disk.directory).iterdir())
    assert [path.name for path in kept] == ["vm-system.raw.kept", "vm-system.raw.kept1"]
    for path in kept:
        path.unlink()


def record_of(host: Rig, vm_id: str) -> Path:
    (found,) = (host.directory / "data").glob(f"**/{vm_id}/record.json")
    return found


@contextmanager
def point_served(host: Rig, tmp_path: Path) -> Iterator[Path]:
    """An empty recovery point is served, by qemu-nbd; give its socket."""
    point = tmp_path / "point.raw"
    point.write_bytes(bytes(4 << 20))
    options = ("-r", "-f", "raw", "-x", "system", "-e", "9", str(point))
    with qemu_nbd(host.directory / "base", *options) as base:
        yield base


@contextmanager
def qemu_nbd(socket: Path, *arguments: str) -> Iterator[Path]:
    """Somebody has the image open, and serves it at `socket`."""
    with subprocess.Popen(["qemu-nbd", "-t", "-k", str(socket), *arguments]) as server:
        try:
            while not socket.exists():
                assert server.poll() is None
                time.sleep(0.01)
            yield socket
        finally:
            server.terminate()
    socket.unlink(missing_ok=True)


def test_images_are_imported_sparse_and_in_the_wanted_format(host: Rig, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    with source.open("wb") as image:
        image.truncate(64 << 20)
        image.seek(1 << 20)
        image.write(b"content")
    for image_format in ("raw", "qcow2"):
        disk = host.disk("system", image=source, format=image_format, size_bytes=65 << 20)
        path = disks.image_path("vm", disk)
        disks.create_image(path, disk)
        assert disks.image_size(path, image_format) == 65 << 20
        assert path.stat().st_blocks * 512 < 4 << 20
        with pytest.raises(Conflict):
            disks.create_image(path, disk)
        subprocess.run(
            ["qemu-img", "compare", "-q", "-F", image_format, "-f", "raw", source, path],
            check=True,
        )
        disks.delete_image(path)
    assert [path for path in (host.directory / "disks").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("changes", [{"size_bytes": 512}, {"size_bytes": 32 << 20}])
def test_an_image_larger_than_the_disk_is_refused(
    host: Rig, tmp_path: Path, changes: dict[str, int]
) -> None:
    source = tmp_path / "source.raw"
    source.touch()
    os.truncate(source, 64 << 20)
    disk = host.disk("system", image=source, **changes)
    with pytest.raises(InvalidRequest) as error:
        disks.create_image(disks.image_path("vm", disk), disk)
    assert error.value.field == "size_bytes"


def test_an_image_that_needs_another_file_is_refused(host: Rig, tmp_path: Path) -> None:
    """Its backing file would be read by the VM: it may name any file of the host."""
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(1 << 20))
    lure = tmp_path / "lure.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(lure)]
    subprocess.run(create, check=True)
    disk = host.disk("system", image=lure)
    with pytest.raises(InvalidRequest, match=r"needs another file"):
        disks.create_image(disks.image_path("vm", disk), disk)


@pytest.mark.parametrize("size_bytes", [0, 513])
def test_an_empty_disk_needs_a_size(host: Rig, size_bytes: int) -> None:
    disk = DiskSpec(
        name="x", directory=str(host.directory / "d"), format="raw", size_bytes=size_bytes
    )
    with pytest.raises(LeewardError) as error:
        disks.create_image(disks.image_path("vm", disk), disk)
    assert error.value.field == "size_bytes"


def test_socket_paths_stay_short_enough(host: Rig) -> None:
    driver = host.driver()
    long_id = "v" * 40
    driver.create_vm(host.empty_vm(long_id), paused=True)
    assert driver.qmp(long_id).is_connected


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="needs an assembler")
def test_the_proof_guest_is_what_its_source_says(tmp_path: Path) -> None:
    source = Path(accelerator.__file__).with_name("accelerator_probe.s")
    compiled, sector = tmp_path / "p.o", tmp_path / "p.bin"
    subprocess.run(["as", "--64", source, "-o", compiled], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", compiled, sector], check=True)
    assert sector.read_bytes() == accelerator.BOOT_SECTOR


def test_the_proof_guest_runs_to_its_end_on_an_accelerator_that_works() -> None:
    assert accelerator.proves(Accelerator.TCG)


def test_a_halted_vm_keeps_its_qemu_and_can_be_let_go_on(host: Rig) -> None:
    driver = host.driver()
    driver.create_vm(host.empty_vm())
    pid = driver.vm_status("empty").pid
    assert driver.halt_vm("empty", power_off_seconds=0.2) is False, "no guest to power off"
    assert driver.halt_vm("empty", power_off_seconds=0.2) is False
    assert driver.vm_status("empty").power is PowerState.PAUSED
    with pytest.raises(Conflict, match="its disks change"):
        driver.disk_images("empty")
    driver.start_vm("empty")
    assert (driver.vm_status("empty").power, driver.vm_status("empty").pid) == (
        PowerState.RUNNING,
        pid,
    )
    driver.halt_vm("empty", power_off_seconds=0.2)
    assert driver.stop_vm("empty", force=False).power is PowerState.STOPPED
    assert [image.disk for image in driver.disk_images("empty")] == ["system", "data"]


def test_disks_that_are_nowhere_else_outlive_their_vm(host: Rig) -> None:
    driver = host.driver()
    driver.create_vm(host.empty_vm(), paused=True)
    driver.stop_vm("empty", force=True)
    images = {image.disk: image.path for image in driver.disk_images("empty")}
    driver.delete_vm("empty", keep_disks=("data",))
    assert not images["system"].exists()
    kept = images["data"].with_name(images["data"].name + ".kept")
    assert [path.name for path in images["data"].parent.iterdir()] == [kept.name]
