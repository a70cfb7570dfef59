"""Test VMs in a network set aside for tests: which networks may be, and the addresses there.

Owns: keeping test VMs and production out of each other's networks. Must not know: isolated copies
of networks (workflows.rehearsing), how a test VM boots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from leeward.core.errors import Conflict, NotFound
from leeward.model.resources import NetworkInterface, VirtualMachine, VirtualNetwork
from leeward.protection.addresses import is_in_subnet, next_address
from leeward.protection.inventory import Inventory

_FIELD = "network"


def plan_test_nics(
    inventory: Inventory, vm: VirtualMachine, wanted: str
) -> tuple[NetworkInterface, ...]:
    """Return the interfaces that the test VM of `vm` gets in the network `wanted` of its region.

    wanted: a network's name, or network/subnet; else the subnet is the one of the interface's
    subnet's name, or the first by name. An address is kept if it is free there, else it is the next
    free one. Raises: NotFound; Conflict where production is or will be, or the subnet is full.
    """
    name, _, subnet_name = wanted.partition("/")
    network = inventory.network(vm.region, name)
    if network is None:
        raise NotFound(
            f"{_FIELD}: there is no network {name!r} in region {vm.region}",
            field=_FIELD,
            hint=f"`leeward network list --region {vm.region}`",
        )
    if not vm.nics:
        raise Conflict(f"{vm.name} has no interface to put into network {name}", field=_FIELD)
    subnets = {subnet.name: subnet for subnet in network.subnets}
    if subnet_name and subnet_name not in subnets:
        raise NotFound(f"{_FIELD}: network {name} has no subnet {subnet_name}", field=_FIELD)
    if not subnets:
        raise Conflict(f"{_FIELD}: network {name} has no subnet", field=_FIELD)
    _check_set_aside(inventory, network, field=_FIELD)
    taken = set(inventory.taken_addresses(vm.region, name))
    made = []
    for nic in vm.nics:
        subnet = subnets.get(subnet_name or nic.subnet) or subnets[min(subnets)]
        is_kept = is_in_subnet(subnet, nic.address) and nic.address not in taken
        address = nic.address if is_kept else next_address(subnet, taken)
        taken.add(address)
        made.append(replace(nic, network=name, subnet=subnet.name, address=address))
    return tuple(made)


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
