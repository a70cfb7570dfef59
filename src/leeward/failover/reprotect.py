"""Planning a reprotection: a failed-over item turned round, so that it can fail back.

Owns: what its source and target become. Must not know: nodes, steps. Pure. The item keeps its id
and name; the VM that it fails back to is the one it came from: name, addresses, MACs, accounts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from leeward.core.ids import check_name
from leeward.model.recovery import (
    DiskMapping,
    FormerDirection,
    ItemState,
    ReplicatedItem,
    check_transition,
)
from leeward.model.resources import VirtualMachine


@dataclass(frozen=True, slots=True, kw_only=True)
class ReprotectPlan:
    """item: as it is from now on. target_vm: what it fails back to, on no host yet. seed_epoch: of
    the cut that holds the former source's disks, between the old direction's and the new one's."""

    item: ReplicatedItem
    target_vm: VirtualMachine
    cache_region: str
    seed_epoch: int


def _turned(mapping: DiskMapping) -> DiskMapping:
    return DiskMapping(
        disk=mapping.disk,
        source_account=mapping.target_account,
        target_account=mapping.source_account,
    )


def plan_reprotect(
    item: ReplicatedItem,
    *,
    origin: VirtualMachine,
    current: VirtualMachine,
    worker_id: str,
    cache_region: str,
) -> ReprotectPlan:
    """Return the item turned round.

    origin: the VM it came from. current: the VM it is. worker_id, cache_region: of the direction
    that ends. Raises: Conflict when its state forbids it.
    """
    check_transition(item, ItemState.REPROTECTING)
    mapped = {mapping.disk for mapping in item.disks}
    turned = replace(
        item,
        state=ItemState.REPROTECTING,
        epoch=item.epoch + 2,
        source_region=item.target_region,
        source_vm=item.target_vm,
        target_region=item.source_region,
        target_vm=item.source_vm,
        target_resource_group=origin.resource_group,
        target_network={target: source for source, target in item.target_network.items()},
        target_availability_set=origin.availability_set,
        test_networks={},  # those of the other region
        test_addresses={},
        cache_account=check_name(f"{item.vault}-{item.target_region}-cache", field="cache_account"),
        disks=tuple(_turned(mapping) for mapping in item.disks),
        former_disks=tuple(
            replace(former, mapping=_turned(former.mapping)) for former in item.former_disks
        ),
        recovery_point="",
        drained_point="",
        problem="",
        former=FormerDirection(
            worker_id=worker_id, cache_region=cache_region, cache_account=item.cache_account
        ),
    )
    disks = tuple(
        replace(disk, format="qcow2", image="") for disk in origin.disks if disk.name in mapped
    )
    account_of = {mapping.disk: mapping.source_account for mapping in item.disks}
    there = {disk.name for disk in disks}
    disks += tuple(  # the point it runs from has them, the VM it came from had lost them
        replace(disk, format="qcow2", image="", storage_account=account_of[disk.name])
        for disk in current.disks
        if disk.name in mapped - there
    )
    return ReprotectPlan(
        item=turned,
        target_vm=replace(origin, disks=disks),
        cache_region=item.target_region,
        seed_epoch=item.epoch + 1,
    )
