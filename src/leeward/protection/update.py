"""Changing what a protected VM becomes when it fails over.

Owns: which settings can be changed later, and their checks. Must not know: how nodes hear of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.core.ids import check_name
from leeward.model.recovery import ItemState, ReplicatedItem
from leeward.model.resources import NetworkInterface, VirtualMachine, VirtualNetwork
from leeward.protection.addresses import check_address, is_in_subnet, next_address
from leeward.protection.inventory import Inventory, Protected
from leeward.protection.options import NO_AVAILABILITY_SET
from leeward.protection.rehearsal import (
    check_interfaces,
    check_no_test_vm,
    choose_places,
    plan_test_nics,
)

CHANGEABLE = frozenset(
    {
        ItemState.PROTECTING,
        ItemState.INITIAL_REPLICATION,
        ItemState.PROTECTED,
        ItemState.RESYNCING,
        ItemState.DEGRADED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChanges:
    """Empty choices leave what there is."""

    policy: str = ""
    target_vm: str = ""
    target_resource_group: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    target_availability_set: str = ""
    """NO_AVAILABILITY_SET: none."""
    target_networks: dict[str, str] = field(default_factory=dict)
    """network interface → network, or network/subnet."""
    addresses: dict[str, str] = field(default_factory=dict)
    """network interface → address."""
    test_networks: dict[str, str] = field(default_factory=dict)
    """network interface → network set aside for tests, or network/subnet, or ISOLATED."""
    test_addresses: dict[str, str] = field(default_factory=dict)
    """network interface → address in a test."""


def plan_update(inventory: Inventory, protected: Protected, changes: ItemChanges) -> Protected:
    """Return the item with what is asked for. inventory: of its target region.

    Raises: Conflict when it is no time to change it; NotFound, InvalidRequest naming the field.
    """
    item, vm = protected.item, protected.target_vm
    if item.state not in CHANGEABLE:
        raise Conflict(
            f"{item.name} is {item.state.value.replace('_', ' ')}: what it becomes cannot be "
            "changed now",
            field="state",
            hint="once it is protected again, it can",
        )
    others = tuple(each for each in inventory.protected if each.item.id != item.id)
    for wanted in changes.target_networks.values():
        name = wanted.partition("/")[0]
        check_no_test_vm(inventory, vm.region, name, field="target_networks")
    inventory = replace(inventory, protected=others)
    vm = replace(
        vm,
        name=_name(inventory, vm, changes.target_vm),
        resource_group=_group(inventory, vm, changes.target_resource_group),
        vcpus=changes.vcpus or vm.vcpus,
        memory_mib=changes.memory_mib or vm.memory_mib,
        availability_set=_set(inventory, vm, changes.target_availability_set),
        nics=_nics(inventory, vm, changes),
    )
    item = replace(
        item,
        policy=changes.policy or item.policy,
        target_vm=vm.name,
        target_resource_group=vm.resource_group,
        target_availability_set=vm.availability_set,
        target_network=_networks(item, protected.target_vm, vm),
    )
    after = replace(protected, item=item, target_vm=vm)
    if not (changes.test_networks or changes.test_addresses or changes.target_networks):
        return after
    return _with_tests(inventory, after, changes)


def _with_tests(inventory: Inventory, protected: Protected, changes: ItemChanges) -> Protected:
    """Return the item with the settings of its test VMs, after looking whether one would get them
    now. inventory: without the item."""
    item, vm = protected.item, protected.target_vm
    check_interfaces(vm, changes.test_networks, field="test_networks")
    places = choose_places(vm, item.test_networks, "", changes.test_networks)
    addresses = {
        name: address
        for name, address in item.test_addresses.items()
        if places.get(name) == item.test_networks.get(name)
    } | changes.test_addresses
    for name in addresses:
        if name not in places:
            raise InvalidRequest(
                f"{name} is in an isolated copy in tests and keeps its address",
                field="test_addresses",
                hint=f"`--test-network {name}=NETWORK` puts it into a network set aside for tests",
            )
    item = replace(item, test_networks=places, test_addresses=addresses)
    alone = replace(protected, item=replace(item, rehearsal=None))
    known = replace(inventory, protected=(*inventory.protected, alone))
    plan_test_nics(known, vm, places, addresses, field="test_networks")
    return replace(protected, item=item)


def _name(inventory: Inventory, vm: VirtualMachine, wanted: str) -> str:
    if not wanted or wanted == vm.name:
        return vm.name
    check_name(wanted, field="target_vm")
    taken = {
        each.target_vm.name for each in inventory.protected if each.target_vm.region == vm.region
    }
    if inventory.vm(vm.region, wanted) is not None or wanted in taken:
        raise Conflict(
            f"region {vm.region} already has a virtual machine {wanted}, or will have one by a "
            "failover",
            field="target_vm",
            hint="choose another name",
        )
    return wanted


def _group(inventory: Inventory, vm: VirtualMachine, wanted: str) -> str:
    if wanted and inventory.resource_group(vm.region, wanted) is None:
        raise NotFound(
            f"there is no resource group {wanted} in region {vm.region}",
            field="target_resource_group",
            hint=f"`leeward resource-group create {wanted} --region {vm.region}`",
        )
    return wanted or vm.resource_group


def _set(inventory: Inventory, vm: VirtualMachine, wanted: str) -> str:
    if not wanted:
        return vm.availability_set
    if wanted == NO_AVAILABILITY_SET:
        return ""
    if inventory.availability_set(vm.region, wanted) is None:
        raise NotFound(
            f"there is no availability set {wanted} in region {vm.region}",
            field="target_availability_set",
        )
    return wanted


def _nics(
    inventory: Inventory, vm: VirtualMachine, changes: ItemChanges
) -> tuple[NetworkInterface, ...]:
    known = {nic.name for nic in vm.nics}
    for name_of, named in (
        ("addresses", changes.addresses),
        ("target_networks", changes.target_networks),
    ):
        for name in named:
            if name not in known:
                raise InvalidRequest(f"{vm.name} has no interface {name}", field=name_of)
    taken: dict[str, dict[str, str]] = {}
    made = []
    for nic in vm.nics:
        moved = _moved(inventory, vm.region, nic, changes.target_networks.get(nic.name, ""))
        if moved.network != nic.network:
            inventory.check_mac(
                vm.region, moved.network, nic.mac, vm=vm.name, field="target_networks"
            )
        if moved.network not in taken:
            taken[moved.network] = inventory.taken_addresses(vm.region, moved.network)
        mine = _addressed(inventory, vm.region, moved, changes, taken[moved.network])
        if mine.address:
            taken[moved.network][mine.address] = vm.name
        made.append(mine)
    return tuple(made)


def _moved(
    inventory: Inventory, region: str, nic: NetworkInterface, wanted: str
) -> NetworkInterface:
    """Return the interface in the network asked for: in the subnet named, else the one of its
    subnet's name, else the first by name."""
    if not wanted:
        return nic
    name, _, subnet = wanted.partition("/")
    network = _network(inventory, region, name)
    names = {each.name for each in network.subnets}
    if subnet and subnet not in names:
        raise NotFound(f"network {name} has no subnet {subnet}", field="target_networks")
    kept = nic.subnet if nic.subnet in names else min(names)
    return replace(nic, network=name, subnet=subnet or kept)


def _addressed(
    inventory: Inventory,
    region: str,
    nic: NetworkInterface,
    changes: ItemChanges,
    taken: dict[str, str],
) -> NetworkInterface:
    """Return the interface with the address asked for, else its own if that is free, else the
    next."""
    asked = changes.addresses.get(nic.name)
    if asked is None and nic.name not in changes.target_networks:
        return nic
    network = _network(inventory, region, nic.network)
    subnet = next(each for each in network.subnets if each.name == nic.subnet)
    if asked is not None:
        return replace(nic, address=check_address(subnet, asked, taken, field="addresses"))
    if nic.address and is_in_subnet(subnet, nic.address) and nic.address not in taken:
        return nic
    return replace(nic, address=next_address(subnet, taken))


def _network(inventory: Inventory, region: str, name: str) -> VirtualNetwork:
    network = inventory.network(region, name)
    if network is None:
        raise NotFound(f"there is no network {name} in region {region}", field="target_networks")
    return network


def _networks(
    item: ReplicatedItem, before: VirtualMachine, after: VirtualMachine
) -> dict[str, str]:
    """Return source network → target network, as the interfaces are now."""
    moves = {old.network: new.network for old, new in zip(before.nics, after.nics, strict=True)}
    return {source: moves.get(target, target) for source, target in item.target_network.items()}
