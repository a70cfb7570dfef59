"""Planning a VM: what a caller left open is filled in, what cannot be is refused.

Owns: the checks of a new VM. Must not know: hosts. Pure.
"""

from __future__ import annotations

import re
from dataclasses import replace

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.core.ids import check_name
from leeward.model.resources import Disk, NetworkInterface, VirtualMachine
from leeward.protection.addresses import check_address, next_address
from leeward.protection.inventory import Inventory
from leeward.workflows.specs import new_mac

_MAC = re.compile(r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")
_SECTOR = 512


def plan_machine(inventory: Inventory, vm: VirtualMachine) -> VirtualMachine:
    """Return the VM with addresses and MACs assigned; its host is still open.

    Raises: InvalidRequest, NotFound or Conflict naming the field at fault.
    """
    inventory.check_region(vm.region, field="region")
    if inventory.resource_group(vm.region, vm.resource_group) is None:
        raise NotFound(
            f"there is no resource group {vm.resource_group} in region {vm.region}",
            field="resource_group",
        )
    if vm.availability_set and not inventory.availability_set(vm.region, vm.availability_set):
        raise NotFound(
            f"there is no availability set {vm.availability_set} in region {vm.region}",
            field="availability_set",
        )
    if vm.firmware != "bios":
        raise InvalidRequest(
            f"firmware {vm.firmware!r} is on no host", field="firmware", hint="bios"
        )
    _check_unique([disk.name for disk in vm.disks], "disks")
    _check_unique([nic.name for nic in vm.nics], "nics")
    _check_forwards(vm)
    for disk in vm.disks:
        check_disk(inventory, vm, disk)
    return replace(vm, nics=_nics(inventory, vm))


def _check_unique(names: list[str], field: str) -> None:
    for name in names:
        check_name(name, field=field)
    if len(set(names)) < len(names):
        raise InvalidRequest(f"{field}: a name is used twice", field=field)


def _check_forwards(vm: VirtualMachine) -> None:
    if vm.forwards and not vm.nics:
        raise InvalidRequest(f"{vm.name} has no interface to forward to", field="forwards")
    if len(set(vm.forwards)) < len(vm.forwards) or not all(0 < p < 65536 for p in vm.forwards):
        raise InvalidRequest("forwards: each is a TCP port, none twice", field="forwards")


def check_disk(inventory: Inventory, vm: VirtualMachine, disk: Disk) -> None:
    """Return if the VM may have such a disk."""
    if inventory.account(vm.region, disk.storage_account) is None:
        raise NotFound(
            f"disk {disk.name}: there is no storage account {disk.storage_account} in region "
            f"{vm.region}",
            field="disks",
        )
    if disk.size_bytes == 0 and not disk.image:
        raise InvalidRequest(f"disk {disk.name} needs a size or an image", field="disks")
    if disk.size_bytes % _SECTOR:
        raise InvalidRequest(
            f"disk {disk.name}: its size is not a multiple of {_SECTOR} bytes", field="disks"
        )
    if disk.image and not disk.image.startswith("/"):
        raise InvalidRequest(
            f"disk {disk.name}: image {disk.image!r} is not an absolute path on the host",
            field="disks",
        )


def _nics(inventory: Inventory, vm: VirtualMachine) -> tuple[NetworkInterface, ...]:
    taken: dict[str, dict[str, str]] = {}
    planned = []
    for nic in vm.nics:
        network = inventory.network(vm.region, nic.network)
        subnet = (
            next((s for s in network.subnets if s.name == nic.subnet), None) if network else None
        )
        if subnet is None:
            raise NotFound(
                f"interface {nic.name}: there is no subnet {nic.network}/{nic.subnet} in region "
                f"{vm.region}",
                field="nics",
            )
        if nic.mac and not _MAC.fullmatch(nic.mac):
            raise InvalidRequest(
                f"interface {nic.name}: {nic.mac!r} is not a unicast MAC address in lower case",
                field="nics",
            )
        here = taken.setdefault(
            nic.network, dict(inventory.taken_addresses(vm.region, nic.network))
        )
        if nic.address:
            check_address(subnet, nic.address, here, field="nics")
        address = nic.address or next_address(subnet, here)
        here[address] = vm.name
        mac = nic.mac or new_mac(vm.region, vm.name, nic.name)
        inventory.check_mac(vm.region, nic.network, mac, vm=vm.name, field="nics")
        planned.append(replace(nic, address=address, mac=mac))
    _check_macs(planned)
    return tuple(planned)


def _check_macs(nics: list[NetworkInterface]) -> None:
    if len({nic.mac for nic in nics}) < len(nics):
        raise Conflict("two interfaces have the same MAC address", field="nics")
