"""Enabling replication of a VM.

Owns: their steps, and that a failed protection leaves nothing half-made. Must not know: names and
defaults of target resources, those are protection.plan's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import LeewardError, Unavailable
from leeward.core.ids import new_id
from leeward.model.recovery import (
    ItemState,
    Job,
    NetworkMapping,
    Policy,
    ReplicatedItem,
    Vault,
)
from leeward.model.resources import (
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.health import FOLLOWING
from leeward.protection.inventory import Protected
from leeward.protection.options import ProtectOptions
from leeward.protection.plan import ProtectionPlan, plan_protection
from leeward.protection.support import SourceCondition
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench, check_staying, storage_root
from leeward.workflows.disk_verbs import check_disks_resting
from leeward.workflows.dispatch import Order
from leeward.workflows.ending import Ending, used_resources
from leeward.workflows.engine import Json
from leeward.workflows.host_networks import network_order
from leeward.workflows.inventory import load_inventory
from leeward.workflows.item_specs import item_key_id, processing_spec, replication_spec
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.resource_verbs import Grouped, ResourceVerbs, mapping_name
from leeward.workflows.specs import (
    complete_account,
    vm_id,
)
from leeward.workflows.waiting import wait_initial


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectArguments:
    """item_id was made when the job was: it is in the vault already."""

    item_id: str
    plan: ProtectionPlan


class ProtectVerbs:
    """Submits and runs protecting."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], resources: ResourceVerbs) -> None:
        self._bench = bench
        self._jobs = jobs
        self._resources = resources
        self._ending = Ending(bench, resources)

    # --- submitting

    def plan(self, vault: str, options: ProtectOptions) -> ProtectionPlan:
        """Return what protecting the VM would create and use. Raises: InvalidRequest, NotFound,
        Conflict."""
        with self._bench.vault.read() as records:
            return self._plan(records, vault, options)

    def protect(
        self, vault: str, options: ProtectOptions, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that protects the VM. Raises: as `plan`; Unavailable."""

        def prepare(records: Records) -> ProtectArguments:
            plan = self._plan(records, vault, options)
            self._check_nodes(records, plan)
            check_disks_resting(records, plan.source_region, plan.source_vm)
            check_staying(records, StorageAccount, plan.cache_region, plan.cache_account)
            for account in _target_accounts(plan):
                check_staying(records, StorageAccount, plan.target_region, account)
            for network in plan.target_networks.values():
                check_staying(records, VirtualNetwork, plan.target_region, network)
            item = _new_item(plan, new_id("item"))
            self._reserve(records, plan, item)
            return ProtectArguments(item_id=item.id, plan=plan)

        return self._jobs().submit("item.protect", item_target(options.vm), prepare, key)

    # --- running

    def run_protect(self, job: RunningJob) -> Json:
        """The VM is protected, or nothing of it is left."""
        arguments = job.arguments(ProtectArguments)
        try:
            self._make_resources(job, arguments.plan)
            job.order(
                "start processing",
                lambda: self.processing_order(arguments.item_id),
                dict[str, object],
            )
            job.order(
                "start replication",
                lambda: self.replication_order(arguments.item_id),
                dict[str, object],
            )
            job.record_step("record", lambda: self._started(arguments.item_id), dict[str, object])
            initial = job.step(
                "initial replication",
                lambda progress: wait_initial(job, progress, arguments.item_id),
                dict[str, object],
            )
        except LeewardError:
            self._undo(job, arguments)
            raise
        return {"item": arguments.plan.source_vm, "item_id": arguments.item_id, **initial}

    # --- submitting: planning and reserving

    def _plan(self, records: Records, vault: str, options: ProtectOptions) -> ProtectionPlan:
        records.resources.get(Vault, "", vault)
        inventory = load_inventory(records, [options.source_region, options.target_region])
        mine = {protected.item.id for protected in inventory.protected}
        others = tuple(
            _protected(record)
            for record in records.items.listed(vault=vault)
            if record.item.id not in mine
        )
        inventory = replace(inventory, protected=(*inventory.protected, *others))
        plan = plan_protection(vault, inventory, options, lambda vm: self._condition(records, vm))
        records.resources.get(Policy, vault, plan.policy)
        self._bench.check_memory(records, plan.target_vm)
        return plan

    def _condition(self, records: Records, vm: VirtualMachine) -> SourceCondition:
        stored = records.resources.get(VirtualMachine, vm.region, vm.name)
        agent = self._bench.find_agent(records, vm)
        if agent is None:
            host = f"host {vm.host} of region {vm.region}"
            return SourceCondition(host=host, is_host_answering=False)
        status = self._bench.live.vm(agent.id, vm_id(vm.name))
        return SourceCondition(
            host=agent.label,
            is_host_answering=self._bench.is_heard(agent),
            is_made=stored.state is ResourceState.READY,
            power=status.power if status is not None else None,
        )

    def _check_nodes(self, records: Records, plan: ProtectionPlan) -> None:
        """Return if everybody needed answers now: better refused than half-made."""
        source = records.resources.get(VirtualMachine, plan.source_region, plan.source_vm)
        agent = self._bench.agent_of(records, source.value)
        key_id = item_key_id(records, plan.vault, plan.policy)
        if key_id:
            self._bench.check_key(agent, key_id)
        self._bench.check_answering(records, plan.target_region)
        for role in (Role.WORKER, Role.AGENT) if key_id else ():
            for node in self._bench.answering(records, role, plan.target_region):
                self._bench.check_key(node, key_id)

    def _reserve(self, records: Records, plan: ProtectionPlan, item: ReplicatedItem) -> None:
        """The item and its new resources are in the vault, before anything is made real."""
        for account in plan.new_accounts:
            records.resources.insert(
                complete_account(account, storage_root(records, account.region)),
                scope=account.region,
                name=account.name,
                state=ResourceState.CREATING,
                created_by=item.id,
            )
        others: list[Grouped] = [*plan.new_groups, *plan.new_networks, *plan.new_sets]
        for resource in others:
            records.resources.insert(
                resource, scope=resource.region, name=resource.name, created_by=item.id
            )
        for mapping in plan.mappings:
            name = mapping_name(mapping)
            records.resources.delete(NetworkMapping, "", name)
            records.resources.insert(mapping, scope="", name=name, created_by=item.id)
        records.items.insert(
            ItemRecord(item=item, target_vm=plan.target_vm, cache_region=plan.cache_region)
        )

    # --- steps of protecting

    def _make_resources(self, job: RunningJob, plan: ProtectionPlan) -> None:
        accounts = [
            (plan.cache_region, plan.cache_account),
            *((plan.target_region, name) for name in _target_accounts(plan)),
        ]
        networks = tuple(plan.target_networks.values())
        self.make_resources(job, accounts, plan.target_region, networks)

    # --- steps of protecting, in either direction

    def make_resources(
        self,
        job: RunningJob,
        accounts: list[tuple[str, str]],
        region: str,
        networks: tuple[str, ...],
    ) -> None:
        """The accounts (region, name) and the region's networks are there, on every host."""
        job.orders("storage", lambda: self._account_orders(accounts), dict[str, object])
        job.orders("networks", lambda: self._network_orders(region, networks), dict[str, object])
        job.step("resources", lambda _: self._set_ready(accounts), dict[str, object])

    def _account_orders(self, accounts: list[tuple[str, str]]) -> list[Order]:
        return [
            order
            for region, name in accounts
            for order in self._resources.account_orders(region, name, Verb.ACCOUNT_CREATE)
        ]

    def _network_orders(self, region: str, names: tuple[str, ...]) -> list[Order]:
        with self._bench.vault.read() as records:
            inventory = load_inventory(records, [region])
            agents = self._bench.answering(records, Role.AGENT, region)
            networks = [inventory.network(region, name) for name in dict.fromkeys(names)]
            return [
                network_order(self._bench, records, network, agent)
                for network in networks
                if network is not None
                for agent in agents
            ]

    def _set_ready(self, accounts: list[tuple[str, str]]) -> Json:
        with self._bench.vault.write() as records:
            for region, name in accounts:
                records.resources.set_state(StorageAccount, region, name, ResourceState.READY)
        return {}

    def processing_order(self, item_id: str) -> Order:
        """Return what has the item processed in its target region, by its worker or a new one."""
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if not record.worker_id:
                workers = self._bench.answering(records, Role.WORKER, record.item.target_region)
                if not workers:
                    raise Unavailable(f"no worker of region {record.item.target_region} answers")
                load = [other.worker_id for other in records.items.listed()]
                chosen = min(workers, key=lambda worker: (load.count(worker.id), worker.name))
                record = records.items.update(replace(record, worker_id=chosen.id))
            worker = records.nodes.get(record.worker_id)
            spec = processing_spec(records, record)
        return Order(node=worker, verb=Verb.PROCESSING_START, arguments=to_plain(spec))

    def replication_order(self, item_id: str, *, is_based: bool = False) -> Order:
        """Return what has the item's source replicate. is_based: as in ReplicationSpec."""
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            item = record.item
            vm = records.resources.get(VirtualMachine, item.source_region, item.source_vm).value
            spec = replace(replication_spec(records, record), is_based=is_based)
            agent = self._bench.agent_of(records, vm)
        return Order(node=agent, verb=Verb.REPLICATION_START, arguments=to_plain(spec))

    def _started(self, item_id: str) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if record.item.state is ItemState.PROTECTING:
                item = replace(record.item, state=ItemState.INITIAL_REPLICATION)
                records.items.update(replace(record, item=item, is_replicating=True))
        return {}

    # --- undoing

    def _undo(self, job: RunningJob, arguments: ProtectArguments) -> None:
        plan, item_id = arguments.plan, arguments.item_id
        left = job.step("end", lambda _: self._set_ending(item_id), dict[str, object], is_undo=True)
        if left["is_disabled"]:
            return  # the job that disables it does all of this, or another verb has the item
        used = used_resources(
            _new_item(plan, item_id), plan.target_vm, cache_region=plan.cache_region
        )
        self._ending.end_item(job, item_id, used, delete_replica=True)

    def _set_ending(self, item_id: str) -> Json:
        """Nobody is told any more to go on with the item."""
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            jobs = [job.verb for job in records.jobs.open_of_item(item_id)]
            if record is None or "item.disable" in jobs or _is_in_use(record):
                return {"is_disabled": True}
            if record.item.state is not ItemState.DISABLING:
                item = replace(record.item, state=ItemState.DISABLING, problem="")
                records.items.update(replace(record, item=item, is_replicating=False))
        return {"is_disabled": False}


def _is_in_use(record: ItemRecord) -> bool:
    """Say whether the item, protected by now, has failed over since or has a test VM: those read
    its replica."""
    item = record.item
    return item.rehearsal is not None or item.state not in (
        *FOLLOWING,
        ItemState.PROTECTING,
        ItemState.DISABLING,
        ItemState.FAILED,
    )


def _protected(record: ItemRecord) -> Protected:
    return Protected(item=record.item, target_vm=record.target_vm, cache_region=record.cache_region)


def _target_accounts(plan: ProtectionPlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mapping.target_account for mapping in plan.disks))


def _new_item(plan: ProtectionPlan, item_id: str) -> ReplicatedItem:
    return ReplicatedItem(
        id=item_id,
        name=plan.source_vm,
        vault=plan.vault,
        policy=plan.policy,
        state=ItemState.PROTECTING,
        epoch=1,
        source_region=plan.source_region,
        source_vm=plan.source_vm,
        target_region=plan.target_region,
        target_resource_group=plan.target_vm.resource_group,
        target_network=plan.target_networks,
        target_availability_set=plan.target_vm.availability_set,
        target_vm=plan.target_vm.name,
        cache_account=plan.cache_account,
        disks=plan.disks,
        excluded_disks=plan.excluded_disks,
    )
