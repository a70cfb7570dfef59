"""Ending protection: replication and processing stopped, the item forgotten, and what was made for
it removed where nothing else uses it.

Owns: these steps, for a failed protection and for a disabled one. Must not know: why it ends. None
of them fails: nodes that do not answer get their orders when they come back.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from leeward.core.errors import Unavailable
from leeward.model.recovery import ReplicatedItem
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protocol.messages import Verb
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.drill_records import forget_drills
from leeward.workflows.engine import Json
from leeward.workflows.job import UNDO_SECONDS, RunningJob
from leeward.workflows.monitor import find_node
from leeward.workflows.resource_verbs import (
    Grouped,
    ResourceVerbs,
    forget_mappings,
    is_unused,
)

ERASE_SECONDS = 1800.0
"""A replica is erased object by object; its storage must not be removed meanwhile."""


_DELETING = ResourceState.DELETING


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Names of the resources an item used. Those a person made are never removed."""

    target_region: str
    group: str
    networks: tuple[str, ...]
    availability_set: str
    target_accounts: tuple[str, ...]
    cache_region: str
    cache_account: str
    former_cache: tuple[str, str] = ("", "")
    """Region and name of the cache account of the direction before."""


def used_resources(item: ReplicatedItem, vm: VirtualMachine, *, cache_region: str) -> Used:
    """Return what the item uses; vm: what it fails over to."""
    return Used(
        target_region=item.target_region,
        group=item.target_resource_group,
        networks=tuple(dict.fromkeys(nic.network for nic in vm.nics)),
        availability_set=item.target_availability_set,
        target_accounts=tuple(dict.fromkeys(disk.target_account for disk in item.all_disks)),
        cache_region=cache_region,
        cache_account=item.cache_account,
        former_cache=(item.former.cache_region, item.former.cache_account)
        if item.former
        else ("", ""),
    )


class Ending:
    """The steps, for a running job."""

    def __init__(self, bench: Bench, resources: ResourceVerbs) -> None:
        self._bench = bench
        self._resources = resources

    def end_item(self, job: RunningJob, item_id: str, used: Used, *, delete_replica: bool) -> None:
        """The item is gone, and with it what only it used; its replica if asked."""
        job.undo_orders("stop replication", lambda: self._replication_orders(item_id))
        job.undo_orders(
            "stop processing",
            lambda: self._processing_orders(item_id, delete_replica),
            timeout_seconds=ERASE_SECONDS if delete_replica else UNDO_SECONDS,
        )
        job.step("forget", lambda _: self._forget(item_id), dict[str, object], is_undo=True)
        self._remove_unused(job, item_id, used, delete_replica)

    def _replication_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            item = records.items.by_id(item_id).item
            vm = records.resources.find(VirtualMachine, item.source_region, item.source_vm)
            if vm is None:
                return []
            agent = self._bench.agent_of(records, vm.value)
        return [Order(node=agent, verb=Verb.REPLICATION_STOP, arguments={"item_id": item_id})]

    def _processing_orders(self, item_id: str, delete_replica: bool) -> list[Order]:
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            if not record.worker_id:
                return []
            workers = [records.nodes.get(record.worker_id)]
            former = find_node(records, record.item.former.worker_id if record.item.former else "")
            workers += [former] if former and former.id != record.worker_id else []
        arguments: Json = {"item_id": item_id, "delete": delete_replica}
        return [
            Order(node=worker, verb=Verb.PROCESSING_STOP, arguments=arguments) for worker in workers
        ]

    def _removed_orders(self, job_id: str, item_id: str, used: Used) -> list[Order]:
        """Tell workers that have not erased the item which of its stores have been removed since:
        they would wait for them for good."""
        with self._bench.vault.read() as records:
            found = [
                records.resources.find(StorageAccount, used.target_region, name)
                for name in used.target_accounts
            ]
            told = [
                record
                for record in records.commands.of_job(job_id)
                if record.command.verb is Verb.PROCESSING_STOP
                and not (record.answer and record.answer.ok)
            ]
            workers = [find_node(records, record.node_id) for record in told]
        removed = [each.value.url for each in found if each and each.state is _DELETING]
        about: Json = {"item_id": item_id, "delete": True, "removed": removed}
        return [
            Order(node=worker, verb=Verb.PROCESSING_STOP, arguments=about)
            for worker in workers
            if worker is not None and removed
        ]

    def _forget(self, item_id: str) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            if record is not None:
                forget_drills(records, item_id, record.item.vault, record.item.name)
            records.items.delete(item_id)
        return {}

    # --- resources nobody uses any more

    def remove_account(self, job: RunningJob, region: str, name: str) -> None:
        """The account is gone, if a protection made it and nothing uses it."""
        account = [(region, name)]
        job.undo_orders("remove storage", lambda: self._account_orders(account), late=False)
        job.step(
            "remove record",
            lambda _: self._remove(StorageAccount, region, name),
            dict[str, object],
            is_undo=True,
        )

    def _remove_unused(
        self, job: RunningJob, item_id: str, used: Used, delete_replica: bool
    ) -> None:
        accounts = [(used.cache_region, used.cache_account), used.former_cache]
        if delete_replica:
            accounts += [(used.target_region, name) for name in used.target_accounts]
        # Carried out late it would take away what another protection has made under that name.
        job.undo_orders("remove storage", lambda: self._account_orders(accounts), late=False)
        if delete_replica:
            job.undo_orders(
                "tell workers", lambda: self._removed_orders(job.record.id, item_id, used)
            )
        job.undo_orders("remove networks", lambda: self._network_orders(used))
        job.step(
            "remove records",
            lambda _: self._remove_records(used, accounts),
            dict[str, object],
            is_undo=True,
        )

    def _account_orders(self, accounts: list[tuple[str, str]]) -> list[Order]:
        orders: list[Order] = []
        for region, name in accounts:
            if self._retire(StorageAccount, region, name):
                with suppress(Unavailable):  # that region is gone
                    orders += self._resources.account_orders(region, name, Verb.ACCOUNT_DELETE)
        return orders

    def _network_orders(self, used: Used) -> list[Order]:
        orders: list[Order] = []
        for name in used.networks:
            if self._retire(VirtualNetwork, used.target_region, name):
                orders += self._resources.network_delete_orders(used.target_region, name)
        return orders

    def _retire(self, kind: type[StorageAccount | VirtualNetwork], region: str, name: str) -> bool:
        """Say whether the resource goes; then nothing can begin to use it any more."""
        with self._bench.vault.write() as records:
            is_idle = _is_idle(records, kind, region, name)
            if is_idle:
                records.resources.set_state(kind, region, name, _DELETING)
        return is_idle

    def _remove_records(self, used: Used, accounts: list[tuple[str, str]]) -> Json:
        region = used.target_region
        candidates: list[tuple[type[Grouped], str, str]] = [
            *((StorageAccount, where, name) for where, name in accounts),
            *((VirtualNetwork, region, name) for name in used.networks),
            (AvailabilitySet, region, used.availability_set),
        ]
        with self._bench.vault.read() as records:
            found = [records.resources.find(*each) for each in candidates]
        groups = {(each.value.region, _group_of(each.value)) for each in found if each}
        for kind, where, name in candidates:
            self._remove(kind, where, name)
        for where, name in groups | {(region, used.group)}:  # empty when the others are gone
            self._remove(ResourceGroup, where, name)
        return {}

    def _remove(self, kind: type[Grouped], region: str, name: str) -> Json:
        with self._bench.vault.write() as records:
            if _is_idle(records, kind, region, name):
                records.resources.delete(kind, region, name)
                if kind is VirtualNetwork:
                    forget_mappings(records, region, name)
        return {}


def _group_of(resource: Grouped) -> str:
    return resource.name if isinstance(resource, ResourceGroup) else resource.resource_group


def _is_idle(records: Records, kind: type[Grouped], region: str, name: str) -> bool:
    """Say whether a protection made the resource and nothing uses it."""
    stored = records.resources.find(kind, region, name) if name else None
    return bool(stored and stored.created_by) and is_unused(records, kind, region, name)
