"""Disks put into, made larger in and taken from a real guest that is replicated meanwhile."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fabric_rig import GUEST_SECONDS, Rig, rig
from tests.integration.replication_rig import ITEM, Target
from tests.integration.storage_daemon import wait_until

from leeward.agent.replication import Replications
from leeward.agent.trimming import Trimming
from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest
from leeward.core.units import MIB
from leeward.fabric.qemu_driver import QemuDriver
from leeward.mobility.replicator import Places, Replicator, Tuning
from leeward.mobility.tap_client import stop_watchdog
from leeward.mobility.trim import trim_guest
from leeward.model.recovery import Consistency
from leeward.object_store.file import create_file_store
from leeward.protocol.fabric import ReplicationSpec, TrimSpec, VmSpec
from leeward.qemu import hotplug
from leeward.replica.manifest import CutManifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SIZE = 8 * MIB


@pytest.fixture
def host() -> Iterator[Rig]:
    with rig() as made:
        yield made


class Guest:
    """What the test does inside the guest, through the guest's own agent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str, **arguments: object) -> Any:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(GUEST_SECONDS)
            channel.connect(str(self._path))
            request = {"execute": command, "arguments": arguments}
            channel.sendall(b"\n" + json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    if "return" in answer:
                        return answer["return"]
                    raise AssertionError(answer)
        raise AssertionError("the guest's agent went away")

    def wait_booted(self) -> None:
        self.ask("guest-ping")

    def sectors(self, device: str) -> int:
        """Return how large the guest sees the disk; 0: it does not."""
        try:
            handle = self.ask("guest-file-open", path=f"/sys/block/{device}/size", mode="r")
        except AssertionError:
            return 0
        read = self.ask("guest-file-read", handle=handle)
        self.ask("guest-file-close", handle=handle)
        return int(base64.b64decode(read["buf-b64"]))

    def run(self, *command: str) -> None:
        """Return when the program has ended well."""
        started = self.ask(
            "guest-exec", **{"path": command[0], "arg": list(command[1:]), "capture-output": True}
        )

        def has_ended() -> bool:
            status = self.ask("guest-exec-status", pid=started["pid"])
            assert not status.get("exitcode"), status
            return bool(status["exited"])

        wait_until(has_ended, f"the end of {command[0]}", seconds=GUEST_SECONDS)

    def write(self, device: str, offset: int, data: bytes) -> None:
        handle = self.ask("guest-file-open", path=f"/dev/{device}", mode="r+")
        self.ask("guest-file-seek", handle=handle, offset=offset, whence=0)
        encoded = base64.b64encode(data).decode()
        assert self.ask("guest-file-write", handle=handle, **{"buf-b64": encoded})
        self.ask("guest-file-flush", handle=handle)
        self.ask("guest-file-close", handle=handle)


class Replication:
    """The VM's replication into a directory, and what its cuts give."""

    def __init__(self, host: Rig, driver: QemuDriver, vm: VmSpec) -> None:
        self._driver = driver
        self.store = create_file_store(host.directory / "cache")
        self.run_dir = host.directory / "r"
        self.spec = ReplicationSpec(
            item_id=ITEM,
            epoch=1,
            vm_id=vm.vm_id,
            disks=tuple(disk.name for disk in vm.disks),
            cache_url=self.store.url,
            cut_interval_seconds=0.2,
        )
        self._places = Places(
            run_dir=self.run_dir,
            shm_dir=host.directory / "shm",
            data_dir=host.directory / "agent",
            nbd_socket=host.directory / "nbd.sock",
        )
        sizes = {node.disk: node.size_bytes for node in driver.disk_nodes(vm.vm_id)}
        self.target = Target(self.store, sizes)
        self.replicator = self.restart(*self.spec.disks)

    def restart(self, *disks: str) -> Replicator:
        self.spec = replace(self.spec, disks=disks)
        self.replicator = self.make(self.spec)
        self.replicator.start()
        return self.replicator

    def make(self, spec: ReplicationSpec) -> Replicator:
        return Replicator(
            spec,
            open_session=lambda: self._driver.qmp(self.spec.vm_id),
            open_store=lambda _: self.store,
            places=self._places,
            tuning=Tuning(buffer_bytes=4 * MIB, buffer_count=16, digests_seconds=0.5),
        )

    def wait_point(self) -> CutManifest:
        """Return the first point whose mark is later than this call, everything before applied."""
        called_ns, found = time.time_ns(), []

        def has_come() -> bool:
            while (cut := self.target.apply_next()) is not None:
                if cut.consistency is not Consistency.NONE and cut.time_ns > called_ns:
                    found.append(cut)
            return bool(found)

        self.replicator._stream.demanded += 1
        wait_until(has_come, "a recovery point", seconds=GUEST_SECONDS)
        return found[-1]

    def disks(self, cut: CutManifest) -> dict[str, int]:
        return {disk.disk: disk.size_bytes for disk in cut.disks}


def test_a_running_guest_gets_a_disk_a_larger_one_and_loses_it_while_it_is_replicated(
    host: Rig,
) -> None:
    driver = host.driver(is_privileged=False)
    vm = replace(host.guest_vm("web", ()), forwards=())
    driver.create_vm(vm)
    guest = Guest(driver._files("web").agent)
    guest.wait_booted()
    stream = Replication(host, driver, vm)
    try:
        first = set(stream.disks(stream.wait_point()))
        assert first == {"system", "data"}

        extra = host.disk("extra", size_bytes=SIZE)
        assert driver.add_disk("web", extra).disk_sizes["extra"] == SIZE
        assert driver.add_disk("web", extra).disk_sizes["extra"] == SIZE, "asked again"
        wait_until(lambda: guest.sectors("vdc") == SIZE // 512, "seen by the guest")
        guest.write("vdc", MIB, b"before it is replicated" * 100)
        stream.replicator.stop(detach=False)
        stream.target.images["extra"] = bytearray(SIZE)
        stream.restart("system", "data", "extra")
        assert stream.disks(stream.wait_point())["extra"] == SIZE
        guest.write("vdc", 2 * MIB, b"while it is" * 100)
        stream.wait_point()
        image = Path(extra.directory) / "web-extra.raw"
        assert bytes(stream.target.images["extra"]) == image.read_bytes()

        stream.replicator.stop(detach=False)
        stream.replicator.let_go("extra")
        driver.grow_disk("web", "extra", 2 * SIZE)
        wait_until(lambda: guest.sectors("vdc") == 2 * SIZE // 512, "larger in the guest")
        guest.write("vdc", 2 * SIZE - 8192, b"at the new end" * 100)
        stream.target.images["extra"] += bytes(SIZE)
        stream.restart("system", "data", "extra")
        assert stream.disks(stream.wait_point())["extra"] == 2 * SIZE
        assert bytes(stream.target.images["extra"]) == image.read_bytes()
        with pytest.raises(InvalidRequest, match="cannot become smaller"):
            driver.grow_disk("web", "extra", SIZE)
        with pytest.raises(Conflict, match="boots from"):
            driver.remove_disk("web", "system")

        driver.unplug_disk("web", "extra")
        wait_until(lambda: guest.sectors("vdc") == 0, "gone from the guest")
        stream.replicator.stop(detach=False)
        stream.restart("system", "data")
        assert set(stream.disks(stream.wait_point())) == {"system", "data"}
        driver.remove_disk("web", "extra")
        driver.remove_disk("web", "extra")
        assert not image.exists()
        assert {node.disk for node in driver.disk_nodes("web")} == {"system", "data"}
    finally:
        stream.replicator.stop(detach=True)
        stop_watchdog(stream.run_dir)


def test_an_agent_killed_while_it_adds_a_disk_leaves_none(host: Rig) -> None:
    driver = host.driver(is_privileged=False)
    driver.create_vm(host.empty_vm())
    extra = host.disk("extra", size_bytes=SIZE)
    driver.add_disk("empty", extra)
    record = driver._record("empty")
    driver._vms.put("empty", replace(record, half_made="extra"))
    driver.stop_vm("empty", force=True)
    driver.close()
    successor = host.driver(is_privileged=False)
    assert any("extra" in repair for repair in successor.remove_leftovers())
    assert {node.disk for node in successor.disk_nodes("empty")} == {"system", "data"}
    assert not os.listdir(extra.directory)
    assert successor.add_disk("empty", extra).disk_sizes["extra"] == SIZE
    assert successor.grow_disk("empty", "extra", 2 * SIZE).disk_sizes["extra"] == 2 * SIZE


def half_make(driver: QemuDriver, disk: str) -> None:
    """Leave the disk as an attempt does that a silent QEMU, or a kill, has cut short."""
    driver._vms.put("empty", replace(driver._record("empty"), half_made=disk))


def test_a_disk_that_was_half_made_and_is_added_again_stays(host: Rig) -> None:
    """It was reported as added, written to, and taken away when an agent next started."""
    driver = host.driver(is_privileged=False)
    driver.create_vm(host.empty_vm(), paused=True)
    extra, other = host.disk("extra", size_bytes=SIZE), host.disk("other", size_bytes=SIZE)
    driver.stop_vm("empty", force=True)
    driver.add_disk("empty", extra)
    half_make(driver, "extra")
    driver.add_disk("empty", extra)
    (image,) = Path(extra.directory).glob("*extra*")
    image.write_bytes(b"x" * SIZE)
    assert host.driver(is_privileged=False).remove_leftovers() == ()
    assert image.read_bytes() == b"x" * SIZE

    half_make(driver, "extra")  # and one that nobody adds again is no disk of the VM
    driver.add_disk("empty", other)
    assert {disk.name for disk in driver._record("empty").spec.disks} == {"system", "data", "other"}
    half_make(driver, "other")
    driver.start_vm("empty", paused=True)
    assert {node.disk for node in driver.disk_nodes("empty")} == {"system", "data"}
    assert host.driver(is_privileged=False).remove_leftovers() == ()


def test_a_disk_that_somebody_uses_is_not_removed_later(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = host.driver(is_privileged=False)
    driver.create_vm(host.empty_vm(), paused=True)
    extra = host.disk("extra", size_bytes=SIZE)
    driver.add_disk("empty", extra)
    monkeypatch.setattr(hotplug, "unplug", lambda session, disk: None)  # the guest has let go
    with pytest.raises(HypervisorRefused, match="in use"):
        driver.remove_disk("empty", "extra")
    driver.stop_vm("empty", force=True)
    driver.start_vm("empty", paused=True)
    assert host.driver(is_privileged=False).remove_leftovers() == ()
    assert "extra" in {node.disk for node in driver.disk_nodes("empty")}


def test_space_that_a_replicated_guest_discards_is_given_back(host: Rig) -> None:
    driver = host.driver(is_privileged=False)
    vm = replace(host.guest_vm("web", ()), forwards=())
    driver.create_vm(vm)
    guest = Guest(driver._files("web").agent)
    guest.wait_booted()
    made: list[Replication] = []

    def make(spec: ReplicationSpec, on_news: Callable[[], None]) -> Replicator:
        made[0].replicator = made[0].make(spec)
        return made[0].replicator

    made.append(Replication(host, driver, vm))
    stream = made[0]
    stream.replicator.stop(detach=False)
    replications = Replications(driver, host.directory / "replications", make)
    try:
        replications.start(stream.spec)
        stream.wait_point()
        guest.run("/bin/dd", "if=/dev/urandom", "of=/data/junk", "bs=1M", "count=12")
        stream.wait_point()
        guest.run("/bin/rm", "/data/junk")
        trimming = Trimming(driver, replications, trim_guest)
        freed = trimming.trim(TrimSpec(vm_id="web", item_id=ITEM)).freed_bytes
        assert freed > 10 * MIB
        driver.qmp("web").execute("stop")
        stream.wait_point()
        for disk in vm.disks:
            image = Path(disk.directory) / f"web-{disk.name}.raw"
            assert bytes(stream.target.images[disk.name]) == image.read_bytes()
    finally:
        replications.stop(ITEM)
        stop_watchdog(stream.run_dir)
