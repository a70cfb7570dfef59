"""An agent's verbs by name, its lanes, and what becomes of bad arguments."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent.fakes import (
    FakeDriver,
    FakeExports,
    FakeHydrator,
    FakeReplicator,
    boot_spec,
    replication_spec,
    vm_spec,
)

from leeward.agent.drills import DrillVerbs
from leeward.agent.erasure import erase_item
from leeward.agent.fabric_verbs import FabricVerbs
from leeward.agent.host import HostAgent
from leeward.agent.recovery import Recoveries
from leeward.agent.replication import Replications
from leeward.agent.scripts import Scripts
from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, Fenced, InvalidRequest, NotFound, Unavailable
from leeward.model.drills import DiskDigest
from leeward.model.resources import PowerState
from leeward.object_store.open import open_store
from leeward.protocol.drills import ProbingReport, ProbingSpec, ReadReport, ReadSpec
from leeward.protocol.fabric import (
    AccountSpec,
    ProcessingSpec,
    ReplicaDisk,
    SeedResult,
    VmStatus,
)
from leeward.protocol.messages import Command, Verb


class Host:
    """An agent over a fake fabric."""

    def __init__(self, directory: Path) -> None:
        self.driver = FakeDriver()
        self.storage = directory / "storage"
        calls = self.driver.calls
        recoveries = Recoveries(
            self.driver,
            directory / "recoveries",
            FakeExports(calls),
            lambda boot, export: FakeHydrator(boot.vm.vm_id, calls),
        )
        self.replications = Replications(
            self.driver, directory / "replications", lambda spec, _: FakeReplicator(spec, calls)
        )
        self.agent = HostAgent(
            self.driver,
            FabricVerbs(self.driver, self.storage),
            self.replications,
            recoveries,
            seed=lambda spec: SeedResult(is_seeded=True),
            trim_guest=lambda path: calls.append("trim the guest"),
            scripts=Scripts(directory / "scripts", directory / "script-runs"),
            drills=DrillVerbs(
                self.driver,
                recoveries,
                probe=lambda spec: ProbingReport(findings=()),
                digest=lambda socket, disks: tuple(
                    DiskDigest(disk=disk, size_bytes=1, bytes_read=1, sha256=str(socket))
                    for disk in disks
                ),
            ),
            wait_port=lambda spec: None,
            storage_root=self.storage,
        )

    def do(self, verb: Verb, arguments: object) -> dict[str, object]:
        return self.agent.carry_out(Command(id="c", verb=verb, arguments=to_plain(arguments)))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_start_carried_out_after_the_fence_starts_nothing(host: Host) -> None:
    host.driver.vms["web-1"] = PowerState.RUNNING
    host.do(Verb.REPLICATION_START, replication_spec())
    host.do(Verb.REPLICATION_FENCE, {"item_id": "item-1", "epoch": 2, "vm_id": "web-1"})
    with pytest.raises(Fenced, match="runs elsewhere"):
        host.do(Verb.VM_START, {"vm_id": "web-1"})
    assert host.driver.vms["web-1"] is PowerState.STOPPED
    host.do(Verb.REPLICATION_STOP, {"item_id": "item-1"})  # protection was disabled
    host.do(Verb.VM_START, {"vm_id": "web-1"})


def test_a_start_overtaken_by_the_fence_does_not_stay(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.driver.vms["web-1"] = PowerState.STOPPED
    host.do(Verb.REPLICATION_START, replication_spec())
    start = host.driver.start_vm

    def overtaken(vm_id: str, *, paused: bool = False) -> VmStatus:
        host.do(Verb.REPLICATION_FENCE, {"item_id": "item-1", "epoch": 2, "vm_id": vm_id})
        return start(vm_id)

    monkeypatch.setattr(host.driver, "start_vm", overtaken)
    with pytest.raises(Fenced):
        host.do(Verb.VM_START, {"vm_id": "web-1"})
    assert host.driver.vms["web-1"] is PowerState.STOPPED


def test_life_of_a_vm(host: Host) -> None:
    assert host.do(Verb.VM_CREATE, vm_spec())["power"] == "running"
    assert host.do(Verb.VM_STOP, {"vm_id": "web-1", "force": False})["power"] == "stopped"
    assert host.do(Verb.VM_START, {"vm_id": "web-1"})["power"] == "running"
    assert host.do(Verb.VM_DELETE, {"vm_id": "web-1"}) == {"is_kept": False}
    with pytest.raises(NotFound):
        host.do(Verb.VM_START, {"vm_id": "web-1"})


def test_status_says_everything(host: Host) -> None:
    host.do(Verb.VM_CREATE, vm_spec())
    host.do(Verb.REPLICATION_START, replication_spec())
    status = host.agent.status()
    assert [vm.vm_id for vm in status.vms] == ["web-1"]
    assert [each.item_id for each in status.replications] == ["item-1"]
    assert status.storage_root == str(host.storage)
    assert (status.memory_available_mib, status.memory_total_mib) == (1024, 2048)


def test_arguments_that_are_none_name_the_field(host: Host) -> None:
    with pytest.raises(InvalidRequest, match="vm_id"):
        host.do(Verb.VM_STOP, {"force": True})


def test_worker_verb_is_refused(host: Host) -> None:
    with pytest.raises(InvalidRequest):
        host.do(Verb.PROCESSING_START, {})


def test_commands_of_one_vm_share_a_lane(host: Host) -> None:
    def lane(verb: Verb, arguments: object) -> str:
        return host.agent.lane_of(Command(id="c", verb=verb, arguments=to_plain(arguments)))

    assert lane(Verb.VM_CREATE, vm_spec()) == lane(Verb.VM_STOP, {"vm_id": "web-1"})
    assert lane(Verb.RECOVERY_BOOT, boot_spec()) == lane(Verb.RECOVERY_DISCARD, {"vm_id": "web-1"})
    assert lane(Verb.REPLICATION_START, replication_spec()) == lane(
        Verb.REPLICATION_FENCE, {"item_id": "item-1", "epoch": 2, "vm_id": "web-1"}
    )
    assert lane(Verb.VM_STOP, {"vm_id": "a"}) != lane(Verb.VM_STOP, {"vm_id": "b"})


def account(host: Host, name: str = "sa1") -> AccountSpec:
    root = host.storage / name
    return AccountSpec(name=name, url=f"file://{root}/objects", disk_directory=f"{root}/disks")


def test_vms_that_are_not_protected_share_no_lane(host: Host) -> None:
    trims = [
        Command(id="c", verb=Verb.VM_TRIM, arguments={"vm_id": vm_id, "item_id": ""})
        for vm_id in ("web-1", "web-2")
    ]
    assert [host.agent.lane_of(trim) for trim in trims] == ["vm:web-1", "vm:web-2"]


def test_a_vm_that_cannot_be_fenced_yet_keeps_no_other_from_booting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.driver.vms["db-1"] = PowerState.RUNNING
    begun, go_on = threading.Event(), threading.Event()
    stop = host.driver.stop_vm

    def hang(vm_id: str, *, force: bool) -> VmStatus:
        begun.set()
        assert go_on.wait(60)
        return stop(vm_id, force=force)

    monkeypatch.setattr(host.driver, "stop_vm", hang)
    fence = {"item_id": "item-2", "epoch": 2, "vm_id": "db-1"}
    fencing = threading.Thread(target=host.do, args=(Verb.REPLICATION_FENCE, fence))
    fencing.start()
    assert begun.wait(60)
    booting = threading.Thread(target=host.do, args=(Verb.RECOVERY_BOOT, boot_spec()))
    booting.start()
    booting.join(60)
    try:
        assert host.driver.vms["web-1"] is PowerState.RUNNING
    finally:
        go_on.set()
        fencing.join(60)
        booting.join(60)


def test_account_is_made_and_removed_with_its_objects(host: Host) -> None:
    spec = account(host)
    host.do(Verb.ACCOUNT_CREATE, spec)
    host.do(Verb.ACCOUNT_CREATE, spec)
    open_store(spec.url).create("x", b"1")
    host.do(Verb.ACCOUNT_DELETE, spec)
    host.do(Verb.ACCOUNT_DELETE, spec)
    assert not (host.storage / "sa1").exists()


@pytest.mark.parametrize("url", ["ftp://x", "s3://", "file://relative", "objects"])
def test_an_account_whose_url_is_no_stores_is_not_made(host: Host, url: str) -> None:
    spec = replace(account(host), url=url)
    with pytest.raises(InvalidRequest, match=r"sa1: .* is not an object store's URL") as refused:
        host.do(Verb.ACCOUNT_CREATE, spec)
    assert "s3://bucket/prefix" in str(refused.value.hint)
    assert not Path(spec.disk_directory).exists()


def test_account_that_holds_disks_is_not_removed(host: Host) -> None:
    spec = account(host)
    host.do(Verb.ACCOUNT_CREATE, spec)
    (Path(spec.disk_directory) / "web-1-d.raw").write_bytes(b"1")
    with pytest.raises(Conflict):
        host.do(Verb.ACCOUNT_DELETE, spec)


def test_directories_outside_the_storage_root_are_never_removed(host: Host, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    spec = AccountSpec(name="sa", url=f"file://{theirs}/o", disk_directory=f"{theirs}/d")
    host.do(Verb.ACCOUNT_CREATE, spec)
    host.do(Verb.ACCOUNT_DELETE, spec)
    assert (theirs / "o").is_dir()
    assert (theirs / "d").is_dir()


@pytest.mark.parametrize("place", ["", "sa1", "sa1/objects"], ids=["root", "account", "objects"])
def test_an_account_inside_anothers_takes_nothing_with_it(host: Host, place: str) -> None:
    host.do(Verb.ACCOUNT_CREATE, account(host))
    kept = host.storage / "sa1" / "objects" / "kept"
    kept.write_bytes(b"1")
    spec = AccountSpec(name="sa2", url=f"file://{host.storage / place}", disk_directory="")
    host.do(Verb.ACCOUNT_DELETE, spec)
    assert kept.exists()


def test_erasing_an_item_leaves_the_others(tmp_path: Path) -> None:
    store = open_store("memory://erasure-test")
    for name in ("items/a/catalog/1", "items/a/disks/d/segments/1", "items/ab/catalog/1"):
        store.create(name, b"x")
    replica = ReplicaDisk(disk="d", size_bytes=1, target_url=store.url)
    spec = ProcessingSpec(
        item_id="a",
        epoch=1,
        cache_url=f"file://{tmp_path}/gone",
        catalog_url=store.url,
        replicas=(replica,),
    )
    erase_item(spec, open_store)
    erase_item(spec, open_store)
    assert store.list("") == ["items/ab/catalog/1"]


def test_an_item_is_erased_where_its_other_store_has_been_removed(tmp_path: Path) -> None:
    store, gone = open_store("memory://erasure-of-half"), f"file://{tmp_path}/gone"
    store.create("items/a/disks/e/segments/1", b"x")
    spec = ProcessingSpec(
        item_id="a",
        epoch=1,
        cache_url=gone,
        catalog_url=gone,
        replicas=tuple(
            ReplicaDisk(disk=disk, size_bytes=1, target_url=url)
            for disk, url in (("d", gone), ("e", store.url))
        ),
    )
    with pytest.raises(Unavailable):
        erase_item(spec, open_store)
    store.create("items/a/disks/e/segments/2", b"x")
    erase_item(spec, open_store, [gone])
    assert store.list("") == []


def test_a_fence_that_comes_late_does_not_stop_what_has_failed_back_since(host: Host) -> None:
    host.driver.vms["web-1"] = PowerState.RUNNING
    host.do(Verb.REPLICATION_START, replication_spec())
    late = {"item_id": "item-1", "epoch": 2, "vm_id": "web-1"}
    host.do(Verb.REPLICATION_FENCE, late)
    host.do(Verb.RECOVERY_DISCARD, {"vm_id": "web-1"})
    host.do(Verb.RECOVERY_BOOT, replace(boot_spec(), epoch=5))
    host.do(Verb.REPLICATION_FENCE, late)
    host.agent.supersede("item-1", 4)
    assert host.driver.vms == {"web-1": PowerState.RUNNING}
    host.do(Verb.VM_STOP, {"vm_id": "web-1", "force": False})
    host.do(Verb.VM_START, {"vm_id": "web-1"})  # what was superseded here is forgotten
    host.do(Verb.REPLICATION_FENCE, {"item_id": "item-1", "epoch": 6, "vm_id": "web-1"})
    assert host.driver.vms == {"web-1": PowerState.STOPPED}


def test_a_fence_stops_what_another_item_has_booted_here(host: Host) -> None:
    """The VM that one item failed over to is the source of the next one, whose epochs are its own:
    that this host booted it under the former's epoch 2 says nothing about the latter's."""
    for order in (Verb.REPLICATION_FENCE, None):
        host.do(Verb.RECOVERY_BOOT, replace(boot_spec(), epoch=2))
        host.do(Verb.REPLICATION_START, replace(replication_spec(), item_id="item-2"))
        if order:
            host.do(order, {"item_id": "item-2", "epoch": 2, "vm_id": "web-1"})
        else:
            host.agent.supersede("item-2", 2)
        assert host.driver.vms == {"web-1": PowerState.STOPPED}
        host.do(Verb.REPLICATION_STOP, {"item_id": "item-2"})
        host.do(Verb.RECOVERY_DISCARD, {"vm_id": "web-1"})


def test_a_boot_that_came_to_nothing_keeps_no_fence_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(item_id: str, epoch: int) -> None:
        raise Unavailable("QEMU cannot be freed now")

    host.driver.vms["web-1"] = PowerState.RUNNING
    host.do(Verb.REPLICATION_START, replication_spec())
    with monkeypatch.context() as patch:
        patch.setattr(host.replications, "give_way", refuse)
        with pytest.raises(Unavailable):
            host.do(Verb.RECOVERY_BOOT, replace(boot_spec(), epoch=5))
    host.do(Verb.REPLICATION_FENCE, {"item_id": "item-1", "epoch": 2, "vm_id": "web-1"})
    assert host.driver.vms == {"web-1": PowerState.STOPPED}


def test_a_vm_that_was_there_before_survives_the_undoing_of_a_job_it_was_in_the_way_of(
    host: Host,
) -> None:
    """The vault was lost, or had forgotten this host: it asks for a VM that runs here."""
    first, second = (replace(vm_spec(), made_for=job) for job in ("job-1", "job-2"))
    point = replace(boot_spec(), vm=second)
    undo = {"vm_id": "web-1", "made_for": "job-2"}
    for begun in ((Verb.VM_CREATE, first), (Verb.RECOVERY_BOOT, replace(point, vm=first))):
        host.do(*begun)
        with pytest.raises(Conflict):
            host.do(Verb.RECOVERY_BOOT, replace(point, point_id="rp-0001-00000099"))
        for verb in (Verb.RECOVERY_DISCARD, Verb.VM_DELETE):
            assert host.do(verb, undo) == {"is_kept": True}
        assert host.driver.vms == {"web-1": PowerState.RUNNING}
        undone = host.do(Verb.RECOVERY_DISCARD, {"vm_id": "web-1", "made_for": "job-1"})
        assert (undone, host.driver.vms) == ({"is_kept": False}, {})
    assert host.do(Verb.RECOVERY_DISCARD, undo) == {"is_kept": False}


def test_a_test_vm_is_looked_at_and_its_point_read(host: Host) -> None:
    host.do(Verb.RECOVERY_BOOT, boot_spec())
    read = host.do(Verb.POINT_READ, ReadSpec(run_id="r", vm_id="web-1"))
    (read_disk,) = from_plain(read, ReadReport).disks
    assert read_disk.sha256 == "/run/web-1.sock"
    shown = host.do(Verb.CONSOLE_VIEW, {"run_id": "r", "vm_id": "web-1"})
    assert shown == {"text": "login: ", "screen": ""}
    asked = ProbingSpec(run_id="r", network_id="n", address="", boot_seconds=1)
    assert host.do(Verb.PROBE_RUN, asked) == {"findings": ()}
