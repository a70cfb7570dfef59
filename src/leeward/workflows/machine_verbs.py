"""Verbs on virtual machines: create, delete, start, stop.

Owns: their steps. Must not know: how a host makes a VM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, Unavailable
from leeward.core.ids import check_name
from leeward.model.recovery import Job
from leeward.model.resources import (
    PowerState,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Role, Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState, Stored, as_requested
from leeward.workflows.bench import (
    Bench,
    accounts_by_name,
    check_staying,
    networks_by_name,
)
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.host_networks import network_order
from leeward.workflows.inventory import load_inventory
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.machine_plan import plan_machine
from leeward.workflows.monitor import has_moved
from leeward.workflows.specs import account_spec, vm_id, vm_spec

VM_CREATE_SECONDS = 1800.0
"""Disks may be copied from large images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineArguments:
    """Which VM; force: stop without asking the guest."""

    region: str
    name: str
    force: bool = False


class MachineVerbs:
    """Submits VM jobs and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    # --- submitting

    def create(self, wanted: VirtualMachine, key: IdempotencyKey | None = None) -> Job | None:
        """Return the job that creates the VM, the one under way if there is one; None when the VM
        is there already, just as wanted.

        Raises: InvalidRequest, NotFound, Conflict, Unavailable; then nothing has changed.
        """
        check_name(wanted.name)
        requested = as_requested(wanted)
        target = machine_target(wanted.region, wanted.name)
        with self._bench.vault.read() as records:
            existing = records.resources.find(VirtualMachine, wanted.region, wanted.name)
        if existing is not None and existing.requested == requested:
            if existing.state is ResourceState.READY:
                return None
            if job := self._jobs().join_on(key, "vm.create", target):
                return job

        def prepare(records: Records) -> MachineArguments:
            inventory = load_inventory(records, [wanted.region])
            inventory.check_region(wanted.region, field="region")
            self._check_name_free(records, wanted)
            vm = plan_machine(inventory, wanted)
            for disk in vm.disks:
                check_staying(records, StorageAccount, vm.region, disk.storage_account)
            for nic in vm.nics:
                check_staying(records, VirtualNetwork, vm.region, nic.network)
            vm = replace(vm, host=self._host(records, vm).name)
            records.resources.insert(
                vm,
                scope=vm.region,
                name=vm.name,
                state=ResourceState.CREATING,
                requested=requested,
            )
            return MachineArguments(region=vm.region, name=vm.name)

        return self._jobs().submit("vm.create", target, prepare, key)

    def delete(self, region: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that deletes the VM, the one under way if there is one.

        Raises: NotFound; Conflict while an item needs it.
        """
        target = machine_target(region, name)
        if job := self._jobs().join_on(key, "vm.delete", target):
            return job

        def prepare(records: Records) -> MachineArguments:
            stored = records.resources.get(VirtualMachine, region, name)
            _check_ready(stored)
            check_not_needed(records, region, name)
            records.resources.update(stored, state=ResourceState.DELETING)
            return MachineArguments(region=region, name=name)

        return self._jobs().submit("vm.delete", target, prepare, key)

    def start(self, region: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that starts the VM. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> MachineArguments:
            _check_ready(records.resources.get(VirtualMachine, region, name))
            self._check_not_superseded(records, region, name)
            return MachineArguments(region=region, name=name)

        return self._jobs().submit("vm.start", machine_target(region, name), prepare, key)

    def stop(
        self, region: str, name: str, *, force: bool, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that stops the VM. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> MachineArguments:
            _check_ready(records.resources.get(VirtualMachine, region, name))
            return MachineArguments(region=region, name=name, force=force)

        return self._jobs().submit("vm.stop", machine_target(region, name), prepare, key)

    # --- running

    def run_create(self, job: RunningJob) -> Json:
        """The VM runs, or there is nothing of it."""
        arguments = job.arguments(MachineArguments)
        try:
            job.orders("storage", lambda: self._storage_orders(arguments), dict[str, object])
            job.orders("networks", lambda: self._network_orders(arguments), dict[str, object])
            status = job.order(
                "create",
                lambda: self._create_order(arguments, job.record.id),
                VmStatus,
                timeout_seconds=VM_CREATE_SECONDS,
            )
            job.record_step("record", lambda: self._created(arguments, status), dict[str, object])
        except LeewardError:
            job.undo_orders("undo", lambda: [self._undo_order(arguments, job.record.id)])
            job.step("forget", lambda _: self._forget(arguments), dict[str, object], is_undo=True)
            raise
        return {"vm": arguments.name, "status": to_plain(status)}

    def run_delete(self, job: RunningJob) -> Json:
        """The VM is gone from its host and from the vault."""
        arguments = job.arguments(MachineArguments)
        try:
            job.order("delete", lambda: self._delete_order(arguments), dict[str, object])
        except LeewardError:
            job.step("keep", lambda _: self._keep(arguments), dict[str, object], is_undo=True)
            raise
        job.record_step("forget", lambda: self._forget(arguments), dict[str, object])
        return {}

    def run_start(self, job: RunningJob) -> Json:
        """The VM runs."""
        arguments = job.arguments(MachineArguments)
        job.orders("networks", lambda: self._network_orders(arguments), dict[str, object])
        status = job.order(
            "start", lambda: self._power_order(arguments, Verb.VM_START, {}), VmStatus
        )
        return {"status": to_plain(status)}

    def run_stop(self, job: RunningJob) -> Json:
        """The VM does not run."""
        arguments = job.arguments(MachineArguments)
        force: Json = {"force": arguments.force}
        status = job.order(
            "stop", lambda: self._power_order(arguments, Verb.VM_STOP, force), VmStatus
        )
        return {"status": to_plain(status)}

    # --- steps of create

    def _storage_orders(self, arguments: MachineArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            vm, agent = self._vm_and_agent(records, arguments)
            accounts = accounts_by_name(records, vm.region)
        return [
            Order(
                node=agent,
                verb=Verb.ACCOUNT_CREATE,
                arguments=to_plain(account_spec(accounts[name])),
                key=name,
            )
            for name in dict.fromkeys(disk.storage_account for disk in vm.disks)
        ]

    def _network_orders(self, arguments: MachineArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            vm, agent = self._vm_and_agent(records, arguments)
            networks = networks_by_name(records, vm.region)
            return [
                network_order(self._bench, records, networks[name], agent)
                for name in dict.fromkeys(nic.network for nic in vm.nics)
            ]

    def _create_order(self, arguments: MachineArguments, job_id: str) -> Order:
        with self._bench.vault.read() as records:
            vm, agent = self._vm_and_agent(records, arguments)
            spec = vm_spec(
                self._bench.installation,
                vm,
                networks_by_name(records, vm.region),
                accounts_by_name(records, vm.region),
            )
        made = replace(spec, made_for=job_id)
        return Order(node=agent, verb=Verb.VM_CREATE, arguments=to_plain(made))

    def _undo_order(self, arguments: MachineArguments, job_id: str) -> Order:
        """A VM that the vault did not know, and that was in the way, stays."""
        order = self._delete_order(arguments)
        return replace(order, arguments={**order.arguments, "made_for": job_id})

    def _power_order(self, arguments: MachineArguments, verb: Verb, more: Json) -> Order:
        with self._bench.vault.read() as records:
            if verb is Verb.VM_START:  # a failover may have begun since this was asked for
                self._check_not_superseded(records, arguments.region, arguments.name)
            vm, agent = self._vm_and_agent(records, arguments)
        return Order(node=agent, verb=verb, arguments={"vm_id": vm_id(vm.name), **more})

    def _created(self, arguments: MachineArguments, status: VmStatus) -> Json:
        with self._bench.vault.write() as records:
            stored = records.resources.get(VirtualMachine, arguments.region, arguments.name)
            disks = tuple(
                replace(disk, size_bytes=status.disk_sizes.get(disk.name, disk.size_bytes))
                for disk in stored.value.disks
            )
            records.resources.update(
                stored, value=replace(stored.value, disks=disks), state=ResourceState.READY
            )
        return {}

    # --- shared

    def delete_order(self, region: str, name: str, *, key: str = "") -> Order:
        """Return the order that takes the VM from its host. key: see Order."""
        with self._bench.vault.read() as records:
            stored = records.resources.get(VirtualMachine, region, name)
            agent = self._bench.agent_of(records, stored.value)
        # One that a failover made has overlays and an export besides.
        verb = Verb.RECOVERY_DISCARD if stored.created_by else Verb.VM_DELETE
        return Order(node=agent, verb=verb, arguments={"vm_id": vm_id(name)}, key=key)

    def _delete_order(self, arguments: MachineArguments) -> Order:
        return self.delete_order(arguments.region, arguments.name)

    def _forget(self, arguments: MachineArguments) -> Json:
        with self._bench.vault.write() as records:
            records.resources.delete(VirtualMachine, arguments.region, arguments.name)
        return {}

    def _keep(self, arguments: MachineArguments) -> Json:
        with self._bench.vault.write() as records:
            records.resources.set_state(
                VirtualMachine, arguments.region, arguments.name, ResourceState.READY
            )
        return {}

    def _vm_and_agent(
        self, records: Records, arguments: MachineArguments
    ) -> tuple[VirtualMachine, NodeRecord]:
        vm = records.resources.get(VirtualMachine, arguments.region, arguments.name).value
        return vm, self._bench.agent_of(records, vm)

    def _host(self, records: Records, vm: VirtualMachine) -> NodeRecord:
        if not vm.host:
            return self._bench.place(records, vm)
        agent = records.nodes.find(Role.AGENT, vm.region, vm.host)
        if agent is None:
            raise InvalidRequest(f"region {vm.region} has no host {vm.host}", field="host")
        if not self._bench.is_heard(agent):
            raise Unavailable(f"{agent.label} does not answer")
        return agent

    def _check_name_free(self, records: Records, wanted: VirtualMachine) -> None:
        existing = records.resources.find(VirtualMachine, wanted.region, wanted.name)
        if existing is not None:
            raise _exists(existing)
        for record in records.items.listed(region=wanted.region):
            if (record.target_vm.region, record.target_vm.name) == (wanted.region, wanted.name):
                raise Conflict(
                    f"the name {wanted.name} in {wanted.region} is kept for the failover of item "
                    f"{record.item.name}",
                    field="name",
                )

    def _check_not_superseded(self, records: Records, region: str, name: str) -> None:
        """Two of the same machine must never run: after a failover the source stays stopped."""
        for record in records.items.listed(region=region):
            item = record.item
            is_source = (item.source_region, item.source_vm) == (region, name)
            if is_source and has_moved(record):
                raise Conflict(
                    f"{name} is failing over to {item.target_region} or has: its source stays "
                    "stopped",
                    hint=f"`leeward unprotect {item.name}` lets both run",
                )


def check_not_needed(records: Records, region: str, name: str) -> None:
    """Return if no item has the VM. Raises: Conflict."""
    for record in records.items.listed(region=region):
        item = record.item
        if (region, name) in (
            (item.source_region, item.source_vm),
            (item.target_region, item.target_vm),
        ):
            raise Conflict(
                f"{name} in {region} belongs to item {item.name} ({item.state.value})",
                hint=f"`leeward unprotect {item.name}` first",
            )


def machine_target(region: str, name: str) -> str:
    """Return how jobs and events call the VM."""
    return f"vm/{region}/{name}"


def is_running(status: VmStatus | None) -> bool | None:
    """Say whether the VM runs; None: nobody has told."""
    if status is None or status.power is PowerState.UNKNOWN:
        return None
    return status.power is PowerState.RUNNING


def _check_ready(stored: Stored[VirtualMachine]) -> None:
    if stored.state is not ResourceState.READY:
        raise Conflict(f"{stored.name} is still {stored.state.value}")


def _exists(stored: Stored[VirtualMachine]) -> Conflict:
    if stored.state is not ResourceState.READY:
        return Conflict(f"{stored.name} is still {stored.state.value}", field="name")
    return Conflict(
        f"there is already a virtual machine {stored.name} in {stored.scope}, with other settings",
        field="name",
    )
