"""Reprotecting a failed-over VM into the region it came from; and taking a commit back.

Owns: their steps, and that a reprotection that fails leaves the item committed, as it was. Must not
know: what source and target become, that is failover.reprotect's; how replication is started, that
is protect_verbs'.

Order: the former source's disks seed the new replica inside their own region, then the worker takes
over, then the VM's host sends what differs. The former source's VM goes last, once the new replica
has a recovery point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, LeewardError, NotFound, Unavailable
from leeward.failover.reprotect import ReprotectPlan, plan_reprotect
from leeward.model.recovery import ItemState, Job, check_is, check_transition
from leeward.model.resources import PowerState, StorageAccount, VirtualMachine
from leeward.protocol.fabric import SeedResult, SeedSpec
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench, accounts_by_name, check_staying, storage_root
from leeward.workflows.dispatch import Order
from leeward.workflows.ending import Ending
from leeward.workflows.engine import Json
from leeward.workflows.item_specs import item_key_id
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import find_node, item_key, item_target, source_agent
from leeward.workflows.protect_verbs import ProtectVerbs
from leeward.workflows.resource_verbs import ResourceVerbs
from leeward.workflows.specs import complete_account, replica_disks, vm_id
from leeward.workflows.waiting import wait_initial

HYDRATE_SECONDS = 86400.0
SEED_SECONDS = 86400.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReprotectArguments:
    """The item is turned round already. before: as it was. origin, origin_creator: the VM resource
    it came from, no resource of its own any more."""

    item_id: str
    before: ItemRecord
    origin: VirtualMachine
    origin_creator: str
    plan: ReprotectPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoCommitArguments:
    item_id: str


class ReprotectVerbs:
    """Submits and runs them."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        protection: ProtectVerbs,
        resources: ResourceVerbs,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._protection = protection
        self._ending = Ending(bench, resources)

    # --- submitting

    def reprotect(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that replicates the failed-over VM back to where it came from.

        Raises: NotFound, Conflict; Unavailable when a node that is needed does not answer; then
        nothing has changed.
        """

        def prepare(records: Records) -> ReprotectArguments:
            before = records.items.get(vault, name)
            item = before.item
            check_transition(item, ItemState.REPROTECTING)
            origin = records.resources.get(VirtualMachine, item.source_region, item.source_vm)
            plan = plan_reprotect(
                item,
                origin=origin.value,
                current=before.target_vm,
                worker_id=before.worker_id,
                cache_region=before.cache_region,
            )
            self._check_nodes(records, plan)
            self._reserve(records, before, origin.value, plan)
            return ReprotectArguments(
                item_id=before.item.id,
                before=before,
                origin=origin.value,
                origin_creator=origin.created_by,
                plan=plan,
            )

        return self._jobs().submit("item.reprotect", item_target(name), prepare, key)

    def undo_commit(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that makes a committed failover one whose point can be changed again.

        Raises: NotFound; Conflict when it is not committed, or has no point left to change to.
        """

        def prepare(records: Records) -> UndoCommitArguments:
            item = records.items.get(vault, name).item
            check_is(item, ItemState.COMMITTED)
            if not records.points.listed(item.id, limit=1):
                raise Conflict(
                    f"{name} has no recovery points left to change to",
                    field="recovery_point",
                    hint=f"`leeward reprotect {name}` goes on from here",
                )
            return UndoCommitArguments(item_id=item.id)

        return self._jobs().submit("item.undo-commit", item_target(name), prepare, key)

    # --- running

    def run_reprotect(self, job: RunningJob) -> Json:
        """The VM is protected in the other direction, or the item is committed as before."""
        arguments = job.arguments(ReprotectArguments)
        item_id, plan = arguments.plan.item.id, arguments.plan
        try:
            job.step(
                "disks local", lambda told: self._wait_local(job, told, item_id), dict[str, object]
            )
            accounts = [(plan.cache_region, plan.item.cache_account)]
            accounts += [(plan.item.target_region, name) for name in _target_accounts(plan)]
            networks = tuple(nic.network for nic in plan.target_vm.nics)
            self._protection.make_resources(job, accounts, plan.item.target_region, networks)
            seeded = job.step("seed", lambda told: self._seed(job, told, arguments), SeedResult)
            job.order(
                "start processing",
                lambda: self._protection.processing_order(item_id),
                dict[str, object],
            )
            is_based = seeded.is_seeded and _is_drained(arguments.before)
            job.order(
                "start replication",
                lambda: self._protection.replication_order(item_id, is_based=is_based),
                dict[str, object],
            )
            initial = job.step(
                "initial replication",
                lambda told: wait_initial(job, told, item_id),
                dict[str, object],
            )
        except LeewardError as error:
            self._undo(job, arguments, error)
            raise
        job.go_through()
        job.undo_orders("remove former source", lambda: self._retire_orders(arguments))
        job.record_step("record", lambda: self._reprotected(item_id), dict[str, object])
        return {"item": plan.item.name, "is_seeded": seeded.is_seeded, **initial}

    def run_undo_commit(self, job: RunningJob) -> Json:
        """The item has failed over, as before its commit."""
        arguments = job.arguments(UndoCommitArguments)
        return job.step("undo", lambda _: self._uncommitted(arguments.item_id), dict[str, object])

    # --- submitting: checks and reservation

    def _check_nodes(self, records: Records, plan: ReprotectPlan) -> None:
        """Return if everybody needed answers now: better refused than half-made."""
        item = plan.item
        vm = records.resources.get(VirtualMachine, item.source_region, item.source_vm).value
        agent = self._bench.agent_of(records, vm)
        if not self._bench.is_heard(agent):
            raise Unavailable(f"{agent.label} does not answer")
        status = self._bench.live.vm(agent.id, vm_id(vm.name))
        if status is not None and status.power is PowerState.STOPPED:
            raise Conflict(
                f"{vm.name} is stopped",
                field="state",
                hint=f"start it first: `leeward vm start {vm.region}/{vm.name}`",
            )
        self._bench.check_answering(records, item.target_region)
        for name in _target_accounts(plan):
            check_staying(records, StorageAccount, item.target_region, name)

    def _reserve(
        self, records: Records, before: ItemRecord, origin: VirtualMachine, plan: ReprotectPlan
    ) -> None:
        """The item is turned round in the vault, before anything is made real."""
        item, region = plan.item, plan.cache_region
        if records.resources.find(StorageAccount, region, item.cache_account) is None:
            group = before.item.target_resource_group
            account = StorageAccount(region=region, name=item.cache_account, resource_group=group)
            records.resources.insert(
                complete_account(account, storage_root(records, region)),
                scope=region,
                name=item.cache_account,
                state=ResourceState.CREATING,
                created_by=item.id,
            )
        former = before.item.former
        worker = find_node(records, former.worker_id) if former else None
        is_known = worker is not None and self._bench.is_heard(worker)
        records.resources.delete(VirtualMachine, origin.region, origin.name)
        records.items.update(
            replace(
                before,
                item=item,
                target_vm=plan.target_vm,
                cache_region=region,
                worker_id=worker.id if worker is not None and is_known else "",
                is_replicating=False,
                is_hydrated=False,
            )
        )

    # --- steps

    def _wait_local(self, job: RunningJob, progress: StepProgress, item_id: str) -> Json:
        """Return once the VM reads its recovery point no more. Raises: Unavailable, Conflict."""
        deadline = self._bench.clock.monotonic() + HYDRATE_SECONDS
        with self._bench.vault.read() as records:
            agent = _agent_of_source(records, item_id)
            vm = records.items.by_id(item_id).item.source_vm
        with self._bench.signals.listen(item_key(item_id)) as listener:
            while True:
                job.check_cancelled()
                said = self._bench.live.hydration(agent.id, vm_id(vm))
                if said is not None and said.done:
                    return {}
                if self._bench.clock.monotonic() > deadline:
                    raise Unavailable(f"the disks of {vm} did not become local within a day")
                if said is not None:
                    progress.report(
                        bytes_done=said.bytes_done,
                        bytes_total=said.bytes_total,
                        detail=said.problem,
                    )
                listener.wait(_LOOK_SECONDS)

    def _seed(
        self, job: RunningJob, progress: StepProgress, arguments: ReprotectArguments
    ) -> SeedResult:
        """Return what became of seeding. Without a seed more has to travel, no more than that."""
        with self._bench.vault.read() as records:
            agent = self._bench.find_agent(records, arguments.origin)
            if agent is None or not self._bench.is_heard(agent):
                said = SeedResult(is_seeded=False, problem="its former host does not answer")
                progress.report(detail=said.problem)
                return said
            spec = _seed_spec(records, arguments.plan)
        order = Order(node=agent, verb=Verb.REPLICA_SEED, arguments=to_plain(spec))
        ids = self._bench.dispatch.send([order], job_id=job.record.id, step="seed")
        try:
            answer = self._bench.dispatch.wait_answer(
                ids[0], agent, timeout_seconds=SEED_SECONDS, check=job.check_cancelled
            )
            said = from_plain(answer, SeedResult)
        except LeewardError as error:
            job.check_cancelled()
            said = SeedResult(is_seeded=False, problem=str(error))
        progress.report(
            bytes_done=said.bytes_stored, bytes_total=said.bytes_stored, detail=said.problem
        )
        return said

    def _retire_orders(self, arguments: ReprotectArguments) -> list[Order]:
        """Return what removes the former source's VM: it has become a recovery point."""
        with self._bench.vault.read() as records:
            agent = self._bench.find_agent(records, arguments.origin)
        if agent is None:
            return []
        excluded = list(arguments.before.item.excluded_disks)  # nowhere else is their content
        about: Json = {"vm_id": vm_id(arguments.origin.name), "keep_disks": excluded}
        return [Order(node=agent, verb=Verb.RECOVERY_DISCARD, arguments=about)]

    # --- outcomes

    def _reprotected(self, item_id: str) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            item = record.item
            if item.state is ItemState.REPROTECTING:
                item = replace(item, state=ItemState.PROTECTED, problem="")
                records.items.update(replace(record, item=item, is_replicating=True))
                self._bench.record_event(
                    records,
                    item_target(item.name),
                    "item_reprotected",
                    f"{item.source_vm} in {item.source_region} is protected in "
                    f"{item.target_region}, where it can fail back to",
                )
        self._bench.signals.notify(item_key(item_id))
        return {}

    def _uncommitted(self, item_id: str) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if record.item.state is ItemState.COMMITTED:
                item = replace(record.item, state=ItemState.FAILED_OVER)
                records.items.update(replace(record, item=item))
        self._bench.signals.notify(item_key(item_id))
        return {}

    def _undo(self, job: RunningJob, arguments: ReprotectArguments, error: LeewardError) -> None:
        """Nobody replicates it, and the item is committed as before, under an epoch never used."""
        item_id = arguments.plan.item.id
        job.undo_orders("stop replication", lambda: self._stop_orders(item_id))
        job.undo_orders("stop processing", lambda: self._stop_processing_orders(item_id))
        job.step(
            "record failure",
            lambda _: self._failed(arguments, error),
            dict[str, object],
            is_undo=True,
        )
        plan = arguments.plan
        self._ending.remove_account(job, plan.cache_region, plan.item.cache_account)

    def _stop_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            agent = _agent_of_source(records, item_id)
        return [Order(node=agent, verb=Verb.REPLICATION_STOP, arguments={"item_id": item_id})]

    def _stop_processing_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            worker = find_node(records, records.items.by_id(item_id).worker_id)
        if worker is None:
            return []
        about: Json = {"item_id": item_id, "delete": False}
        return [Order(node=worker, verb=Verb.PROCESSING_STOP, arguments=about)]

    def _failed(self, arguments: ReprotectArguments, error: LeewardError) -> Json:
        before, origin = arguments.before, arguments.origin
        with self._bench.vault.write() as records:
            record = records.items.by_id(before.item.id)
            if record.item.state is not ItemState.REPROTECTING:
                return {}
            if records.resources.find(VirtualMachine, origin.region, origin.name) is None:
                records.resources.insert(
                    origin,
                    scope=origin.region,
                    name=origin.name,
                    created_by=arguments.origin_creator,
                )
            problem = f"reprotecting failed: {error}; reprotect again"
            item = replace(before.item, epoch=record.item.epoch, problem=problem)
            records.items.update(replace(before, item=item, version=record.version))
        self._bench.signals.notify(item_key(before.item.id))
        return {}


def _is_drained(record: ItemRecord) -> bool:
    """Say whether the VM was booted from just what its source's disks hold."""
    item = record.item
    return bool(item.drained_point) and item.drained_point == item.recovery_point


def _agent_of_source(records: Records, item_id: str) -> NodeRecord:
    record = records.items.by_id(item_id)
    agent = source_agent(records, record)
    if agent is None:
        raise NotFound(f"the host of {record.item.source_vm} is not enrolled any more")
    return agent


def _seed_spec(records: Records, plan: ReprotectPlan) -> SeedSpec:
    accounts = accounts_by_name(records, plan.item.target_region)
    replicas = replica_disks(plan.item, plan.target_vm, accounts)
    return SeedSpec(
        item_id=plan.item.id,
        epoch=plan.seed_epoch,
        vm_id=vm_id(plan.target_vm.name),
        catalog_url=replicas[0].target_url,
        replicas=replicas,
        key_id=item_key_id(records, plan.item.vault, plan.item.policy),
    )


def _target_accounts(plan: ReprotectPlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mapping.target_account for mapping in plan.item.disks))
