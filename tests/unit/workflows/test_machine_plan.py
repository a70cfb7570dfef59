"""What a new VM is given, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.model.resources import (
    AvailabilitySet,
    Disk,
    NetworkInterface,
    ResourceGroup,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.inventory import Inventory
from leeward.protocol.messages import Role
from leeward.vault.nodes import NodeRecord
from leeward.workflows.machine_plan import plan_machine
from leeward.workflows.placement import check_memory, choose_host
from leeward.workflows.specs import network_id, vm_id

DISK = Disk(name="system", storage_account="a", size_bytes=1 << 20)
NIC = NetworkInterface(name="n0", network="corp", subnet="front")
VM = VirtualMachine(
    region="east", name="v", resource_group="rg", disks=(DISK,), nics=(NIC, replace(NIC, name="n1"))
)
INVENTORY = Inventory(
    regions=frozenset({"east"}),
    resource_groups=(ResourceGroup(region="east", name="rg"),),
    networks=(
        VirtualNetwork(
            region="east",
            name="corp",
            resource_group="rg",
            address_space=("10.0.0.0/16",),
            subnets=(Subnet(name="front", prefix="10.0.1.0/24"),),
        ),
    ),
    accounts=(StorageAccount(region="east", name="a", resource_group="rg"),),
    availability_sets=(AvailabilitySet(region="east", name="s", resource_group="rg"),),
    vms=(
        VirtualMachine(
            region="east",
            name="other",
            resource_group="rg",
            nics=(replace(NIC, address="10.0.1.4", mac="52:54:00:00:00:04"),),
            host="another",
        ),
    ),
)


def test_open_addresses_and_macs_are_assigned() -> None:
    vm = plan_machine(INVENTORY, VM)
    assert [nic.address for nic in vm.nics] == ["10.0.1.5", "10.0.1.6"]
    assert len({nic.mac for nic in vm.nics}) == 2
    assert plan_machine(INVENTORY, VM) == vm


REFUSALS: dict[str, tuple[VirtualMachine, type[LeewardError], str]] = {
    "region": (replace(VM, region="north"), NotFound, "region"),
    "group": (replace(VM, resource_group="x"), NotFound, "resource_group"),
    "set": (replace(VM, availability_set="x"), NotFound, "availability_set"),
    "account": (replace(VM, disks=(replace(DISK, storage_account="x"),)), NotFound, "disks"),
    "no size": (replace(VM, disks=(replace(DISK, size_bytes=0),)), InvalidRequest, "disks"),
    "odd size": (replace(VM, disks=(replace(DISK, size_bytes=1000),)), InvalidRequest, "disks"),
    "relative image": (replace(VM, disks=(replace(DISK, image="x"),)), InvalidRequest, "disks"),
    "disk twice": (replace(VM, disks=(DISK, DISK)), InvalidRequest, "disks"),
    "subnet": (replace(VM, nics=(replace(NIC, subnet="x"),)), NotFound, "nics"),
    "clash": (replace(VM, nics=(replace(NIC, address="10.0.1.4"),)), Conflict, "nics"),
    "MAC and a line of dnsmasq's": (
        replace(VM, nics=(replace(NIC, mac="52:54:00:00:00:09\n"),)),
        InvalidRequest,
        "nics",
    ),
    "MAC of a VM on another host": (
        replace(VM, nics=(replace(NIC, mac="52:54:00:00:00:04"),)),
        Conflict,
        "nics",
    ),
    "firmware": (replace(VM, firmware="uefi"), InvalidRequest, "firmware"),
    "bad MAC": (replace(VM, nics=(replace(NIC, mac="x"),)), InvalidRequest, "nics"),
    "forward without interface": (replace(VM, nics=(), forwards=(80,)), InvalidRequest, "forwards"),
    "forward twice": (replace(VM, forwards=(80, 80)), InvalidRequest, "forwards"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    vm, kind, field = REFUSALS[case]
    with pytest.raises(kind) as refused:
        plan_machine(INVENTORY, vm)
    assert refused.value.field == field


def test_memory_that_a_host_has_or_may_have() -> None:
    vm = replace(VM, memory_mib=1000)
    check_memory(vm, {})
    check_memory(vm, {"h1": 10, "h2": 1000})
    check_memory(vm, {"h1": 10, "h2": None})
    with pytest.raises(Conflict, match="h1 has 10, h2 has 999") as refused:
        check_memory(vm, {"h1": 10, "h2": 999})
    assert refused.value.field == "memory_mib"
    assert "at most 999M" in (refused.value.hint or "")


def test_members_of_a_set_are_spread_over_hosts() -> None:
    agents = [
        NodeRecord(
            id=name,
            role=Role.AGENT,
            region="east",
            name=name,
            storage_root="",
            tunnel="",
            enrolled_ns=0,
        )
        for name in ("h1", "h2")
    ]
    member = replace(VM, availability_set="s")
    placed: list[VirtualMachine] = [replace(VM, name="busy", host="h2")]
    for name in "abcd":
        vm = replace(member, name=name)
        placed.append(replace(vm, host=choose_host(vm, agents, placed, lambda _: None).name))
    assert [vm.host for vm in placed[1:]] == ["h1", "h2", "h1", "h2"]
    with pytest.raises(Unavailable):
        choose_host(VM, [], [], lambda _: None)
    available = {"h1": VM.memory_mib - 1, "h2": VM.memory_mib}
    assert choose_host(member, agents, placed, lambda a: available[a.name]).name == "h2"
    with pytest.raises(Conflict, match="h1 has 0, h2 has 0") as full:
        choose_host(VM, agents, [], lambda _: 0)
    assert full.value.field == "memory_mib"


def test_names_on_hosts_are_short_and_tell_apart() -> None:
    ids = {
        network_id(i, r, n, h) for i in "ab" for r in "ab" for n in ("x", "y") for h in ("1", "2")
    }
    assert len(ids) == 16
    assert {len(each) for each in ids} == {11}
    assert vm_id("web-1") == "web-1"
    long = "a" * 63
    assert len(vm_id(long)) == 40
    assert vm_id(long) != vm_id("a" * 62)
