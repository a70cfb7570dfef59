"""Request bodies about a region: its nodes, networks, storage accounts and VMs.

Owns: their shape and the OpenAPI text that comes of it. Must not know: what is done with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from leeward.api.bodies import Body
from leeward.model.resources import (
    MEMORY_MIB_MIN,
    VCPUS_MAX,
    AvailabilitySet,
    Disk,
    NetworkInterface,
    Outbound,
    ResourceGroup,
    Routing,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.workflows.change_verbs import MachineSize


class EnrolmentTokenBody(Body):
    role: Literal["agent", "worker"] | None = Field(
        default=None, description="for the caller's own records: a token enrols either"
    )


class ResourceGroupBody(Body):
    def resource(self, region: str, name: str) -> ResourceGroup:
        """Return the resource group that is asked for."""
        return ResourceGroup(region=region, name=name)


class SubnetBody(Body):
    name: str
    prefix: str = Field(description="CIDR inside the address space")
    bridge: str = Field(
        default="", max_length=15, description="existing bridge of the hosts to be joined with"
    )

    def subnet(self) -> Subnet:
        """Return the subnet that is asked for."""
        return Subnet(**self.model_dump())


class NetworkBody(Body):
    resource_group: str
    address_space: tuple[str, ...] = Field(min_length=1, max_length=16)
    subnets: tuple[SubnetBody, ...] = Field(min_length=1, max_length=64)
    routing: Routing = Field(
        default=Routing.ISOLATED, description="whether its subnets reach each other"
    )
    outbound: Outbound = Field(
        default=Outbound.NONE, description="whether its VMs reach the outside, and how"
    )

    def resource(self, region: str, name: str) -> VirtualNetwork:
        """Return the virtual network that is asked for."""
        return VirtualNetwork(
            region=region,
            name=name,
            resource_group=self.resource_group,
            address_space=self.address_space,
            subnets=tuple(body.subnet() for body in self.subnets),
            routing=self.routing,
            outbound=self.outbound,
        )


class NetworkChangeBody(Body):
    """What is left out stays as it is."""

    address_space: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=16)
    subnets: tuple[SubnetBody, ...] | None = Field(
        default=None, min_length=1, max_length=64, description="all of them, changed or not"
    )
    routing: Routing | None = None
    outbound: Outbound | None = None

    def changed(self, network: VirtualNetwork) -> VirtualNetwork:
        """Return the network as it is wanted."""
        return replace(
            network,
            address_space=self.address_space or network.address_space,
            subnets=tuple(body.subnet() for body in self.subnets or ()) or network.subnets,
            routing=self.routing or network.routing,
            outbound=self.outbound or network.outbound,
        )


class StorageAccountBody(Body):
    resource_group: str
    url: str = ""
    disk_directory: str = ""

    def resource(self, region: str, name: str) -> StorageAccount:
        """Return the storage account that is asked for; empty places are filled in later."""
        return StorageAccount(region=region, name=name, **self.model_dump())


class AvailabilitySetBody(Body):
    resource_group: str
    fault_domains: int = Field(default=2, ge=1, le=64)

    def resource(self, region: str, name: str) -> AvailabilitySet:
        """Return the availability set that is asked for."""
        return AvailabilitySet(region=region, name=name, **self.model_dump())


class AvailabilitySetChangeBody(Body):
    fault_domains: int = Field(ge=1, le=64)


class DiskBody(Body):
    name: str
    storage_account: str
    size_bytes: int = Field(default=0, ge=0)
    format: Literal["raw", "qcow2"] = "raw"
    image: str = ""

    def disk(self) -> Disk:
        """Return the disk that is asked for."""
        return Disk(**self.model_dump())


class DiskSizeBody(Body):
    """A disk never becomes smaller."""

    size_bytes: int = Field(gt=0)


class NicBody(Body):
    name: str
    network: str
    subnet: str
    address: str = ""
    mac: str = ""


class VirtualMachineBody(Body):
    resource_group: str
    vcpus: int = Field(default=1, ge=1, le=VCPUS_MAX)
    memory_mib: int = Field(default=256, ge=MEMORY_MIB_MIN, le=4 << 20)
    firmware: Literal["bios", "uefi"] = "bios"
    display: Literal["none", "vga"] = "none"
    disks: tuple[DiskBody, ...] = Field(min_length=1, max_length=64)
    nics: tuple[NicBody, ...] = Field(default=(), max_length=16)
    availability_set: str = ""
    forwards: tuple[int, ...] = Field(default=(), max_length=64)
    host: str = ""

    def resource(self, region: str, name: str) -> VirtualMachine:
        """Return the virtual machine that is asked for; addresses may still be open."""
        plain = self.model_dump()
        plain["disks"] = tuple(Disk(**disk) for disk in plain["disks"])
        plain["nics"] = tuple(NetworkInterface(**nic) for nic in plain["nics"])
        return VirtualMachine(region=region, name=name, **plain)


class VirtualMachineChangeBody(Body):
    """What is left out stays as it is. The VM must be stopped."""

    vcpus: int | None = Field(default=None, ge=1, le=VCPUS_MAX)
    memory_mib: int | None = Field(default=None, ge=MEMORY_MIB_MIN, le=4 << 20)
    forwards: tuple[int, ...] | None = Field(default=None, max_length=64)

    def size(self, vm: VirtualMachine) -> MachineSize:
        """Return the size that is wanted."""
        return MachineSize(
            region=vm.region,
            name=vm.name,
            vcpus=self.vcpus or vm.vcpus,
            memory_mib=self.memory_mib or vm.memory_mib,
            forwards=vm.forwards if self.forwards is None else self.forwards,
        )


class StopBody(Body):
    force: bool = False
