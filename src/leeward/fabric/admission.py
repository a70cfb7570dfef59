"""Whether a network or VM may be made on this host beside those already there. Pure.

Owns: every rule about addresses, names and sizes. Must not know: how anything is made. Each refusal
names the field and says what would do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import combinations

from leeward.core.errors import Conflict, InvalidRequest
from leeward.model.resources import MEMORY_MIB_MIN, VCPUS_MAX
from leeward.protocol.fabric import NetworkSpec, NicSpec, SubnetSpec, VmSpec
from leeward.qemu.machine import DISK_NAME_MAX, DISPLAYS

_NETWORK_ID = re.compile(r"^[a-z0-9-]{1,11}$")
_VM_ID = re.compile(r"^[a-z0-9-]{1,40}$")
_PART = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
_MAC = re.compile(r"^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$")
QEMU_OVERHEAD_MIB = 64


def check_network(
    spec: NetworkSpec, *, known: NetworkSpec | None = None, vms: Iterable[VmSpec] = ()
) -> None:
    """Return if the network may be made so, or `known` changed into it under the NICs of `vms`."""
    if not _NETWORK_ID.fullmatch(spec.network_id):
        raise InvalidRequest(
            f"{spec.network_id!r} cannot be a network id",
            field="network_id",
            hint="at most 11 of a-z, 0-9 and '-'",
        )
    parsed = {subnet.name: _check_subnet(subnet) for subnet in spec.subnets}
    if len(parsed) < len(spec.subnets):
        raise InvalidRequest("two subnets have the same name", field="subnets")
    for (name, one), (other_name, other) in combinations(parsed.items(), 2):
        if one.overlaps(other):
            raise InvalidRequest(
                f"subnets {name} ({one}) and {other_name} ({other}) overlap", field="subnets"
            )
    for subnet in known.subnets if known else ():
        if subnet not in spec.subnets:
            _check_unused(spec.network_id, subnet.name, vms)


def _check_subnet(subnet: SubnetSpec) -> IPv4Network:
    if not _PART.fullmatch(subnet.name):
        raise InvalidRequest(f"{subnet.name!r} cannot be a subnet's name", field="subnets")
    try:
        prefix = IPv4Network(subnet.prefix)
        gateway = IPv4Address(subnet.gateway)
    except ValueError as error:
        raise InvalidRequest(f"subnet {subnet.name}: {error}", field="prefix") from error
    if prefix.prefixlen > 29 or not _is_host(gateway, prefix):
        raise InvalidRequest(
            f"subnet {subnet.name}: {subnet.gateway} is no host address of {prefix}",
            field="prefix",
            hint="an IPv4 prefix of at most 29 bits, the gateway inside it",
        )
    return prefix


def _is_host(address: IPv4Address, prefix: IPv4Network) -> bool:
    ends = (prefix.network_address, prefix.broadcast_address)
    return address in prefix and address not in ends


def _check_unused(network_id: str, subnet: str, vms: Iterable[VmSpec]) -> None:
    users = [
        vm.vm_id
        for vm in vms
        if any((nic.network_id, nic.subnet) == (network_id, subnet) for nic in vm.nics)
    ]
    if users:
        raise Conflict(
            f"subnet {subnet} of network {network_id} is used by {', '.join(users)}",
            field="subnets",
        )


def complete(spec: VmSpec) -> VmSpec:
    """Return `spec` with a MAC on every NIC: where none was given, one made of VM and NIC name."""
    return replace(spec, nics=tuple(_with_mac(spec.vm_id, nic) for nic in spec.nics))


def _with_mac(vm_id: str, nic: NicSpec) -> NicSpec:
    if nic.mac:
        return replace(nic, mac=nic.mac.lower())
    digest = hashlib.sha256(f"{vm_id}/{nic.name}".encode()).digest()
    return replace(nic, mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3]))


def check_vm(
    spec: VmSpec, *, networks: Mapping[str, NetworkSpec], others: Iterable[VmSpec]
) -> None:
    """Return if the VM (complete) may be made beside `others`. networks: by network_id."""
    if not _VM_ID.fullmatch(spec.vm_id) or not spec.name:
        raise InvalidRequest(
            f"{spec.vm_id!r} cannot be a VM's id",
            field="vm_id",
            hint="at most 40 of a-z, 0-9 and '-'",
        )
    if spec.firmware != "bios":
        raise InvalidRequest(
            f"firmware {spec.firmware!r} is not there on this host", field="firmware", hint="bios"
        )
    if spec.display not in DISPLAYS:
        raise InvalidRequest(
            f"display {spec.display!r} is none that a VM can have",
            field="display",
            hint=" or ".join(DISPLAYS),
        )
    if not 1 <= spec.vcpus <= VCPUS_MAX:
        raise InvalidRequest(
            f"{spec.vcpus} is no number of vCPUs", field="vcpus", hint=f"1 to {VCPUS_MAX}"
        )
    if spec.memory_mib < MEMORY_MIB_MIN:
        raise InvalidRequest(
            f"{spec.memory_mib} MiB is too little memory",
            field="memory_mib",
            hint=f"at least {MEMORY_MIB_MIN}",
        )
    check_disks(spec)
    _check_forwards(spec)
    if len({nic.name for nic in spec.nics}) < len(spec.nics):
        raise InvalidRequest("two interfaces have the same name", field="nics")
    taken = [(other, nic) for other in others for nic in other.nics]
    for index, nic in enumerate(spec.nics):
        _check_nic(nic, networks)
        for other, theirs in [*taken, *((spec, mine) for mine in spec.nics[:index])]:
            _check_apart(nic, other, theirs)


def check_disks(spec: VmSpec) -> None:
    """Return if a VM may have such disks."""
    names = [disk.name for disk in spec.disks]
    if not names:
        raise InvalidRequest("a VM needs a disk to boot from", field="disks")
    for name in names:
        if not _PART.fullmatch(name) or len(name) > DISK_NAME_MAX:
            raise InvalidRequest(
                f"{name!r} cannot be a disk's name",
                field="disks",
                hint=f"at most {DISK_NAME_MAX} of a-z, 0-9 and '-'",
            )
    for disk in spec.disks:
        if names.count(disk.name) > 1:
            raise InvalidRequest(f"two disks are called {disk.name}", field="disks")
        if not disk.directory.startswith("/"):
            raise InvalidRequest(
                f"disk {disk.name}: {disk.directory!r} is no absolute directory", field="directory"
            )


def _check_forwards(spec: VmSpec) -> None:
    for port in spec.forwards:
        if not 1 <= port <= 65535 or spec.forwards.count(port) > 1:
            raise InvalidRequest(
                f"{port} cannot be forwarded", field="forwards", hint="different ports, 1 to 65535"
            )
    if spec.forwards and not spec.nics:
        raise InvalidRequest("forwards need a network interface", field="forwards")


def _check_nic(nic: NicSpec, networks: Mapping[str, NetworkSpec]) -> None:
    network = networks.get(nic.network_id)
    subnets = {subnet.name: subnet for subnet in network.subnets} if network else {}
    subnet = subnets.get(nic.subnet)
    if network is None or subnet is None:
        missing = f"subnet {nic.subnet} in network" if network else "network"
        raise InvalidRequest(
            f"interface {nic.name}: there is no {missing} {nic.network_id} on this host",
            field="subnet" if network else "network",
        )
    try:
        interface = IPv4Interface(f"{nic.address}/{nic.prefix_length}")
    except ValueError as error:
        raise InvalidRequest(f"interface {nic.name}: {error}", field="address") from error
    prefix = IPv4Network(subnet.prefix)
    if interface.network != prefix or not _is_host(interface.ip, prefix):
        raise InvalidRequest(
            f"interface {nic.name}: {interface} is no host address of {prefix}", field="address"
        )
    if nic.address == subnet.gateway:
        raise Conflict(
            f"interface {nic.name}: {nic.address} is the gateway of {nic.subnet}", field="address"
        )
    if not _PART.fullmatch(nic.name):
        raise InvalidRequest(f"{nic.name!r} cannot be an interface's name", field="nics")
    if not _MAC.fullmatch(nic.mac) or int(nic.mac[:2], 16) & 1:
        raise InvalidRequest(
            f"interface {nic.name}: {nic.mac!r} is no unicast MAC address", field="mac"
        )


def _check_apart(nic: NicSpec, other: VmSpec, theirs: NicSpec) -> None:
    """Return if two interfaces can be there together."""
    if nic.network_id != theirs.network_id:
        return
    whose = f"interface {theirs.name} of {other.vm_id}"
    if nic.address == theirs.address:
        raise Conflict(f"interface {nic.name}: {nic.address} belongs to {whose}", field="address")
    if nic.mac == theirs.mac:
        raise Conflict(f"interface {nic.name}: {nic.mac} belongs to {whose}", field="mac")


def check_memory(spec: VmSpec, available_mib: int) -> None:
    """Return if the host has the memory to start the VM. Raises: Conflict."""
    if spec.memory_mib + QEMU_OVERHEAD_MIB > available_mib:
        raise Conflict(
            f"{spec.vm_id} needs {spec.memory_mib} MiB of memory, the host has {available_mib} MiB",
            field="memory_mib",
        )
