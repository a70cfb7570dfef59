"""Resources change while they are used, if nothing that uses them suffers; groups go whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site, state_of

from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest, StaleVersion
from leeward.model.recovery import Job, JobState
from leeward.model.resources import (
    AvailabilitySet,
    Outbound,
    PowerState,
    ResourceGroup,
    Routing,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protocol.fabric import NetworkSpec, VmStatus
from leeward.protocol.messages import NodeStatus, Verb
from leeward.vault.resources import ResourceState, Stored
from leeward.workflows.change_verbs import MachineSize


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


def network_of(made: Site) -> Stored[VirtualNetwork]:
    with made.vault.read() as records:
        return records.resources.get(VirtualNetwork, "east", "corp")


def change(made: Site, wanted: VirtualNetwork, version: int | None = None) -> Job:
    """Return the job that changes the network, not run yet."""
    job = made.service.changes.change_network(wanted, version)
    assert job is not None
    return job


# --- networks


def test_a_network_gets_a_subnet_and_a_way_out_on_the_hosts_that_have_vms_in_it(made: Site) -> None:
    before = network_of(made).value
    wanted = replace(
        before,
        subnets=(*before.subnets, Subnet(name="back", prefix="10.0.2.0/24")),
        routing=Routing.ROUTED,
        outbound=Outbound.NAT,
    )
    assert made.run(change(made, wanted)).state is JobState.SUCCEEDED
    assert network_of(made).value == wanted
    told = from_plain(made.last[Verb.NETWORK_APPLY], NetworkSpec)
    assert [subnet.name for subnet in told.subnets] == ["front", "back"]
    assert (told.is_routed, told.has_nat) == (True, True)
    assert made.service.changes.change_network(wanted, None) is None, "it is so already"


def test_a_host_that_refuses_leaves_the_network_as_it_was(made: Site) -> None:
    before = network_of(made).value
    made.refuse[Verb.NETWORK_APPLY] = HypervisorRefused("no")
    job = made.run(change(made, replace(before, routing=Routing.ROUTED)))
    assert job.state is JobState.FAILED
    assert network_of(made).value == before


def test_a_change_killed_at_every_step_ends_alike(tmp_path: Path) -> None:
    ends = []
    for kill_at in (None, 0, 1):
        directory = tmp_path / str(kill_at)
        directory.mkdir()
        with site(directory) as made:
            job = change(made, replace(network_of(made).value, routing=Routing.ROUTED))
            if kill_at is not None:
                made.engine.run(job.id, kill_at=kill_at)
            assert made.run(job).state is JobState.SUCCEEDED
            ends.append(network_of(made).value)
    assert len(set(ends)) == 1


@pytest.mark.parametrize(
    "subnet",
    [
        Subnet(name="other", prefix="10.0.1.0/24"),
        Subnet(name="front", prefix="10.0.9.0/24"),
        Subnet(name="front", prefix="10.0.1.0/24", bridge="br0"),
    ],
    ids=["gone", "moved", "onto a bridge"],
)
def test_a_subnet_in_use_stays(made: Site, subnet: Subnet) -> None:
    wanted = replace(network_of(made).value, subnets=(subnet,))
    with pytest.raises(Conflict, match="used by virtual machine web-1") as refused:
        made.service.changes.change_network(wanted, None)
    assert refused.value.field == "subnets"
    assert network_of(made).value != wanted


def test_a_change_of_what_somebody_else_has_changed_is_refused(made: Site) -> None:
    read = network_of(made)
    made.run(change(made, replace(read.value, routing=Routing.ROUTED), read.version))
    with pytest.raises(StaleVersion):
        made.service.changes.change_network(
            replace(read.value, outbound=Outbound.NAT), read.version
        )


def test_an_invalid_network_is_refused(made: Site) -> None:
    before = network_of(made).value
    outside = Subnet(name="back", prefix="10.9.0.0/24")
    with pytest.raises(InvalidRequest, match="outside the network's address space"):
        made.service.changes.change_network(
            replace(before, subnets=(*before.subnets, outside)), None
        )


# --- sets and VMs


def test_an_availability_set_changes_at_once(made: Site) -> None:
    changed = made.service.changes.change_set("east", "set", fault_domains=3, version=1)
    assert changed.fault_domains == 3
    with pytest.raises(StaleVersion):
        made.service.changes.change_set("east", "set", fault_domains=4, version=1)


SIZE = MachineSize(region="east", name="web-1", vcpus=4, memory_mib=512, forwards=(80,))


def test_a_stopped_vm_gets_another_size(made: Site) -> None:
    with pytest.raises(Conflict, match="while it is stopped"):
        made.service.changes.change_machine(SIZE, None)
    stopped = VmStatus(vm_id="web-1", power=PowerState.STOPPED)
    made.service.monitor.take_status(
        made.source, NodeStatus(storage_root="/somewhere", vms=(stopped,))
    )
    made.results[Verb.VM_UPDATE] = {"vm_id": "web-1", "power": "stopped"}
    assert made.run(made.service.changes.change_machine(SIZE, None)).state is JobState.SUCCEEDED
    assert made.last[Verb.VM_UPDATE] == {
        "vm_id": "web-1",
        "vcpus": 4,
        "memory_mib": 512,
        "forwards": [80],
    }
    with made.vault.read() as records:
        vm = records.resources.get(VirtualMachine, "east", "web-1").value
    assert (vm.vcpus, vm.memory_mib, vm.forwards) == (4, 512, (80,))


# --- groups


def test_a_group_goes_with_all_that_is_in_it(made: Site) -> None:
    contents = made.service.groups.contents("east", "rg")
    assert contents.vms == ("web-1",)
    assert contents.networks == ("corp",)
    assert set(contents.storage_accounts) == {"sys", "data"}
    assert contents.availability_sets == ("set",)
    assert contents.used_by == ()
    assert made.run(made.service.groups.delete("east", "rg")).state is JobState.SUCCEEDED
    assert state_of(made)["resources"] == []
    assert (made.asked[Verb.VM_DELETE], made.asked[Verb.NETWORK_DELETE]) == (1, 1)
    assert made.asked[Verb.ACCOUNT_DELETE] == 2


def test_a_group_with_a_protected_vm_stays(made: Site) -> None:
    assert made.run(made.protect()).state is JobState.SUCCEEDED
    contents = made.service.groups.contents("east", "rg")
    assert any("item web-1 protects" in user for user in contents.used_by)
    with pytest.raises(Conflict, match="cannot go"):
        made.service.groups.delete("east", "rg")
    with pytest.raises(Conflict, match="cannot go"):
        made.service.groups.delete("west", "rg-asr")


def test_a_group_that_others_need_something_of_stays(made: Site) -> None:
    with made.vault.write() as records:
        records.resources.insert(
            ResourceGroup(region="east", name="other"), scope="east", name="other"
        )
        stored = records.resources.get(VirtualMachine, "east", "web-1")
        records.resources.update(stored, value=replace(stored.value, resource_group="other"))
    with pytest.raises(Conflict, match="virtual machine web-1 needs network corp"):
        made.service.groups.delete("east", "rg")


def test_what_could_not_go_is_as_it_was(made: Site) -> None:
    made.refuse[Verb.ACCOUNT_DELETE] = HypervisorRefused("disk images in it")
    assert made.run(made.service.groups.delete("east", "rg")).state is JobState.FAILED
    with made.vault.read() as records:
        assert records.resources.find(VirtualMachine, "east", "web-1") is None
        for kind, name in ((StorageAccount, "sys"), (AvailabilitySet, "set")):
            assert records.resources.get(kind, "east", name).state is ResourceState.READY
    made.refuse.clear()
    assert made.run(made.service.groups.delete("east", "rg")).state is JobState.SUCCEEDED
    assert state_of(made)["resources"] == []
