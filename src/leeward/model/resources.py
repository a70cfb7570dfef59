"""Resources of a region, as the vault keeps them and the API shows them.

Owns: their fields. Must not know: how a fabric makes them real. Every name passes
`core.ids.check_name`; names are unique per region and kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

VCPUS_MAX = 255
MEMORY_MIB_MIN = 32
"""Bounds of a VM's size, whoever asks for it: what a host would refuse is not to be found out when
the VM fails over."""


class PowerState(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceGroup:
    region: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    name: str
    prefix: str
    """CIDR, inside the network's address space; the first host address is the gateway."""
    bridge: str = ""
    """Existing bridge of the region's hosts that the subnet is joined with: the gateway is then a
    router out there, and the last host addresses are the hosts' own. "": the hosts are joined by
    tunnels."""


class Routing(Enum):
    """Whether a network's subnets reach each other, through their gateways."""

    ISOLATED = "isolated"
    ROUTED = "routed"


class Outbound(Enum):
    """Whether VMs reach what lies outside their network: not at all, or with the host's address."""

    NONE = "none"
    NAT = "nat"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualNetwork:
    region: str
    name: str
    resource_group: str
    address_space: tuple[str, ...]
    subnets: tuple[Subnet, ...]
    routing: Routing = Routing.ISOLATED
    outbound: Outbound = Outbound.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAccount:
    region: str
    name: str
    resource_group: str
    url: str = ""
    """Object store URL; "" asks the service for a directory under the region's storage root."""
    disk_directory: str = ""
    """Directory on the region's hosts where disk images of running VMs lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilitySet:
    region: str
    name: str
    resource_group: str
    fault_domains: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    name: str
    storage_account: str
    size_bytes: int = 0
    """0 with `image`: the image's virtual size."""
    format: str = "raw"
    """"raw" or "qcow2"."""
    image: str = ""
    """Path on the host of an image to copy the first content from; "" is an empty disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInterface:
    name: str
    network: str
    subnet: str
    address: str = ""
    """Static address; "" is dynamic: the next free one is assigned when the VM is created."""
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """disks[0] is the system disk: the VM boots from it."""

    region: str
    name: str
    resource_group: str
    vcpus: int = 1
    memory_mib: int = 256
    firmware: str = "bios"
    display: str = "none"
    """"none", or "vga": a picture of it can be taken."""
    disks: tuple[Disk, ...] = ()
    nics: tuple[NetworkInterface, ...] = ()
    availability_set: str = ""
    forwards: tuple[int, ...] = ()
    """TCP ports of the guest's first interface that the host forwards from 127.0.0.1."""
    host: str = ""
    """The host (agent) it is placed on; assigned by the service."""
