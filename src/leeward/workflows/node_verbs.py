"""Agents and workers that are gone for good.

Owns: when a node may be forgotten, and what goes with it. Must not know: how nodes enrol.
"""

from __future__ import annotations

from dataclasses import replace

from leeward.core.errors import Conflict
from leeward.model.recovery import ItemState, check_transition
from leeward.model.resources import VirtualMachine
from leeward.protocol.messages import Role
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench, machines_in
from leeward.workflows.machine_verbs import check_not_needed, machine_target
from leeward.workflows.monitor import item_key
from leeward.workflows.worker_verbs import GONE_SECONDS


class NodeVerbs:
    """Forgets nodes."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def forget(self, node_id: str, *, with_vms: bool = False) -> None:
        """The node is not enrolled any more. with_vms: nor are its VMs known, which are lost; an
        item that had failed over to it can fail over again, to another host.

        Raises: NotFound; Conflict while it answers, has VMs that are to be kept or that an item
        needs, or processes items.
        """
        with self._bench.vault.write() as records:
            node = records.nodes.get(node_id)
            if self._bench.is_heard(node):
                raise Conflict(f"{node.label} still answers", hint="stop it first")
            if node.role is Role.AGENT:
                self._forget_machines(records, node, is_wanted=with_vms)
            _check_without_items(records, node)
            records.commands.delete_of(node.id)
            records.nodes.delete(node.id)

    def _forget_machines(self, records: Records, node: NodeRecord, *, is_wanted: bool) -> None:
        lost = [vm for vm in machines_in(records, node.region) if vm.host == node.name]
        if lost and not is_wanted:
            raise Conflict(
                f"{node.label} still has virtual machines: {', '.join(vm.name for vm in lost)}",
                hint="delete them first, or, if the host is gone for good, name --with-vms",
            )
        for vm in lost:
            stored = records.resources.get(VirtualMachine, vm.region, vm.name)
            if stored.state is not ResourceState.READY:
                raise Conflict(f"{vm.name} is still {stored.state.value}", hint="try again later")
            owner = _failed_over_as(records, vm)
            if owner is None:
                check_not_needed(records, vm.region, vm.name)
            else:
                self._lose(records, owner, node)
            records.resources.delete(VirtualMachine, vm.region, vm.name)
            self._bench.record_event(
                records,
                machine_target(vm.region, vm.name),
                "vm_forgotten",
                f"{vm.name} was on {node.label}, which is gone for good",
            )

    def _lose(self, records: Records, record: ItemRecord, node: NodeRecord) -> None:
        """The item has its recovery points and no VM any more."""
        check_transition(record.item, ItemState.DEGRADED)
        problem = f"{node.label}, where it ran, is gone for good; fail over again"
        item = replace(record.item, state=ItemState.DEGRADED, recovery_point="", problem=problem)
        records.items.update(replace(record, item=item, is_hydrated=False))
        self._bench.signals.notify(item_key(item.id))


def _check_without_items(records: Records, node: NodeRecord) -> None:
    """Return if no item has the worker. Raises: Conflict."""
    held = [each for each in records.items.listed(region=node.region) if each.worker_id == node.id]
    if not held:
        return
    names = ", ".join(each.item.name for each in held)
    if any(each.is_replicating for each in held):
        hint = (
            f"what is replicated goes to another worker of {node.region} once this one has been "
            f"silent for {GONE_SECONDS:g} s: `leeward worker` starts one; try again then"
        )
    else:
        hint = "what has failed over stays with it until `leeward reprotect` or `leeward unprotect`"
    raise Conflict(f"{node.label} still has items: {names}", hint=hint)


def _failed_over_as(records: Records, vm: VirtualMachine) -> ItemRecord | None:
    """Return the item that has failed over and runs as this VM, and has not been committed."""
    for record in records.items.listed(region=vm.region):
        item = record.item
        is_target = (item.target_region, item.target_vm) == (vm.region, vm.name)
        if is_target and item.state is ItemState.FAILED_OVER:
            return record
    return None
