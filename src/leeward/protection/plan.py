"""Planning protection: which target resources a VM needs, which are there, which are to be made.

Owns: names, defaults and checks of "enable replication". Must not know: how any of it is carried
out. Between the API's options and the protect workflow; the plan is also what `--plan` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import Conflict, NotFound
from leeward.core.ids import check_name
from leeward.model.recovery import DiskMapping, NetworkMapping
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
from leeward.protection.addresses import check_address, is_in_subnet, next_address
from leeward.protection.inventory import Inventory
from leeward.protection.options import NO_AVAILABILITY_SET, ProtectOptions
from leeward.protection.rehearsal import check_no_test_vm
from leeward.protection.support import Candidate, SourceCondition, check_support

CREATE = "create"
REUSE = "reuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResource:
    """One line of the plan for people. action: CREATE or REUSE."""

    kind: str
    region: str
    name: str
    action: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNic:
    """Where one interface of the source VM comes out."""

    name: str
    source_network: str
    source_subnet: str
    source_address: str
    target_network: str
    target_subnet: str
    target_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionPlan:
    """All that enabling replication will create and use."""

    vault: str
    policy: str
    source_region: str
    source_vm: str
    target_region: str
    target_vm: VirtualMachine
    disks: tuple[DiskMapping, ...]
    excluded_disks: tuple[str, ...]
    nics: tuple[PlannedNic, ...]
    cache_region: str
    cache_account: str
    resources: tuple[PlannedResource, ...]
    """Every resource the item uses, in the order they are made."""
    mappings: tuple[NetworkMapping, ...] = ()
    """To be recorded, both directions."""
    new_groups: tuple[ResourceGroup, ...] = ()
    new_networks: tuple[VirtualNetwork, ...] = ()
    new_accounts: tuple[StorageAccount, ...] = ()
    new_sets: tuple[AvailabilitySet, ...] = ()

    @property
    def target_networks(self) -> dict[str, str]:
        """Return source network → target network."""
        return {nic.source_network: nic.target_network for nic in self.nics}


def plan_protection(
    vault: str,
    inventory: Inventory,
    options: ProtectOptions,
    condition: Callable[[VirtualMachine], SourceCondition],
) -> ProtectionPlan:
    """Return what protecting the VM takes. condition: tells the source VM's at this moment.

    Raises: NotFound, InvalidRequest, Conflict or Unavailable in one sentence naming the option at
    fault.
    """
    return _Planner(vault, inventory, options, condition).plan()


class _Planner:
    """The plan being made: each step adds resources and answers one question."""

    def __init__(
        self,
        vault: str,
        inventory: Inventory,
        options: ProtectOptions,
        condition: Callable[[VirtualMachine], SourceCondition],
    ) -> None:
        self.vault = vault
        self.condition = condition
        self.inventory = inventory
        self.options = options
        self.target = options.target_region
        self.resources: list[PlannedResource] = []
        self.new_groups: list[ResourceGroup] = []
        self.new_networks: list[VirtualNetwork] = []
        self.new_accounts: list[StorageAccount] = []
        self.new_sets: list[AvailabilitySet] = []
        self.mappings: list[NetworkMapping] = []

    def plan(self) -> ProtectionPlan:
        vm = self._source_vm()
        included = self._included_disks(vm)
        name = self._target_name(vm)
        group = self._resource_group(vm)
        networks = {source: self._network(source, group) for source in _networks_of(vm)}
        availability_set = self._availability_set(vm, group)
        cache_region, cache = self._cache_account(vm)
        disks = tuple(self._disk(disk, group) for disk in included)
        nics = self._nics(vm, networks, name)
        target_vm = VirtualMachine(
            region=self.target,
            name=name,
            resource_group=group,
            vcpus=self.options.vcpus or vm.vcpus,
            memory_mib=self.options.memory_mib or vm.memory_mib,
            firmware=vm.firmware,
            display=vm.display,
            disks=tuple(map(_target_disk, included, disks)),
            nics=tuple(map(_target_nic, vm.nics, nics)),
            availability_set=availability_set,
            forwards=vm.forwards,
        )
        return ProtectionPlan(
            vault=self.vault,
            policy=self.options.policy or "default",
            source_region=vm.region,
            source_vm=vm.name,
            target_region=self.target,
            target_vm=target_vm,
            disks=disks,
            excluded_disks=self.options.exclude_disks,
            nics=nics,
            cache_region=cache_region,
            cache_account=cache,
            resources=tuple(self.resources),
            mappings=tuple(self.mappings),
            new_groups=tuple(self.new_groups),
            new_networks=tuple(self.new_networks),
            new_accounts=tuple(self.new_accounts),
            new_sets=tuple(self.new_sets),
        )

    # --- the source

    def _source_vm(self) -> VirtualMachine:
        options, inventory = self.options, self.inventory
        inventory.check_region(options.source_region, field="source_region")
        inventory.check_region(options.target_region, field="target_region")
        vm = inventory.vm(options.source_region, options.vm)
        if vm is None:
            raise NotFound(
                f"there is no virtual machine {options.vm} in region {options.source_region}",
                hint="`leeward vm list`",
                field="vm",
            )
        check_support(
            Candidate(
                vault=self.vault,
                vm=vm,
                condition=self.condition(vm),
                inventory=inventory,
                options=options,
            )
        )
        return vm

    def _included_disks(self, vm: VirtualMachine) -> tuple[Disk, ...]:
        return tuple(disk for disk in vm.disks if disk.name not in self.options.exclude_disks)

    # --- the target

    def _target_name(self, vm: VirtualMachine) -> str:
        name = check_name(self.options.target_vm or vm.name, field="target_vm")
        planned = {
            protected.target_vm.name
            for protected in self.inventory.protected
            if protected.target_vm.region == self.target
        }
        if self.inventory.vm(self.target, name) is not None or name in planned:
            raise Conflict(
                f"region {self.target} already has a virtual machine {name}, or will have one by a "
                "failover",
                field="target_vm",
                hint="choose another name: --target-vm",
            )
        return name

    def _resource_group(self, vm: VirtualMachine) -> str:
        name = self.options.target_resource_group or f"{vm.resource_group}-asr"
        check_name(name, field="target_resource_group")
        exists = self.inventory.resource_group(self.target, name) is not None
        if not exists:
            self.new_groups.append(ResourceGroup(region=self.target, name=name))
        self._note("resource-group", self.target, name, exists)
        return name

    def _network(self, source_name: str, group: str) -> VirtualNetwork:
        """Return the target network of one source network: chosen, mapped, or made alike."""
        inventory, region = self.inventory, self.options.source_region
        source = inventory.network(region, source_name)
        assert source is not None, "check_support has looked"
        chosen = self.options.target_networks.get(source_name)
        if chosen is not None and inventory.network(self.target, chosen) is None:
            raise NotFound(
                f"there is no network {chosen} in region {self.target}", field="target_networks"
            )
        name = chosen or self._mapped(source_name) or f"{source_name}-asr"
        network = inventory.network(self.target, name)
        self._note(
            "network", self.target, name, network is not None, ", ".join(source.address_space)
        )
        if network is None:
            check_name(name, field="target_networks")
            # the target region's hosts need not have a bridge of that name
            subnets = tuple(replace(subnet, bridge="") for subnet in source.subnets)
            network = replace(
                source, region=self.target, name=name, resource_group=group, subnets=subnets
            )
            self.new_networks.append(network)
        check_no_test_vm(inventory, self.target, name, field="target_networks")
        self._map(source_name, name)
        return network

    def _mapped(self, source_name: str) -> str | None:
        for mapping in self.inventory.mappings:
            if (mapping.source_region, mapping.source_network, mapping.target_region) == (
                self.options.source_region,
                source_name,
                self.target,
            ) and self.inventory.network(self.target, mapping.target_network) is not None:
                return mapping.target_network
        return None

    def _map(self, source_name: str, target_name: str) -> None:
        source = self.options.source_region
        self.mappings += [
            NetworkMapping(
                source_region=source,
                source_network=source_name,
                target_region=self.target,
                target_network=target_name,
            ),
            NetworkMapping(
                source_region=self.target,
                source_network=target_name,
                target_region=source,
                target_network=source_name,
            ),
        ]

    def _availability_set(self, vm: VirtualMachine, group: str) -> str:
        chosen = self.options.target_availability_set
        if chosen == NO_AVAILABILITY_SET or not (chosen or vm.availability_set):
            return ""
        name = chosen or f"{vm.availability_set}-asr"
        exists = self.inventory.availability_set(self.target, name) is not None
        if not exists and chosen:
            raise NotFound(
                f"there is no availability set {name} in region {self.target}",
                field="target_availability_set",
            )
        if not exists:
            check_name(name, field="target_availability_set")
            source = self.inventory.availability_set(vm.region, vm.availability_set)
            self.new_sets.append(
                AvailabilitySet(
                    region=self.target,
                    name=name,
                    resource_group=group,
                    fault_domains=source.fault_domains if source else 2,
                )
            )
        self._note("availability-set", self.target, name, exists)
        return name

    def _cache_account(self, vm: VirtualMachine) -> tuple[str, str]:
        """Return region and name of the cache storage account."""
        chosen = self.options.cache_account
        for region in (vm.region, self.target) if chosen else ():
            if self.inventory.account(region, chosen) is not None:
                self._note("storage-account", region, chosen, True, "cache")
                return region, chosen
        if chosen:
            raise NotFound(
                f"there is no storage account {chosen} in {vm.region} or {self.target}",
                field="cache_account",
            )
        name = check_name(f"{self.vault}-{vm.region}-cache", field="cache_account")
        exists = self.inventory.account(vm.region, name) is not None
        if not exists:
            self.new_accounts.append(
                StorageAccount(region=vm.region, name=name, resource_group=vm.resource_group)
            )
        self._note("storage-account", vm.region, name, exists, "cache")
        return vm.region, name

    def _disk(self, disk: Disk, group: str) -> DiskMapping:
        chosen = self.options.target_accounts.get(disk.name)
        if chosen is not None and self.inventory.account(self.target, chosen) is None:
            raise NotFound(
                f"there is no storage account {chosen} in region {self.target}",
                field="target_accounts",
            )
        name = chosen or check_name(f"{disk.storage_account}asr", field="target_accounts")
        if not any(line.name == name and line.detail == "replica" for line in self.resources):
            exists = self.inventory.account(self.target, name) is not None
            if not exists:
                self.new_accounts.append(
                    StorageAccount(region=self.target, name=name, resource_group=group)
                )
            self._note("storage-account", self.target, name, exists, "replica")
        return DiskMapping(disk=disk.name, source_account=disk.storage_account, target_account=name)

    def _nics(
        self, vm: VirtualMachine, networks: dict[str, VirtualNetwork], target_name: str
    ) -> tuple[PlannedNic, ...]:
        taken = {
            network.name: self.inventory.taken_addresses(self.target, network.name)
            for network in networks.values()
        }
        planned = []
        for nic in vm.nics:
            network = networks[nic.network]
            subnet = _target_subnet(network, nic.subnet)
            address = self._address(nic, subnet, taken[network.name])
            taken[network.name][address] = vm.name
            self.inventory.check_mac(
                self.target, network.name, nic.mac, vm=target_name, field="target_networks"
            )
            planned.append(
                PlannedNic(
                    name=nic.name,
                    source_network=nic.network,
                    source_subnet=nic.subnet,
                    source_address=nic.address,
                    target_network=network.name,
                    target_subnet=subnet.name,
                    target_address=address,
                )
            )
        return tuple(planned)

    def _address(self, nic: NetworkInterface, subnet: Subnet, taken: dict[str, str]) -> str:
        """Return the address asked for, else the source's if it is free there, else the next."""
        asked = self.options.addresses.get(nic.name)
        if asked is not None:
            return check_address(subnet, asked, taken, field="addresses")
        if nic.address and is_in_subnet(subnet, nic.address) and nic.address not in taken:
            return nic.address
        return next_address(subnet, taken)

    def _note(self, kind: str, region: str, name: str, exists: bool, detail: str = "") -> None:
        self.resources.append(
            PlannedResource(
                kind=kind,
                region=region,
                name=name,
                action=REUSE if exists else CREATE,
                detail=detail,
            )
        )


def _networks_of(vm: VirtualMachine) -> tuple[str, ...]:
    return tuple(dict.fromkeys(nic.network for nic in vm.nics))


def _target_subnet(network: VirtualNetwork, name: str) -> Subnet:
    """Return the subnet of the same name, else the first by name."""
    by_name = {subnet.name: subnet for subnet in network.subnets}
    return by_name.get(name) or by_name[min(by_name)]


def _target_disk(disk: Disk, mapping: DiskMapping) -> Disk:
    """Return the disk as it will be after failover: a qcow2 overlay that fills up by itself."""
    return replace(disk, storage_account=mapping.target_account, format="qcow2", image="")


def _target_nic(nic: NetworkInterface, planned: PlannedNic) -> NetworkInterface:
    """Return the interface as it will be after failover; the guest knows it by the same MAC."""
    return replace(
        nic,
        network=planned.target_network,
        subnet=planned.target_subnet,
        address=planned.target_address,
    )
