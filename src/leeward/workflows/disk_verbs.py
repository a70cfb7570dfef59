"""Disks added to, removed from and made larger in a VM, protected or not.

Owns: the order of steps, so that a recovery point has just the disks that the VM had: the target
can take a disk before the source sends it, and the source sends it no more before it is gone. Must
not know: how a host or the stream does its part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.core.ids import check_name
from leeward.core.units import SECTOR
from leeward.model.recovery import DiskMapping, FormerDisk, Job
from leeward.model.resources import Disk, StorageAccount, VirtualMachine
from leeward.protection.health import FOLLOWING
from leeward.protocol.fabric import DiskAddition, DiskGrowth, DiskOfVm, VmStatus
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState, Stored, as_requested
from leeward.workflows.bench import Bench, accounts_by_name, check_staying
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.inventory import load_inventory
from leeward.workflows.item_orders import go_on_processing, go_on_replicating
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.machine_plan import check_disk
from leeward.workflows.machine_verbs import VM_CREATE_SECONDS, machine_target
from leeward.workflows.monitor import source_agent
from leeward.workflows.specs import account_spec, disk_spec, vm_id

DISK_ADD = "vm.disk-add"
DISK_REMOVE = "vm.disk-remove"
DISK_GROW = "vm.disk-grow"
_CHANGES = (DISK_ADD, DISK_REMOVE, DISK_GROW)
UNPLUG_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddArguments:
    region: str
    name: str
    disk: Disk
    target_account: str = ""
    """Of the disk's replica; "" where the VM is not protected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskArguments:
    """size_bytes: what the disk is to have; 0 where it is to go."""

    region: str
    name: str
    disk: str
    size_bytes: int = 0


class DiskVerbs:
    """Submits and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    # --- submitting

    def add(self, region: str, name: str, disk: Disk, key: IdempotencyKey | None = None) -> Job:
        """Return the job that gives the VM one more disk; where it is protected, the disk is
        replicated, and in every recovery point once all of it is.

        Raises: InvalidRequest, NotFound, Conflict; then nothing has changed.
        """
        check_name(disk.name, field="disk")

        def prepare(records: Records) -> AddArguments:
            vm = _resting(records, region, name)
            check_disk(load_inventory(records, [region]), vm, disk)
            check_staying(records, StorageAccount, region, disk.storage_account)
            if any(known.name == disk.name for known in vm.disks):
                raise Conflict(f"{name} has a disk {disk.name} already", field="disk")
            record = _following(records, region, name)
            return AddArguments(
                region=region,
                name=name,
                disk=disk,
                target_account=_target_account(record, disk) if record else "",
            )

        return self._jobs().submit(DISK_ADD, machine_target(region, name), prepare, key)

    def remove(self, region: str, name: str, disk: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that takes the disk from the VM and deletes it; recovery points that have
        it keep it. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> DiskArguments:
            vm = _resting(records, region, name)
            if _disk(vm, disk) == vm.disks[0]:
                raise Conflict(f"{name} boots from disk {disk}", field="disk")
            record = _following(records, region, name)
            if record is not None and [m.disk for m in record.item.disks] == [disk]:
                raise Conflict(
                    f"{disk} is the only disk of {name} that is replicated",
                    field="disk",
                    hint=f"`leeward unprotect {record.item.name}` first",
                )
            return DiskArguments(region=region, name=name, disk=disk)

        return self._jobs().submit(DISK_REMOVE, machine_target(region, name), prepare, key)

    def grow(
        self,
        region: str,
        name: str,
        disk: str,
        size_bytes: int,
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Return the job that makes the disk so large, also its replica. Raises: NotFound,
        Conflict, InvalidRequest."""

        def prepare(records: Records) -> DiskArguments:
            known = _disk(_resting(records, region, name), disk)
            if size_bytes % SECTOR or size_bytes <= known.size_bytes:
                raise InvalidRequest(
                    f"disk {disk} has {known.size_bytes} bytes: {size_bytes} is no larger size",
                    field="size_bytes",
                    hint="a larger multiple of 512; a disk never becomes smaller",
                )
            _following(records, region, name)
            return DiskArguments(region=region, name=name, disk=disk, size_bytes=size_bytes)

        return self._jobs().submit(DISK_GROW, machine_target(region, name), prepare, key)

    # --- running

    def run_add(self, job: RunningJob) -> Json:
        """The VM has the disk, and it is being replicated; or there is nothing of it."""
        arguments = job.arguments(AddArguments)
        where = DiskArguments(
            region=arguments.region, name=arguments.name, disk=arguments.disk.name
        )
        try:
            job.order("storage", lambda: self._storage_order(arguments), dict[str, object])
            status = job.order(
                "plug",
                lambda: self._add_order(arguments),
                VmStatus,
                timeout_seconds=VM_CREATE_SECONDS,
            )
        except LeewardError:
            job.undo_orders("unplug", lambda: [self._order(where, Verb.VM_DISK_REMOVE)])
            raise
        sizes = status.disk_sizes
        job.record_step("record", lambda: self._added(arguments, sizes), dict[str, object])
        self._tell(job, where)
        return {"vm": arguments.name, "disk": arguments.disk.name}

    def run_remove(self, job: RunningJob) -> Json:
        """The VM has no such disk. A guest that does not let it go keeps it, and all is as it
        was."""
        arguments = job.arguments(DiskArguments)
        job.order(
            "unplug",
            lambda: self._order(arguments, Verb.VM_DISK_UNPLUG),
            dict[str, object],
            timeout_seconds=UNPLUG_SECONDS,
        )
        job.record_step("record", lambda: self._removed(arguments), dict[str, object])
        self._tell(job, arguments)
        job.undo_orders("delete", lambda: [self._order(arguments, Verb.VM_DISK_REMOVE)])
        return {"vm": arguments.name, "disk": arguments.disk}

    def run_grow(self, job: RunningJob) -> Json:
        """The disk is so large, on its host and in the vault, or nothing has changed."""
        arguments = job.arguments(DiskArguments)
        job.order("grow", lambda: self._grow_order(arguments), VmStatus)
        job.record_step("record", lambda: self._grown(arguments), dict[str, object])
        self._tell(job, arguments)
        return {"vm": arguments.name, "disk": arguments.disk, "size_bytes": arguments.size_bytes}

    # --- steps

    def _storage_order(self, arguments: AddArguments) -> Order:
        with self._bench.vault.read() as records:
            vm = _machine(records, arguments.region, arguments.name).value
            agent = self._bench.agent_of(records, vm)
            account = accounts_by_name(records, vm.region)[arguments.disk.storage_account]
        spec = to_plain(account_spec(account))
        return Order(node=agent, verb=Verb.ACCOUNT_CREATE, arguments=spec)

    def _add_order(self, arguments: AddArguments) -> Order:
        with self._bench.vault.read() as records:
            vm = _machine(records, arguments.region, arguments.name).value
            agent = self._bench.agent_of(records, vm)
            accounts = accounts_by_name(records, vm.region)
        spec = DiskAddition(vm_id=vm_id(vm.name), disk=disk_spec(arguments.disk, accounts))
        return Order(node=agent, verb=Verb.VM_DISK_ADD, arguments=to_plain(spec))

    def _order(self, arguments: DiskArguments, verb: Verb) -> Order:
        with self._bench.vault.read() as records:
            vm = records.resources.get(VirtualMachine, arguments.region, arguments.name).value
            agent = self._bench.agent_of(records, vm)
        spec = DiskOfVm(vm_id=vm_id(vm.name), disk=arguments.disk)
        return Order(node=agent, verb=verb, arguments=to_plain(spec))

    def _grow_order(self, arguments: DiskArguments) -> Order:
        with self._bench.vault.read() as records:
            vm = _machine(records, arguments.region, arguments.name).value
            agent = self._bench.agent_of(records, vm)
            record = _item_of(records, arguments.region, arguments.name)
        spec = DiskGrowth(
            vm_id=vm_id(vm.name),
            disk=arguments.disk,
            size_bytes=arguments.size_bytes,
            item_id=record.item.id if record else "",
        )
        return Order(node=agent, verb=Verb.VM_DISK_GROW, arguments=to_plain(spec))

    def _tell(self, job: RunningJob, arguments: DiskArguments) -> None:
        """Worker and source of the VM's item, if it has one, go on with the disks it has now. A
        node that does not answer is told when it comes back."""
        job.undo_orders("replica", lambda: self._processing_orders(arguments))
        job.undo_orders("replication", lambda: self._replication_orders(arguments))

    def _processing_orders(self, arguments: DiskArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            record = _item_of(records, arguments.region, arguments.name)
            if record is None or not record.worker_id or not record.is_replicating:
                return []
            return [go_on_processing(records, record)]

    def _replication_orders(self, arguments: DiskArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            record = _item_of(records, arguments.region, arguments.name)
            agent = source_agent(records, record) if record else None
            if record is None or agent is None or not record.is_replicating:
                return []
            return [go_on_replicating(records, record, agent)]

    # --- what the vault says then

    def _added(self, arguments: AddArguments, sizes: dict[str, int]) -> Json:
        disk = arguments.disk
        disk = replace(disk, size_bytes=sizes.get(disk.name, disk.size_bytes))
        with self._bench.vault.write() as records:
            stored = records.resources.get(VirtualMachine, arguments.region, arguments.name)
            if any(known.name == disk.name for known in stored.value.disks):
                return {}
            _store(records, stored, (*stored.value.disks, disk))
            record = _item_of(records, arguments.region, arguments.name)
            if record is not None and arguments.target_account:
                records.items.update(_with_disk(record, disk, arguments.target_account))
        return {}

    def _removed(self, arguments: DiskArguments) -> Json:
        with self._bench.vault.write() as records:
            stored = records.resources.get(VirtualMachine, arguments.region, arguments.name)
            kept = tuple(disk for disk in stored.value.disks if disk.name != arguments.disk)
            _store(records, stored, kept)
            record = _item_of(records, arguments.region, arguments.name)
            if record is not None:
                records.items.update(_without_disk(record, arguments.disk))
        return {}

    def _grown(self, arguments: DiskArguments) -> Json:
        def larger(disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
            return tuple(
                replace(disk, size_bytes=arguments.size_bytes)
                if disk.name == arguments.disk
                else disk
                for disk in disks
            )

        with self._bench.vault.write() as records:
            stored = records.resources.get(VirtualMachine, arguments.region, arguments.name)
            _store(records, stored, larger(stored.value.disks))
            record = _item_of(records, arguments.region, arguments.name)
            if record is not None:
                vm = replace(record.target_vm, disks=larger(record.target_vm.disks))
                item = replace(record.item, has_varied_disks=True)
                records.items.update(replace(record, item=item, target_vm=vm))
        return {}


def check_disks_resting(records: Records, region: str, name: str) -> None:
    """Return if no job changes the VM's disks: what it undid could be another's. Raises:
    Conflict."""
    found = [records.jobs.open_on(verb, machine_target(region, name)) for verb in _CHANGES]
    for under_way in (job for job in found if job is not None):
        raise Conflict(
            f"the disks of {name} are just being changed by {under_way.id} ({under_way.verb})",
            field="disk",
            hint=f"`leeward job show {under_way.id}` tells how far it is; try again when it ended",
        )


def _resting(records: Records, region: str, name: str) -> VirtualMachine:
    vm = _machine(records, region, name).value
    check_disks_resting(records, region, name)
    return vm


def _machine(records: Records, region: str, name: str) -> Stored[VirtualMachine]:
    stored = records.resources.get(VirtualMachine, region, name)
    if stored.state is not ResourceState.READY:
        raise Conflict(f"{name} is still {stored.state.value}")
    return stored


def _disk(vm: VirtualMachine, name: str) -> Disk:
    found = next((disk for disk in vm.disks if disk.name == name), None)
    if found is None:
        raise NotFound(f"{vm.name} has no disk {name}", field="disk")
    return found


def _item_of(records: Records, region: str, name: str) -> ItemRecord | None:
    """Return the item whose source the VM is, if there is one."""
    for record in records.items.listed(region=region):
        if (record.item.source_region, record.item.source_vm) == (region, name):
            return record
    return None


def _following(records: Records, region: str, name: str) -> ItemRecord | None:
    """Return the item that the VM is replicated for, None if it is not. Raises: Conflict while a
    failover or a reprotection of the VM is not over."""
    for record in records.items.listed(region=region):
        item = record.item
        is_source = (item.source_region, item.source_vm) == (region, name)
        is_target = (item.target_region, item.target_vm) == (region, name)
        if is_source and item.state in FOLLOWING:
            return record
        vm = records.resources.find(VirtualMachine, region, name)
        if is_source or (is_target and vm is not None):
            raise Conflict(
                f"{item.name} is {item.state.value.replace('_', ' ')}: its disks cannot be changed",
                field="disk",
                hint="once it is protected, or no more, they can",
            )
    return None


def _target_account(record: ItemRecord, disk: Disk) -> str:
    """Return where the disk's replica goes: where those of its account's other disks are, or the
    system disk's. Raises: Conflict for a name that recovery points know as another disk's."""
    item = record.item
    if any(former.mapping.disk == disk.name for former in item.former_disks):
        raise Conflict(
            f"{item.name} had a disk {disk.name} once, and recovery points that have it",
            field="disk",
            hint="choose another name",
        )
    for mapping in item.disks:
        if mapping.source_account == disk.storage_account:
            return mapping.target_account
    return item.disks[0].target_account


def _store(records: Records, stored: Stored[VirtualMachine], disks: tuple[Disk, ...]) -> None:
    vm = replace(stored.value, disks=disks)
    requested = stored.requested | {"disks": as_requested(vm)["disks"]}
    records.resources.update(stored, value=vm, requested=requested)


def _with_disk(record: ItemRecord, disk: Disk, target_account: str) -> ItemRecord:
    mapping = DiskMapping(
        disk=disk.name, source_account=disk.storage_account, target_account=target_account
    )
    item = replace(record.item, disks=(*record.item.disks, mapping), has_varied_disks=True)
    vm = record.target_vm
    like = vm.disks[0]
    there = replace(
        like, name=disk.name, storage_account=target_account, size_bytes=disk.size_bytes, image=""
    )
    return replace(record, item=item, target_vm=replace(vm, disks=(*vm.disks, there)))


def _without_disk(record: ItemRecord, name: str) -> ItemRecord:
    """Return the item without the disk, which it remembers for points that have it."""
    item, vm = record.item, record.target_vm
    mapping = next((one for one in item.disks if one.disk == name), None)
    if mapping is None:  # it was not replicated
        excluded = tuple(disk for disk in item.excluded_disks if disk != name)
        return replace(record, item=replace(item, excluded_disks=excluded))
    disk = next((one for one in vm.disks if one.name == name), vm.disks[0])
    former = FormerDisk(mapping=mapping, size_bytes=disk.size_bytes, format=disk.format)
    item = replace(
        item,
        disks=tuple(one for one in item.disks if one.disk != name),
        former_disks=(*item.former_disks, former),
        has_varied_disks=True,
    )
    kept = tuple(one for one in vm.disks if one.name != name)
    return replace(record, item=item, target_vm=replace(vm, disks=kept))
