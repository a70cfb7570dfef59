"""Disks of a protected VM: what vault, worker and source are told, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import GIB, Site, site
from tests.unit.workflows.test_every_verb import protected
from tests.unit.workflows.test_replay import committed

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest, NotFound
from leeward.failover.disks import with_all_disks, with_disks_of_point
from leeward.model.recovery import Job, JobState
from leeward.model.resources import Disk, PowerState, VirtualMachine
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord

LOGS = Disk(name="logs", storage_account="data", size_bytes=GIB)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as it:
        protected(it)
        yield it


def add(made: Site, disk: Disk = LOGS) -> Job:
    return made.run(made.service.disks.add("east", "web-1", disk))


def remove(made: Site, disk: str) -> Job:
    return made.run(made.service.disks.remove("east", "web-1", disk))


def item(made: Site) -> ItemRecord:
    with made.vault.read() as records:
        return records.items.get("main", "web-1")


def vm(made: Site) -> VirtualMachine:
    with made.vault.read() as records:
        return records.resources.get(VirtualMachine, "east", "web-1").value


def names(sent: object) -> list[str]:
    assert isinstance(sent, list)
    return [one["disk"] for one in sent]


def test_a_disk_is_known_to_the_target_before_the_source_sends_it(made: Site) -> None:
    before = made.asked[Verb.PROCESSING_START]
    seen: list[int] = []
    made.before_answer[Verb.REPLICATION_START] = lambda: seen.append(
        made.asked[Verb.PROCESSING_START]
    )
    assert add(made).state is JobState.SUCCEEDED
    assert seen == [before + 1]
    assert names(made.last[Verb.PROCESSING_START]["replicas"]) == ["system", "data", "logs"]
    assert made.last[Verb.REPLICATION_START]["disks"] == ["system", "data", "logs"]
    record = item(made)
    assert record.item.disks[2].target_account == record.item.disks[1].target_account
    assert [disk.name for disk in record.target_vm.disks] == ["system", "data", "logs"]
    assert [disk.name for disk in vm(made).disks] == ["system", "data", "logs"]


def test_a_disk_that_went_stays_with_the_target_and_its_name_is_not_used_again(made: Site) -> None:
    assert remove(made, "data").state is JobState.SUCCEEDED
    assert made.last[Verb.REPLICATION_START]["disks"] == ["system"]
    assert names(made.last[Verb.PROCESSING_START]["replicas"]) == ["system", "data"]
    assert [disk.name for disk in vm(made).disks] == ["system"]
    with pytest.raises(Conflict, match="had a disk data once"):
        add(made, Disk(name="data", storage_account="data", size_bytes=GIB))


def test_a_guest_that_keeps_its_disk_changes_nothing(made: Site) -> None:
    before = item(made), vm(made)
    made.refuse[Verb.VM_DISK_UNPLUG] = HypervisorRefused("the guest did not let it go")
    assert remove(made, "data").state is JobState.FAILED
    assert (item(made), vm(made)) == before
    assert made.asked[Verb.VM_DISK_REMOVE] == 0


def test_a_disk_that_cannot_be_plugged_is_in_nobody_s_way(made: Site) -> None:
    before = item(made), vm(made)
    made.refuse[Verb.VM_DISK_ADD] = HypervisorRefused("no free place")
    assert add(made).state is JobState.FAILED
    assert made.asked[Verb.VM_DISK_REMOVE] == 1
    assert (item(made), vm(made)) == before


def test_a_larger_disk_is_larger_after_a_failover_too(made: Site) -> None:
    job = made.service.disks.grow("east", "web-1", "data", 3 * GIB)
    assert made.run(job).state is JobState.SUCCEEDED
    assert made.last[Verb.VM_DISK_GROW]["item_id"] == item(made).item.id
    for machine in (vm(made), item(made).target_vm):
        assert {disk.name: disk.size_bytes for disk in machine.disks}["data"] == 3 * GIB
    with pytest.raises(InvalidRequest, match="no larger size") as refused:
        made.service.disks.grow("east", "web-1", "data", 2 * GIB)
    assert refused.value.field == "size_bytes"


def test_what_cannot_be_says_why(made: Site) -> None:
    with pytest.raises(Conflict, match="boots from"):
        remove(made, "system")
    with pytest.raises(NotFound, match="no disk nothing"):
        remove(made, "nothing")
    with pytest.raises(Conflict, match="has a disk data already"):
        add(made, Disk(name="data", storage_account="data", size_bytes=GIB))
    with pytest.raises(NotFound, match="no storage account"):
        add(made, Disk(name="logs", storage_account="nowhere", size_bytes=GIB))
    committed(made)
    with pytest.raises(Conflict, match="its disks cannot be changed"):
        add(made)


def test_a_failover_boots_what_the_point_has_and_the_item_follows(made: Site) -> None:
    assert remove(made, "data").state is JobState.SUCCEEDED
    assert add(made).state is JobState.SUCCEEDED
    status = VmStatus(
        vm_id="web-1", power=PowerState.RUNNING, disk_sizes={"system": GIB, "data": GIB}
    )
    made.results[Verb.RECOVERY_BOOT] = to_plain(status)
    assert made.run(made.service.failovers.failover("main", "web-1", "latest")).state is (
        JobState.SUCCEEDED
    )
    boot = made.last[Verb.RECOVERY_BOOT]
    assert boot["is_varied"] is True
    assert names(boot["replicas"]) == ["system", "logs", "data"]
    record = item(made)
    assert [disk.name for disk in record.target_vm.disks] == ["system", "data"]
    assert [mapping.disk for mapping in record.item.disks] == ["system", "data"]
    assert [former.mapping.disk for former in record.item.former_disks] == ["logs"]


def test_another_recovery_point_brings_its_disks_and_takes_the_others(made: Site) -> None:
    assert add(made).state is JobState.SUCCEEDED
    made.points.append(replace(made.points[0], id="rp-1-9", sequence=9))
    made.say()
    for chosen, sizes in (
        ("rp-1-9", {"system": GIB, "data": GIB, "logs": GIB}),
        (made.points[0].id, {"system": GIB, "data": GIB}),
        ("rp-1-9", {"system": GIB, "data": GIB, "logs": GIB}),
    ):
        status = VmStatus(vm_id="web-1", power=PowerState.RUNNING, disk_sizes=sizes)
        made.results[Verb.RECOVERY_BOOT] = to_plain(status)
        failovers = made.service.failovers
        is_first = made.asked[Verb.RECOVERY_BOOT] == 0
        ask = failovers.failover if is_first else failovers.change
        assert made.run(ask("main", "web-1", chosen)).state is JobState.SUCCEEDED
        with made.vault.read() as records:
            there = records.resources.get(VirtualMachine, "west", "web-1").value
        assert {disk.name: disk.size_bytes for disk in there.disks} == sizes


def test_disks_of_a_point_and_back(made: Site) -> None:
    record = item(made)
    smaller, vm_then = with_disks_of_point(record.item, record.target_vm, {"system": GIB})
    assert [disk.name for disk in vm_then.disks] == ["system"]
    whole, vm_whole = with_all_disks(smaller, vm_then)
    assert whole.disks == record.item.disks
    assert {disk.name for disk in vm_whole.disks} == {"system", "data"}


def test_one_job_at_a_time_changes_the_disks_of_a_vm(made: Site) -> None:
    """A second one that is refused by the host would remove the disk of the first."""
    job = made.service.disks.add("east", "web-1", LOGS)
    busy = f"just being changed by {job.id}"
    with pytest.raises(Conflict, match=busy):
        made.service.disks.add("east", "web-1", replace(LOGS, size_bytes=2 * GIB))
    with pytest.raises(Conflict, match=busy):
        made.service.disks.remove("east", "web-1", "data")
    with pytest.raises(Conflict, match=busy):
        made.service.disks.grow("east", "web-1", "data", 2 * GIB)
    assert made.run(job).state is JobState.SUCCEEDED
    assert made.asked[Verb.VM_DISK_REMOVE] == 0
    made.service.disks.remove("east", "web-1", "data")


def test_a_vm_is_not_protected_while_its_disks_change(tmp_path: Path) -> None:
    """The disk would be neither replicated nor known as excluded."""
    with site(tmp_path / "other") as made:
        job = made.service.disks.add("east", "web-1", LOGS)
        with pytest.raises(Conflict, match=f"just being changed by {job.id}"):
            made.protect()
        assert made.run(job).state is JobState.SUCCEEDED
        protected(made)
        assert [one.disk for one in item(made).item.disks] == ["system", "data", "logs"]
