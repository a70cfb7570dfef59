"""Verbs that change resources that are there: networks, availability sets, virtual machines' size.

Owns: what may change while it is used. Must not know: how hosts make any of it real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, StaleVersion
from leeward.model.recovery import Job
from leeward.model.resources import (
    AvailabilitySet,
    PowerState,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.addresses import check_network
from leeward.protection.inventory import Inventory
from leeward.protection.rehearsal import check_tests_stay_apart
from leeward.protection.usage import users_for_tests
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Role, Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import KINDS, R, ResourceState, Stored, as_requested
from leeward.workflows.bench import Bench, occupants_of_networks
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.host_networks import network_order
from leeward.workflows.inventory import load_inventory
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.specs import vm_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChange:
    """What the network was and what it becomes."""

    before: VirtualNetwork
    after: VirtualNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSize:
    """The size a stopped VM gets: it counts when it is started next."""

    region: str
    name: str
    vcpus: int
    memory_mib: int
    forwards: tuple[int, ...]


class ChangeVerbs:
    """Changes what is a record at once; submits and runs jobs for what hosts must hear of."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    # --- availability sets

    def change_set(
        self, region: str, name: str, *, fault_domains: int, version: int | None
    ) -> AvailabilitySet:
        """Return the set as it is now; VMs stay where they are, later ones are placed by it.

        version: what the caller has read, None: whatever it is. Raises: NotFound, StaleVersion.
        """
        with self._bench.vault.write() as records:
            stored = _read(records, AvailabilitySet, region, name, version)
            changed = replace(stored.value, fault_domains=fault_domains)
            records.resources.update(stored, value=changed, requested=as_requested(changed))
        return changed

    # --- networks

    def change_network(
        self,
        wanted: VirtualNetwork,
        version: int | None,
        key: IdempotencyKey | None = None,
    ) -> Job | None:
        """Return the job that makes the network as wanted on every host that has VMs in it; None
        when it is so already.

        Raises: NotFound, StaleVersion; InvalidRequest; Conflict while VMs, or items that will fail
        over into it, use a subnet that goes or moves. Then nothing has changed.
        """
        target = f"network/{wanted.region}/{wanted.name}"
        check_network(wanted)

        with self._bench.vault.read() as records:
            stored = _read(records, VirtualNetwork, wanted.region, wanted.name, version)
        if stored.value == wanted:
            return None

        def prepare(records: Records) -> NetworkChange:
            stored = _read(records, VirtualNetwork, wanted.region, wanted.name, version)
            inventory = load_inventory(records, [wanted.region])
            _check_subnets(inventory, stored.value, wanted)
            check_tests_stay_apart(inventory, wanted)
            records.resources.update(stored, value=wanted, requested=as_requested(wanted))
            return NetworkChange(before=stored.value, after=wanted)

        return self._jobs().submit("network.update", target, prepare, key)

    def run_change_network(self, job: RunningJob) -> Json:
        """Every host that answers and has VMs in the network has it as wanted, or all as before."""
        change = job.arguments(NetworkChange)
        try:
            job.orders("tell hosts", lambda: self._orders(change.after), dict[str, object])
        except LeewardError:
            job.step("keep", lambda _: self._restore(change), dict[str, object], is_undo=True)
            job.undo_orders("tell hosts again", lambda: self._orders(change.before))
            raise
        return {}

    def _orders(self, network: VirtualNetwork) -> list[Order]:
        with self._bench.vault.read() as records:
            vms = occupants_of_networks(records, network.region)
            hosts = {vm.host for vm in vms if any(nic.network == network.name for nic in vm.nics)}
            return [
                network_order(self._bench, records, network, agent)
                for agent in self._bench.answering(records, Role.AGENT, network.region)
                if agent.name in hosts
            ]

    def _restore(self, change: NetworkChange) -> Json:
        before = change.before
        with self._bench.vault.write() as records:
            stored = records.resources.find(VirtualNetwork, before.region, before.name)
            if stored is not None and stored.value == change.after:
                records.resources.update(stored, value=before, requested=as_requested(before))
        return {}

    # --- virtual machines

    def change_machine(
        self, size: MachineSize, version: int | None, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that gives the stopped VM that size.

        Raises: NotFound, StaleVersion; Conflict while it runs or nobody knows whether it does.
        """
        ports = size.forwards
        if len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
            raise InvalidRequest("forwards: each is a TCP port, none twice", field="forwards")

        def prepare(records: Records) -> MachineSize:
            stored = _read(records, VirtualMachine, size.region, size.name, version)
            self._check_stopped(records, stored.value)
            if ports and not stored.value.nics:
                raise InvalidRequest(
                    f"{size.name} has no interface to forward to", field="forwards"
                )
            return size

        target = f"vm/{size.region}/{size.name}"
        return self._jobs().submit("vm.update", target, prepare, key)

    def run_change_machine(self, job: RunningJob) -> Json:
        """The VM has the size, on its host and in the vault, or has it in neither place."""
        size = job.arguments(MachineSize)
        status = job.order("change", lambda: self._size_order(size), VmStatus)
        job.record_step("record", lambda: self._record_size(size), dict[str, object])
        return {"status": to_plain(status)}

    def _check_stopped(self, records: Records, vm: VirtualMachine) -> None:
        agent = self._bench.agent_of(records, vm)
        status = self._bench.live.vm(agent.id, vm_id(vm.name))
        if status is None or status.power is not PowerState.STOPPED:
            raise Conflict(
                f"{vm.name} runs: its size changes only while it is stopped",
                hint=f"`leeward vm stop {vm.region}/{vm.name}` first",
            )

    def _size_order(self, size: MachineSize) -> Order:
        with self._bench.vault.read() as records:
            vm = records.resources.get(VirtualMachine, size.region, size.name).value
            agent = self._bench.agent_of(records, vm)
        arguments: Json = {
            "vm_id": vm_id(size.name),
            "vcpus": size.vcpus,
            "memory_mib": size.memory_mib,
            "forwards": list(size.forwards),
        }
        return Order(node=agent, verb=Verb.VM_UPDATE, arguments=arguments)

    def _record_size(self, size: MachineSize) -> Json:
        with self._bench.vault.write() as records:
            stored = records.resources.get(VirtualMachine, size.region, size.name)
            vm = replace(
                stored.value,
                vcpus=size.vcpus,
                memory_mib=size.memory_mib,
                forwards=size.forwards,
            )
            requested = stored.requested | {
                "vcpus": size.vcpus,
                "memory_mib": size.memory_mib,
                "forwards": list(size.forwards),
            }
            records.resources.update(stored, value=vm, requested=requested)
        return {}


def _read(
    records: Records, kind: type[R], region: str, name: str, version: int | None
) -> Stored[R]:
    """Return the resource, ready and as the caller knows it."""
    stored = records.resources.get(kind, region, name)
    noun = KINDS[kind].replace("-", " ")
    if stored.state is not ResourceState.READY:
        raise Conflict(f"{noun} {name} is still {stored.state.value}")
    if version is not None and stored.version != version:
        raise StaleVersion(
            f"{noun} {name} has changed since it was read", field="If-Match", hint="read it again"
        )
    return stored


def _check_subnets(inventory: Inventory, before: VirtualNetwork, after: VirtualNetwork) -> None:
    """Return if every subnet that is used stays where it is."""
    staying = {(subnet.name, subnet.prefix, bool(subnet.bridge)) for subnet in after.subnets}
    for subnet in before.subnets:
        if (subnet.name, subnet.prefix, bool(subnet.bridge)) in staying:
            continue
        if users := _users_of_subnet(inventory, before, subnet):
            raise Conflict(
                f"subnet {subnet.name} of network {before.name} is used by {', '.join(users)}",
                field="subnets",
                hint="a subnet in use keeps its name, its prefix and the kind of its gateway",
            )


def _users_of_subnet(inventory: Inventory, network: VirtualNetwork, subnet: Subnet) -> list[str]:
    def uses(vm: VirtualMachine) -> bool:
        return vm.region == network.region and any(
            (nic.network, nic.subnet) == (network.name, subnet.name) for nic in vm.nics
        )

    return [
        *(f"virtual machine {vm.name}" for vm in inventory.vms if uses(vm)),
        *(
            f"item {protected.item.name}"
            for protected in inventory.protected
            if uses(protected.target_vm)
        ),
        *(vm.name for vm in inventory.test_vms if uses(vm)),
        *users_for_tests(inventory, network.region, network.name, subnet.name),
    ]
