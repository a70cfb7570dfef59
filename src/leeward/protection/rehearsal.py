"""Test VMs in networks set aside for tests: which networks may be, and the addresses there.

Owns: keeping test VMs and production out of each other's networks. Must not know: isolated copies
of networks (workflows.rehearsing), how a test VM boots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.model.resources import NetworkInterface, Subnet, VirtualMachine, VirtualNetwork
from leeward.protection.addresses import check_address, is_in_subnet, next_address
from leeward.protection.inventory import Inventory

_FIELD = "network"
ISOLATED = "isolated"
"""What is said in place of a network for an isolated copy."""


def choose_places(
    vm: VirtualMachine, setting: Mapping[str, str], network: str, networks: Mapping[str, str]
) -> dict[str, str]:
    """Return interface → network, or network/subnet, of those interfaces of the test VM of `vm`
    that are not in isolated copies. networks: what is asked for one interface; else network: for
    all; else the item's setting. Raises: InvalidRequest for an interface that is none."""
    check_interfaces(vm, networks, field="networks")
    if network not in ("", ISOLATED) and not vm.nics:
        raise Conflict(f"{vm.name} has no interface to put into network {network}", field=_FIELD)
    asked = {
        nic.name: networks.get(nic.name) or network or setting.get(nic.name, "") for nic in vm.nics
    }
    return {name: place for name, place in asked.items() if place not in ("", ISOLATED)}


def check_interfaces(vm: VirtualMachine, names: Iterable[str], *, field: str) -> None:
    """Return if the VM has interfaces of these names. Raises: InvalidRequest."""
    known = {nic.name for nic in vm.nics}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{vm.name} has no interface {name}", field=field)


def plan_test_nics(
    inventory: Inventory,
    vm: VirtualMachine,
    places: Mapping[str, str],
    addresses: Mapping[str, str],
    *,
    field: str = _FIELD,
) -> tuple[NetworkInterface, ...]:
    """Return the interfaces that the test VM of `vm` gets; those without a place stay as they are,
    for isolated copies.

    places: interface → network of its region, or network/subnet; else the subnet is the one of the
    interface's subnet's name, or the first by name. addresses: interface → address there; else its
    own is kept if it is free there, or it is the next free one. Raises: NotFound; Conflict where
    production is or will be, where the address is taken, or the subnet is full; InvalidRequest.
    """
    taken: dict[str, dict[str, str]] = {}
    made = []
    for nic in vm.nics:
        if nic.name not in places:
            made.append(nic)
            continue
        name, _, subnet_name = places[nic.name].partition("/")
        subnet = _test_subnet(inventory, vm.region, name, subnet_name or nic.subnet, field=field)
        if subnet_name not in ("", subnet.name):
            raise NotFound(f"{field}: network {name} has no subnet {subnet_name}", field=field)
        there = taken.setdefault(name, dict(inventory.taken_addresses(vm.region, name)))
        if asked := addresses.get(nic.name):
            address = check_address(subnet, asked, there, field="test_addresses")
        else:
            is_kept = is_in_subnet(subnet, nic.address) and nic.address not in there
            address = nic.address if is_kept else next_address(subnet, there)
        there[address] = vm.name
        made.append(replace(nic, network=name, subnet=subnet.name, address=address))
    return tuple(made)


def _test_subnet(
    inventory: Inventory, region: str, name: str, subnet: str, *, field: str
) -> Subnet:
    """Return the subnet of that name of a network set aside for tests, else its first by name.
    Raises: NotFound, Conflict."""
    network = inventory.network(region, name)
    if network is None:
        raise NotFound(
            f"{field}: there is no network {name!r} in region {region}",
            field=field,
            hint=f"`leeward network list --region {region}`",
        )
    subnets = {each.name: each for each in network.subnets}
    if not subnets:
        raise Conflict(f"{field}: network {name} has no subnet", field=field)
    _check_set_aside(inventory, network, field=field)
    return subnets.get(subnet) or subnets[min(subnets)]


def check_no_test_vm(inventory: Inventory, region: str, network: str, *, field: str) -> None:
    """Return if no test VM is in the network or joined with it by a bridge out there: what fails
    over into it would meet its own copy. Raises: Conflict."""
    for test_vm in inventory.test_vms:
        if test_vm.region != region:
            continue
        for nic in test_vm.nics:
            if nic.network == network or _shared_bridge(inventory, region, nic.network, network):
                raise Conflict(
                    f"{field}: the {test_vm.name} is in network {nic.network} of {region}",
                    field=field,
                    hint="end it with `leeward test-failover-cleanup`, or choose another network",
                )


def check_tests_stay_apart(inventory: Inventory, changed: VirtualNetwork) -> None:
    """Return if test VMs and production do not meet once the network is as in `changed`. Raises:
    Conflict."""
    others = (
        each
        for each in inventory.networks
        if (each.region, each.name) != (changed.region, changed.name)
    )
    then = replace(inventory, networks=(*others, changed))
    for test_vm in then.test_vms:
        for nic in test_vm.nics:
            network = then.network(test_vm.region, nic.network)
            if network is not None:
                _check_set_aside(then, network, field="subnets")


def _check_set_aside(inventory: Inventory, network: VirtualNetwork, *, field: str) -> None:
    """Return if nothing that is replicated is in the network, or will be by a failover, or is
    joined with it by a bridge out there. Raises: Conflict."""
    hint = "choose a network of its own, or none for an isolated copy"
    for name, why in _production(inventory, network.region):
        if name == network.name:
            raise Conflict(
                f"{field}: {name} is no network set aside for tests: {why}", field=field, hint=hint
            )
        if bridge := _shared_bridge(inventory, network.region, network.name, name):
            raise Conflict(
                f"{field}: {network.name} is joined with bridge {bridge} as {name} is, which is no "
                f"network set aside for tests: {why}",
                field=field,
                hint=hint,
            )


def _shared_bridge(inventory: Inventory, region: str, one: str, other: str) -> str:
    """Return a bridge out there that both networks are joined with; "": there is none."""
    bridges = [
        {subnet.bridge for subnet in network.subnets if subnet.bridge}
        for network in (inventory.network(region, one), inventory.network(region, other))
        if network is not None
    ]
    return min(set.intersection(*bridges), default="") if len(bridges) == 2 else ""


def _production(inventory: Inventory, region: str) -> Iterator[tuple[str, str]]:
    """Yield the region's networks that items are in or go to, each with the reason."""
    for protected in inventory.protected:
        item = protected.item
        for nic in protected.target_vm.nics:
            if protected.target_vm.region == region:
                yield nic.network, f"{item.name} fails over into it"
        for source, target in item.target_network.items():
            if item.source_region == region:
                yield source, f"{item.name} is replicated from it"
            if item.target_region == region:
                yield target, f"{item.name} fails over into it"
    for mapping in inventory.mappings:
        ends = (
            (mapping.source_region, mapping.source_network),
            (mapping.target_region, mapping.target_network),
        )
        for place, name in ends:
            if place == region:
                yield name, "a network mapping names it (`leeward network-mapping list`)"
