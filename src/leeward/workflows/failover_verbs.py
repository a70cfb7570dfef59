"""Failover, change of recovery point, commit.

Owns: their steps, and that a failover that fails can be tried again. Must not know: which point,
that is failover.plan's. RTO counts here: nothing waits that need not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, Fenced, LeewardError, NotFound, Unavailable
from leeward.failover.disks import with_all_disks, with_disks_of_point
from leeward.failover.plan import FailoverPlan, plan_change, plan_failover
from leeward.failover.select import LATEST, LATEST_PROCESSED
from leeward.model.recovery import ItemState, Job, RecoveryPoint, check_is, check_transition
from leeward.model.resources import VirtualMachine
from leeward.protocol.fabric import BootSpec, Discarded, VmStatus
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import (
    Bench,
    accounts_by_name,
    networks_by_name,
)
from leeward.workflows.dispatch import Order
from leeward.workflows.drill_records import cut_drills_short, drill_memory, wait_drills
from leeward.workflows.engine import Json
from leeward.workflows.host_networks import host_network
from leeward.workflows.item_specs import processing_spec
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_key, item_target, source_agent
from leeward.workflows.specs import replica_disks, vm_id, vm_spec

SEAL_SECONDS = 60.0
BOOT_SECONDS = 120.0
_ABOUT_VM = (Verb.RECOVERY_BOOT, Verb.RECOVERY_DISCARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverArguments:
    """The item is failing_over under the plan's epoch already. is_host_in_doubt: an earlier try, of
    the doubted job where that is known, may have left the VM on its host. drills: those cut short
    on that host."""

    item_id: str
    plan: FailoverPlan
    is_new_worker: bool
    is_host_in_doubt: bool = False
    doubted_job: str = ""
    drills: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeArguments:
    """The item is failing_over again, within its epoch."""

    item_id: str
    point: RecoveryPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitArguments:
    item_id: str


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Where the VM may be, and the job that it was made for if so; "": not known."""

    host: NodeRecord
    job_id: str


class FailoverVerbs:
    """Submits and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    # --- submitting

    def failover(
        self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that fails the item over to `wanted`.

        From here on there is no way back to the source: it is fenced, and what it still sends is
        refused. Raises: NotFound, Conflict; Unavailable when the target region cannot take it, and
        then nothing has changed.
        """

        def prepare(records: Records) -> FailoverArguments:
            record = records.items.get(vault, name)
            if record.item.state is ItemState.FAILING_OVER and not records.jobs.open_of_item(
                record.item.id
            ):  # the job was lost: nothing but another one leads out
                record = replace(record, item=replace(record.item, state=ItemState.DEGRADED))
            # the whole list can be long, and failing over to its newest needs only that
            damaged = self._bench.live.quarantined(record.worker_id, record.item.id)
            limit = 1 if wanted in (LATEST, LATEST_PROCESSED) and not damaged else None
            points = _whole(records.points.listed(record.item.id, limit=limit), damaged, wanted)
            return self.reserve(records, record, plan_failover(record.item, points, wanted))

        return self._jobs().submit("item.failover", item_target(name), prepare, key)

    def reserve(
        self, records: Records, record: ItemRecord, plan: FailoverPlan
    ) -> FailoverArguments:
        """Return what the job is told; the item is failing over, to a host and by a worker that
        answer. Raises: Unavailable."""
        worker = self._worker(records, record)
        doubted = self._doubted_host(records, record)
        host = doubted.host if doubted else self._host(records, record)
        item = replace(record.item, state=ItemState.FAILING_OVER, problem="", next_cache_account="")
        if not plan.is_planned:  # else the source goes on under its epoch, up to its last write
            item = replace(item, epoch=plan.epoch)
        records.items.update(
            replace(
                record,
                item=item,
                target_vm=replace(record.target_vm, host=host.name),
                worker_id=worker.id,
                is_replicating=False,
                is_hydrated=False,
            )
        )
        return FailoverArguments(
            item_id=item.id,
            plan=plan,
            is_new_worker=worker.id != record.worker_id,
            is_host_in_doubt=doubted is not None,
            doubted_job=doubted.job_id if doubted else "",
            drills=cut_drills_short(records, region=host.region, host=host.name),
        )

    def change(self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that starts the failed-over VM anew from another point; what it wrote
        since is lost. Raises: NotFound, Conflict, Unavailable."""

        def prepare(records: Records) -> ChangeArguments:
            record = records.items.get(vault, name)
            damaged = self._bench.live.quarantined(record.worker_id, record.item.id)
            points = _whole(records.points.listed(record.item.id), damaged, wanted)
            point = plan_change(record.item, points, wanted)
            agent = self._bench.agent_of(records, record.target_vm)
            if not self._bench.is_heard(agent):
                raise Unavailable(
                    f"{agent.label} does not answer, and {record.item.target_vm} may run there: "
                    "started elsewhere it could run twice",
                    hint="make that host answer; if it is gone for good, `leeward region "
                    f"forget-node {agent.region} {agent.name} --with-vms`, then `leeward failover "
                    f"{name}` starts it on another one",
                )
            item = replace(record.item, state=ItemState.FAILING_OVER, problem="")
            records.items.update(replace(record, item=item, is_hydrated=False))
            return ChangeArguments(item_id=item.id, point=point)

        target = item_target(name)
        return self._jobs().submit("item.change-recovery-point", target, prepare, key)

    def commit(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that makes the failover final. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> CommitArguments:
            item = records.items.get(vault, name).item
            check_is(item, ItemState.FAILED_OVER)
            return CommitArguments(item_id=item.id)

        return self._jobs().submit("item.commit", item_target(name), prepare, key)

    # --- running

    def run_failover(self, job: RunningJob) -> Json:
        """The VM runs in the target region, or the failover can be tried again."""
        return self.carry_out(job, job.arguments(FailoverArguments))

    def carry_out(self, job: RunningJob, arguments: FailoverArguments) -> Json:
        """As `run_failover`, for a job that has more to do before."""
        item_id, plan, has_booted = arguments.item_id, arguments.plan, False
        try:
            job.step("fence source", lambda _: self._fence(job, item_id), dict[str, object])
            sealed = self._sealed(job, arguments)
            point_id = plan.point_id or sealed.id
            if arguments.drills:
                job.step(
                    "end drills",
                    lambda _: wait_drills(self._bench, arguments.drills),
                    dict[str, object],
                )
            if arguments.is_host_in_doubt:
                doubted = arguments.doubted_job
                job.order("discard", lambda: self._discard_order(item_id, doubted), Discarded)
            has_booted = True
            status = self._boot(job, item_id, point_id)
            return job.record_step(
                "record",
                lambda: self._failed_over(item_id, point_id, status, sealed),
                dict[str, object],
            )
        except LeewardError as error:
            if has_booted:  # else there is nothing of it, and what there is was there before
                made_for = job.record.id
                job.undo_orders(
                    "discard what booted", lambda: [self._discard_order(item_id, made_for)]
                )
            self._record_failure(job, item_id, error)
            raise

    def run_change(self, job: RunningJob) -> Json:
        """The VM runs from the other point, or the failover can be tried again."""
        arguments = job.arguments(ChangeArguments)
        item_id, point = arguments.item_id, arguments.point
        try:
            job.order("discard", lambda: self._discard_order(item_id), Discarded)
            status = self._boot(job, item_id, point.id)
            return job.record_step(
                "record",
                lambda: self._failed_over(item_id, point.id, status, point),
                dict[str, object],
            )
        except LeewardError as error:
            job.undo_orders("discard what booted", lambda: [self._discard_order(item_id)])
            self._record_failure(job, item_id, error)
            raise

    def run_commit(self, job: RunningJob) -> Json:
        """The item is committed."""
        arguments = job.arguments(CommitArguments)
        return job.step("commit", lambda _: self._committed(arguments.item_id), dict[str, object])

    # --- choosing

    def _worker(self, records: Records, record: ItemRecord) -> NodeRecord:
        """Return the item's worker, or another one of the region if that does not answer."""
        workers = self._bench.answering(records, Role.WORKER, record.item.target_region)
        if not workers:
            raise Unavailable(f"no worker of region {record.item.target_region} answers")
        return next((worker for worker in workers if worker.id == record.worker_id), workers[0])

    def _host(self, records: Records, record: ItemRecord) -> NodeRecord:
        """Return the agent that gets the VM: one that has it already, though this vault knows
        nothing of it (it was made anew, or that host had been forgotten), or else any."""
        name = vm_id(record.target_vm.name)
        for agent in self._bench.answering(records, Role.AGENT, record.target_vm.region):
            told = records.commands.newest_about(agent.id, _ABOUT_VM, name)
            if told is None and self._bench.live.vm(agent.id, name) is not None:
                return agent
        freed = drill_memory(records, record.target_vm.region)
        return self._bench.place(records, record.target_vm, freed=freed)

    def _doubted_host(self, records: Records, record: ItemRecord) -> _Doubt | None:
        """Return the agent that was told to boot the VM by an earlier try and has not said since
        that nothing of it is left; None if there is none.

        Raises: Unavailable while it is silent: the VM may run there, and elsewhere it would be the
        second one.
        """
        agent = self._bench.find_agent(records, record.target_vm)
        if agent is None:
            return None
        last = records.commands.newest_about(agent.id, _ABOUT_VM, vm_id(record.target_vm.name))
        if last is None:
            return None
        is_discard, answer = last.command.verb is Verb.RECOVERY_DISCARD, last.answer
        if is_discard and answer and answer.ok and not answer.result.get("is_kept"):
            return None
        if not self._bench.is_heard(agent):
            raise Unavailable(
                f"{agent.label} was told to start {record.target_vm.name} and is silent since: "
                "started elsewhere it could run twice",
                hint="make that host answer; if it is gone for good, "
                f"`leeward region forget-node {agent.region} {agent.name}`",
            )
        made_for = last.command.arguments.get("made_for", "") if is_discard else last.job_id
        return _Doubt(host=agent, job_id=str(made_for))

    # --- steps

    def _sealed(self, job: RunningJob, arguments: FailoverArguments) -> RecoveryPoint:
        """Return the newest point, the item sealed for the plan's epoch by its worker.

        A worker that does not know the item takes it over first: the one before is silent, or an
        earlier try got no further than choosing this one.
        """
        item_id, plan = arguments.item_id, arguments.plan
        if arguments.is_new_worker:
            self._take_over(job, item_id)
        try:
            return self._seal(job, "seal", item_id, plan)
        except NotFound:
            if arguments.is_new_worker:
                raise
        self._take_over(job, item_id)
        return self._seal(job, "seal again", item_id, plan)

    def _seal(self, job: RunningJob, name: str, item_id: str, plan: FailoverPlan) -> RecoveryPoint:
        return job.order(
            name,
            lambda: self._seal_order(item_id, plan),
            RecoveryPoint,
            timeout_seconds=SEAL_SECONDS + plan.drain_seconds,
        )

    def _take_over(self, job: RunningJob, item_id: str) -> None:
        # Fenced: it has processed the item before, up to a newer epoch, and can seal it.
        with suppress(Fenced):
            job.order("take over", lambda: self._take_over_order(item_id), dict[str, object])

    def _fence(self, job: RunningJob, item_id: str) -> Json:
        """The source's agent is told to stop the VM; nobody waits for it: it may be gone. Nor is it
        told any more, when it comes back, to start it: by a planned failover that failed."""
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            agent = source_agent(records, record)
            name = vm_id(record.item.source_vm)
            left = [
                command.id
                for command in (records.commands.open_for(agent.id) if agent else ())
                if command.verb is Verb.VM_START and command.arguments.get("vm_id") == name
            ]
        if agent is not None:
            self._bench.dispatch.withdraw(left)
            arguments: Json = {
                "item_id": item_id,
                "epoch": record.item.epoch,
                "vm_id": name,
            }
            order = Order(node=agent, verb=Verb.REPLICATION_FENCE, arguments=arguments)
            self._bench.dispatch.send([order], job_id=job.record.id, step="fence")
        return {}

    def _take_over_order(self, item_id: str) -> Order:
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            worker = records.nodes.get(record.worker_id)
            spec = processing_spec(records, record)
            newest = records.points.newest(item_id)
        # Under the epoch of the cuts that may still wait in the cache, which earlier tries to fail
        # over have not changed; sealing under the new one comes next.
        spec = replace(spec, epoch=newest.epoch if newest else spec.epoch - 1)
        return Order(node=worker, verb=Verb.PROCESSING_START, arguments=to_plain(spec))

    def _seal_order(self, item_id: str, plan: FailoverPlan) -> Order:
        with self._bench.vault.read() as records:
            worker = records.nodes.get(records.items.by_id(item_id).worker_id)
        arguments: Json = {
            "item_id": item_id,
            "epoch": plan.epoch,
            "drain_seconds": plan.drain_seconds,
        }
        return Order(node=worker, verb=Verb.PROCESSING_SEAL, arguments=arguments)

    def _boot(self, job: RunningJob, item_id: str, point_id: str) -> VmStatus:
        return job.order(
            "boot",
            lambda: self._boot_order(item_id, point_id, job.record.id),
            VmStatus,
            timeout_seconds=BOOT_SECONDS,
        )

    def _boot_order(self, item_id: str, point_id: str, job_id: str) -> Order:
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            item, vm = with_all_disks(record.item, record.target_vm)
            agent = self._bench.agent_of(records, vm)
            networks = networks_by_name(records, item.target_region)
            accounts = accounts_by_name(records, item.target_region)
            specs = tuple(
                host_network(self._bench, records, networks[name], agent)
                for name in dict.fromkeys(nic.network for nic in vm.nics)
            )
        installation = self._bench.installation
        replicas = replica_disks(item, vm, accounts)
        spec = BootSpec(
            item_id=item.id,
            epoch=item.epoch,
            point_id=point_id,
            catalog_url=replicas[0].target_url,
            replicas=replicas,
            vm=replace(vm_spec(installation, vm, networks, accounts), made_for=job_id),
            networks=specs,
            is_varied=item.has_varied_disks,
        )
        return Order(node=agent, verb=Verb.RECOVERY_BOOT, arguments=to_plain(spec))

    def _discard_order(self, item_id: str, made_for: str = "") -> Order:
        """made_for: only what that job has made is to go, "": whatever is there."""
        with self._bench.vault.read() as records:
            vm = records.items.by_id(item_id).target_vm
            agent = self._bench.agent_of(records, vm)
        arguments: Json = {"vm_id": vm_id(vm.name), "made_for": made_for}
        return Order(node=agent, verb=Verb.RECOVERY_DISCARD, arguments=arguments)

    # --- outcomes

    def _failed_over(
        self, item_id: str, point_id: str, status: VmStatus, point: RecoveryPoint
    ) -> Json:
        """The item has failed over and its VM is a resource like any other.

        point: known to exist; listed from now on if its worker's post has not come yet.
        """
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if status.disk_sizes:
                item, vm = with_disks_of_point(record.item, record.target_vm, status.disk_sizes)
                record = replace(record, item=item, target_vm=vm)
            vm = record.target_vm
            records.points.add(item_id, [point])
            stored = records.resources.find(VirtualMachine, vm.region, vm.name)
            if stored is None:
                records.resources.insert(vm, scope=vm.region, name=vm.name, created_by=item_id)
            elif stored.value.disks != vm.disks:  # another point has others
                records.resources.update(stored, value=replace(stored.value, disks=vm.disks))
            self._put_item(records, record, ItemState.FAILED_OVER, point_id=point_id)
            chosen = records.points.find(item_id, point_id) or point
            self._bench.record_event(
                records,
                item_target(record.item.name),
                "item_failed_over",
                f"{record.item.name} runs in {vm.region} from {point_id}",
            )
        return {
            "region": vm.region,
            "vm": vm.name,
            "host": vm.host,
            "recovery_point": point_id,
            "recovery_point_time_ns": chosen.time_ns,
            "status": to_plain(status),
        }

    def _record_failure(self, job: RunningJob, item_id: str, error: LeewardError) -> None:
        """The item says what to do."""
        job.step(
            "record failure",
            lambda _: self._failed(item_id, error),
            dict[str, object],
            is_undo=True,
        )

    def _failed(self, item_id: str, error: LeewardError) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            vm = record.target_vm
            stored = records.resources.find(VirtualMachine, vm.region, vm.name)
            if stored is not None and stored.created_by == item_id:
                records.resources.delete(VirtualMachine, vm.region, vm.name)
            problem = f"the failover failed: {error}; fail over again"
            self._put_item(records, record, ItemState.DEGRADED, problem=problem)
        return {}

    def _committed(self, item_id: str) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if record.item.state is not ItemState.COMMITTED:
                self._put_item(
                    records, record, ItemState.COMMITTED, point_id=record.item.recovery_point
                )
        return {}

    def _put_item(
        self,
        records: Records,
        record: ItemRecord,
        state: ItemState,
        *,
        point_id: str = "",
        problem: str = "",
    ) -> None:
        if record.item.state is not state:
            check_transition(record.item, state)
        item = replace(record.item, state=state, recovery_point=point_id, problem=problem)
        records.items.update(replace(record, item=item))
        self._bench.signals.notify(item_key(record.item.id))


def _whole(
    points: list[RecoveryPoint], damaged: frozenset[str], wanted: str
) -> list[RecoveryPoint]:
    """Return the points that are not damaged. Raises: Conflict when a damaged one is wanted."""
    if wanted in damaged:
        raise Conflict(
            f"recovery point {wanted} is quarantined: what is stored of it is damaged",
            field="recovery_point",
            hint="choose another one",
        )
    return [point for point in points if point.id not in damaged]
