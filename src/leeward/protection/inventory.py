"""What exists, as the planners see it: one value, read once, no look-ups later.

Owns: finding a resource in it and saying who uses one. Must not know: where it was read from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from leeward.core.errors import Conflict, NotFound
from leeward.model.recovery import NetworkMapping, ReplicatedItem, machine_of_test
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """A replicated item, and the VM it becomes when it fails over (its name and addresses are
    taken, even while that VM does not exist)."""

    item: ReplicatedItem
    target_vm: VirtualMachine
    cache_region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Resources of the regions in question, and every item that touches them."""

    regions: frozenset[str]
    resource_groups: tuple[ResourceGroup, ...] = ()
    networks: tuple[VirtualNetwork, ...] = ()
    accounts: tuple[StorageAccount, ...] = ()
    availability_sets: tuple[AvailabilitySet, ...] = ()
    vms: tuple[VirtualMachine, ...] = ()
    mappings: tuple[NetworkMapping, ...] = ()
    protected: tuple[Protected, ...] = ()
    regions_with_agents: frozenset[str] = frozenset()
    regions_with_workers: frozenset[str] = frozenset()

    def resource_group(self, region: str, name: str) -> ResourceGroup | None:
        """Return that resource group, or None."""
        return _find(self.resource_groups, region, name)

    def network(self, region: str, name: str) -> VirtualNetwork | None:
        """Return that virtual network, or None."""
        return _find(self.networks, region, name)

    def account(self, region: str, name: str) -> StorageAccount | None:
        """Return that storage account, or None."""
        return _find(self.accounts, region, name)

    def availability_set(self, region: str, name: str) -> AvailabilitySet | None:
        """Return that availability set, or None."""
        return _find(self.availability_sets, region, name)

    def vm(self, region: str, name: str) -> VirtualMachine | None:
        """Return that virtual machine, or None."""
        return _find(self.vms, region, name)

    def check_region(self, region: str, *, field: str) -> None:
        """Return if the region exists. Raises: NotFound."""
        if region not in self.regions:
            raise NotFound(f"there is no region {region}", field=field)

    @property
    def test_vms(self) -> tuple[VirtualMachine, ...]:
        """Return the test VMs in networks set aside for tests, named for people."""
        found = (machine_of_test(each.item, each.target_vm) for each in self.protected)
        return tuple(vm for vm in found if vm is not None)

    def taken_addresses(self, region: str, network: str) -> dict[str, str]:
        """Return address → who has it, of VMs that are, of VMs that a failover will make, and of
        test VMs."""
        taken = {}
        targets = (protected.target_vm for protected in self.protected)
        for vm in (*self.vms, *targets, *self.test_vms):
            for nic in vm.nics:
                if vm.region == region and nic.network == network and nic.address:
                    taken[nic.address] = vm.name
        return taken

    def check_mac(self, region: str, network: str, mac: str, *, vm: str, field: str) -> None:
        """Return if VM `vm` may have that MAC address in the network, on whichever host of the
        region: no other VM that is, or that a failover will make, has it there. Raises: Conflict.
        """
        targets = (protected.target_vm for protected in self.protected)
        for other in (*self.vms, *targets, *self.test_vms):
            if other.region != region or other.name == vm:
                continue
            if any((nic.network, nic.mac) == (network, mac) for nic in other.nics):
                raise Conflict(
                    f"MAC address {mac} belongs to {other.name} in network {network} of region "
                    f"{region}",
                    field=field,
                    hint="two VMs of a network need different ones",
                )


_R = TypeVar("_R", ResourceGroup, VirtualNetwork, StorageAccount, AvailabilitySet, VirtualMachine)


def _find(resources: tuple[_R, ...], region: str, name: str) -> _R | None:
    for resource in resources:
        if resource.region == region and resource.name == name:
            return resource
    return None
