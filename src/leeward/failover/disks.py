"""Which disks a VM has that is booted from a recovery point of an item whose disks have changed.

Owns: bringing an item's disks of then and now together, and apart again once the point has told
which it has. Must not know: nodes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from leeward.model.recovery import FormerDisk, ReplicatedItem
from leeward.model.resources import Disk, VirtualMachine


def with_all_disks(
    item: ReplicatedItem, vm: VirtualMachine
) -> tuple[ReplicatedItem, VirtualMachine]:
    """Return item and target VM with every disk that any recovery point may have."""
    if not item.former_disks:
        return item, vm
    former = tuple(
        Disk(
            name=one.mapping.disk,
            storage_account=one.mapping.target_account,
            size_bytes=one.size_bytes,
            format=one.format,
        )
        for one in item.former_disks
    )
    disks = (*item.disks, *(one.mapping for one in item.former_disks))
    return replace(item, disks=disks), replace(vm, disks=(*vm.disks, *former))


def with_disks_of_point(
    item: ReplicatedItem, vm: VirtualMachine, sizes: Mapping[str, int]
) -> tuple[ReplicatedItem, VirtualMachine]:
    """Return item and target VM with the disks in `sizes` alone, so large; the item remembers the
    others, for a change of the recovery point."""
    whole_item, whole_vm = with_all_disks(item, vm)
    former = tuple(
        FormerDisk(
            mapping=mapping,
            size_bytes=disk.size_bytes,
            format=disk.format,
        )
        for mapping in whole_item.disks
        for disk in whole_vm.disks
        if disk.name == mapping.disk and disk.name not in sizes
    )
    disks = tuple(
        replace(disk, size_bytes=sizes[disk.name]) for disk in whole_vm.disks if disk.name in sizes
    )
    mappings = tuple(mapping for mapping in whole_item.disks if mapping.disk in sizes)
    return replace(item, disks=mappings, former_disks=former), replace(vm, disks=disks)
