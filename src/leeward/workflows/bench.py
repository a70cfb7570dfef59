"""What every verb works with.

Owns: putting vault, dispatch and live state in one hand, and the questions all verbs ask of them.
Must not know: any one verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, Unavailable
from leeward.model.recovery import machine_of_test
from leeward.model.resources import StorageAccount, VirtualMachine, VirtualNetwork
from leeward.protection.health import SILENT_SECONDS
from leeward.protocol.messages import Role
from leeward.vault.events import Event
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records, VaultStore
from leeward.vault.resources import KINDS, ResourceState
from leeward.workflows.dispatch import Dispatch
from leeward.workflows.live import LiveState
from leeward.workflows.placement import check_memory, choose_host
from leeward.workflows.signals import Signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Shared by all verbs and routes. installation: see VaultStore.installation_id."""

    vault: VaultStore
    dispatch: Dispatch
    live: LiveState
    signals: Signals
    clock: Clock
    installation: str

    def is_heard(self, node: NodeRecord) -> bool:
        """Say whether the node has been heard lately."""
        return self.live.silent_seconds(node.id) <= SILENT_SECONDS

    def check_key(self, node: NodeRecord, key_id: str) -> None:
        """Return if the node has told that its host has that encryption key. Raises: Conflict."""
        if key_id not in self.live.key_ids(node.id):
            raise Conflict(
                f"{node.label} does not have the key {key_id}",
                field="key_id",
                hint="add it to the file that LEEWARD_KEY_FILE names there",
            )

    def answering(self, records: Records, role: Role, region: str) -> list[NodeRecord]:
        """Return the region's nodes of that role that have been heard lately."""
        return [
            node for node in records.nodes.listed(role=role, region=region) if self.is_heard(node)
        ]

    def check_answering(self, records: Records, region: str) -> None:
        """Return if an agent and a worker of the region answer: without both nothing comes up
        there. Raises: Unavailable."""
        for role in (Role.AGENT, Role.WORKER):
            if not self.answering(records, role, region):
                raise Unavailable(
                    f"no {role.value} of region {region} answers",
                    hint="start it again there, or enrol a new one: "
                    f"`leeward region token {region}`",
                )

    def agent_of(self, records: Records, vm: VirtualMachine) -> NodeRecord:
        """Return the agent of the host the VM is on. Raises: Unavailable when there is none."""
        agent = self.find_agent(records, vm)
        if agent is None:
            raise Unavailable(f"host {vm.host} of region {vm.region} is not enrolled")
        return agent

    def find_agent(self, records: Records, vm: VirtualMachine) -> NodeRecord | None:
        """Return the agent of the host the VM is on, or None."""
        return records.nodes.find(Role.AGENT, vm.region, vm.host) if vm.host else None

    def place(
        self, records: Records, vm: VirtualMachine, *, freed: Mapping[str, int] | None = None
    ) -> NodeRecord:
        """Return the agent of the VM's region that gets the VM. freed: MiB of memory by host that
        will be available besides. Raises: Unavailable, Conflict."""

        def memory(agent: NodeRecord) -> int | None:
            told = self.live.memory_available_mib(agent.id)
            return None if told is None else told + (freed or {}).get(agent.name, 0)

        return choose_host(
            vm,
            self.answering(records, Role.AGENT, vm.region),
            machines_in(records, vm.region),
            memory,
        )

    def check_memory(self, records: Records, vm: VirtualMachine) -> None:
        """Return if a host of the VM's region has the memory for it at all, whatever runs there
        now; where a host has not told, it may. Raises: Conflict."""
        agents = records.nodes.listed(role=Role.AGENT, region=vm.region)
        check_memory(vm, {each.name: self.live.memory_total_mib(each.id) for each in agents})

    def record_event(
        self, records: Records, target: str, kind: str, message: str, job_id: str = ""
    ) -> None:
        """The event is recorded with the present time."""
        records.events.add(
            Event(
                time_ns=self.clock.now_ns(),
                target=target,
                kind=kind,
                message=message,
                job_id=job_id,
            )
        )


def occupants_of_networks(records: Records, region: str) -> list[VirtualMachine]:
    """Return what has interfaces in the region's networks: its VMs that are not being deleted, and
    the test VMs in networks set aside for tests."""
    tests = (
        machine_of_test(record.item, record.target_vm)
        for record in records.items.with_test_vm(region)
    )
    return [*machines_in(records, region), *(vm for vm in tests if vm is not None)]


def networks_by_name(records: Records, region: str) -> dict[str, VirtualNetwork]:
    """Return the region's networks by name."""
    return {s.name: s.value for s in records.resources.listed(VirtualNetwork, region)}


def accounts_by_name(records: Records, region: str) -> dict[str, StorageAccount]:
    """Return the region's storage accounts by name."""
    return {s.name: s.value for s in records.resources.listed(StorageAccount, region)}


def storage_root(records: Records, region: str) -> str:
    """Return where the region's storage accounts without a URL go; "" while no agent has told."""
    agents = records.nodes.listed(role=Role.AGENT, region=region)
    return next((agent.storage_root for agent in agents if agent.storage_root), "")


def check_staying(
    records: Records, kind: type[StorageAccount | VirtualNetwork], region: str, name: str
) -> None:
    """Return unless the resource is on its way out: what would use it would lose it. Raises:
    Conflict."""
    found = records.resources.find(kind, region, name)
    if found is not None and found.state is ResourceState.DELETING:
        raise Conflict(
            f"{KINDS[kind].replace('-', ' ')} {name} in {region} is just being deleted",
            hint="try again in a few seconds",
        )


def machines_in(records: Records, region: str) -> list[VirtualMachine]:
    """Return the region's VMs that are not being deleted."""
    return [
        stored.value
        for stored in records.resources.listed(VirtualMachine, region)
        if stored.state is not ResourceState.DELETING
    ]
