"""Resources → what agents are told: ids, directories, gateways, all resolved.

Owns: the names things have on hosts. Must not know: commands or their order. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from leeward.core.errors import Unavailable
from leeward.model.recovery import ReplicatedItem
from leeward.model.resources import (
    Disk,
    Outbound,
    Routing,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.addresses import gateway, host_address, parse_prefix
from leeward.protocol.fabric import (
    AccountSpec,
    DiskSpec,
    NetworkSpec,
    NicSpec,
    ReplicaDisk,
    SubnetSpec,
    VmSpec,
)

_VM_ID_MAX = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlace:
    """One host among those of its region: index, counted from 0 by name; peers: the tunnel ends of
    the other hosts that have VMs in the network in question."""

    host: str
    index: int = 0
    peers: tuple[str, ...] = ()


def network_id(installation: str, region: str, network: str, host: str) -> str:
    """Return 11 characters that name the network on one host: network namespaces are one per
    machine, which several hosts, regions and other installations may share."""
    place = f"{installation}/{region}/{network}/{host}"
    return "n" + hashlib.sha256(place.encode()).hexdigest()[:10]


def tunnel_id(installation: str, network: VirtualNetwork, subnet: Subnet) -> int:
    """Return the VXLAN network identifier of a subnet: 1 to 2^24 - 1, the same on every host."""
    place = f"{installation}/{network.region}/{network.name}/{subnet.name}"
    return 1 + int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") % ((1 << 24) - 1)


def vm_id(name: str) -> str:
    """Return the VM's id on its host: its name, cut if it is too long."""
    if len(name) <= _VM_ID_MAX:
        return name
    return f"{name[:31]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def new_mac(region: str, vm: str, nic: str) -> str:
    """Return a locally administered address, always the same for the same interface."""
    digest = hashlib.sha256(f"{region}/{vm}/{nic}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def complete_account(account: StorageAccount, storage_root: str) -> StorageAccount:
    """Return the account with URL and disk directory filled in. Raises: Unavailable when they are
    needed and the region's storage root is not known yet."""
    if account.url and account.disk_directory:
        return account
    if not storage_root:
        raise Unavailable(
            f"no agent of region {account.region} has told where its storage lies yet",
            hint="start an agent there, or give the account's url and disk_directory",
        )
    return replace(
        account,
        url=account.url or f"file://{storage_root}/{account.name}/objects",
        disk_directory=account.disk_directory or f"{storage_root}/{account.name}/disks",
    )


def account_spec(account: StorageAccount) -> AccountSpec:
    """Return what an agent is told of a storage account."""
    return AccountSpec(name=account.name, url=account.url, disk_directory=account.disk_directory)


def network_spec(installation: str, network: VirtualNetwork, place: NetworkPlace) -> NetworkSpec:
    """Return what the agent of one host is told of a virtual network."""
    return NetworkSpec(
        network_id=network_id(installation, network.region, network.name, place.host),
        name=network.name,
        subnets=tuple(
            SubnetSpec(
                name=subnet.name,
                prefix=subnet.prefix,
                gateway=gateway(subnet),
                host_address=host_address(subnet, place.index) if subnet.bridge else "",
                tunnel_id=0 if subnet.bridge else tunnel_id(installation, network, subnet),
                bridge=subnet.bridge,
            )
            for subnet in network.subnets
        ),
        peers=place.peers,
        is_routed=network.routing is Routing.ROUTED,
        has_nat=network.outbound is Outbound.NAT,
    )


def vm_spec(
    installation: str,
    vm: VirtualMachine,
    networks: Mapping[str, VirtualNetwork],
    accounts: Mapping[str, StorageAccount],
) -> VmSpec:
    """Return what an agent is told of a VM whose addresses and host are assigned.

    networks, accounts: by name, those of the VM's region.
    """
    return VmSpec(
        vm_id=vm_id(vm.name),
        name=vm.name,
        vcpus=vm.vcpus,
        memory_mib=vm.memory_mib,
        firmware=vm.firmware,
        display=vm.display,
        disks=tuple(disk_spec(disk, accounts) for disk in vm.disks),
        nics=tuple(
            NicSpec(
                name=nic.name,
                network_id=network_id(installation, vm.region, nic.network, vm.host),
                subnet=nic.subnet,
                address=nic.address,
                prefix_length=_prefix_length(networks[nic.network], nic.subnet),
                mac=nic.mac,
            )
            for nic in vm.nics
        ),
        forwards=vm.forwards,
    )


def disk_spec(disk: Disk, accounts: Mapping[str, StorageAccount]) -> DiskSpec:
    """Return what an agent is told of a disk. accounts: by name, those of the VM's region."""
    return DiskSpec(
        name=disk.name,
        directory=accounts[disk.storage_account].disk_directory,
        format=disk.format,
        size_bytes=disk.size_bytes,
        image=disk.image,
    )


def replica_disks(
    item: ReplicatedItem, target_vm: VirtualMachine, accounts: Mapping[str, StorageAccount]
) -> tuple[ReplicaDisk, ...]:
    """Return where the item's replica lies, the system disk first.

    accounts: by name, those of the target region.
    """
    sizes = {disk.name: disk.size_bytes for disk in target_vm.disks}
    return tuple(
        ReplicaDisk(
            disk=mapping.disk,
            size_bytes=sizes.get(mapping.disk, 0),
            target_url=accounts[mapping.target_account].url,
        )
        for mapping in item.disks
    )


def _prefix_length(network: VirtualNetwork, subnet_name: str) -> int:
    subnet = next(subnet for subnet in network.subnets if subnet.name == subnet_name)
    return parse_prefix(subnet.prefix, field="prefix").prefixlen
