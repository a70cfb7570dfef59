"""Who uses a resource: what must be gone before it may be deleted.

Owns: the rules of use. Must not know: deletion itself.
"""

from __future__ import annotations

from collections.abc import Callable

from leeward.model.resources import VirtualMachine
from leeward.protection.inventory import Inventory, Protected


def users_of_group(inventory: Inventory, region: str, name: str) -> list[str]:
    """Return what lies in the resource group, for people: "network corp", "item web-1"."""
    users = [
        f"{kind} {resource.name}"
        for kind, resources in (
            ("network", inventory.networks),
            ("storage account", inventory.accounts),
            ("availability set", inventory.availability_sets),
            ("virtual machine", inventory.vms),
        )
        for resource in resources
        if resource.region == region and resource.resource_group == name
    ]
    return users + [
        f"item {protected.item.name}"
        for protected in inventory.protected
        if protected.item.target_region == region and protected.item.target_resource_group == name
    ]


def users_of_network(inventory: Inventory, region: str, name: str) -> list[str]:
    """Return the VMs with an interface in the network, the items that will have one, and the test
    VMs there."""

    def uses(vm: VirtualMachine) -> bool:
        return vm.region == region and any(nic.network == name for nic in vm.nics)

    users = _vms_and_items(inventory, uses)
    users += [vm.name for vm in inventory.test_vms if uses(vm)]
    return users + users_for_tests(inventory, region, name)


def users_for_tests(inventory: Inventory, region: str, name: str, subnet: str = "") -> list[str]:
    """Return the items whose test VMs are to be in the network; subnet: in just that one."""

    def names_it(place: str) -> bool:
        network, _, named = place.partition("/")
        return network == name and subnet in ("", named)

    return [
        f"test networks of item {protected.item.name}"
        for protected in inventory.protected
        if protected.item.target_region == region
        and any(names_it(place) for place in protected.item.test_networks.values())
    ]


def users_of_set(inventory: Inventory, region: str, name: str) -> list[str]:
    """Return the members of the availability set, and the items that will be members."""

    def uses(vm: VirtualMachine) -> bool:
        return vm.region == region and vm.availability_set == name

    return _vms_and_items(inventory, uses)


def users_of_account(inventory: Inventory, region: str, name: str) -> list[str]:
    """Return the VMs with a disk in the account, and the items with a cache or replica there."""

    def uses(vm: VirtualMachine) -> bool:
        return vm.region == region and any(disk.storage_account == name for disk in vm.disks)

    def keeps(protected: Protected) -> bool:
        item = protected.item
        caches = (
            (protected.cache_region, item.cache_account),
            (item.source_region, item.next_cache_account),
        )
        return (region, name) in caches or any(
            item.target_region == region and disk.target_account == name for disk in item.all_disks
        )

    users = _vms_and_items(inventory, uses)
    return users + [
        f"item {protected.item.name}"
        for protected in inventory.protected
        if keeps(protected) and f"item {protected.item.name}" not in users
    ]


def _vms_and_items(inventory: Inventory, uses: Callable[[VirtualMachine], bool]) -> list[str]:
    users = [f"virtual machine {vm.name}" for vm in inventory.vms if uses(vm)]
    return users + [
        f"item {protected.item.name}"
        for protected in inventory.protected
        if uses(protected.target_vm)
    ]
