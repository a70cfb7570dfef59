"""Deleting a resource group with all that is in it.

Owns: what goes with a group, and in which order. Must not know: how hosts delete any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import Conflict, LeewardError
from leeward.model.recovery import Job
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.inventory import Inventory
from leeward.protection.usage import (
    users_of_account,
    users_of_group,
    users_of_network,
    users_of_set,
)
from leeward.protocol.messages import Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.inventory import load_inventory
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.machine_verbs import MachineVerbs
from leeward.workflows.resource_verbs import ResourceVerbs, forget_mappings

Member = VirtualMachine | VirtualNetwork | StorageAccount | AvailabilitySet
_WORDS: dict[type[Member], str] = {
    VirtualMachine: "virtual machine",
    VirtualNetwork: "network",
    StorageAccount: "storage account",
    AvailabilitySet: "availability set",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContents:
    """Names of what lies in a resource group."""

    region: str
    name: str
    vms: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    storage_accounts: tuple[str, ...] = ()
    availability_sets: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()
    """What lies outside the group and needs something in it, for people; then it cannot go."""

    def members(self) -> list[tuple[type[Member], str]]:
        """Return (kind, name) of everything in the group, VMs first."""
        return [
            *((VirtualMachine, name) for name in self.vms),
            *((VirtualNetwork, name) for name in self.networks),
            *((StorageAccount, name) for name in self.storage_accounts),
            *((AvailabilitySet, name) for name in self.availability_sets),
        ]


class GroupVerbs:
    """Looks into resource groups; submits and runs the jobs that delete them whole."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        machines: MachineVerbs,
        resources: ResourceVerbs,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._machines = machines
        self._resources = resources

    def contents(self, region: str, name: str) -> GroupContents:
        """Return what goes with the group. Raises: NotFound."""
        with self._bench.vault.read() as records:
            return self._contents(records, region, name)

    def delete(self, region: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that deletes the group and all that is in it.

        Raises: NotFound; Conflict while anything outside needs something of it, or something in it
        is just being made.
        """
        target = f"resource-group/{region}/{name}"
        if job := self._jobs().join_on(key, "resource-group.delete", target):
            return job

        def prepare(records: Records) -> GroupContents:
            contents = self._contents(records, region, name)
            if contents.used_by:
                raise Conflict(
                    f"resource group {name} cannot go: {'; '.join(contents.used_by[:3])}",
                    hint="unprotect those items or delete those VMs first",
                )
            for kind, member in contents.members():
                state = records.resources.get(kind, region, member).state
                if state is not ResourceState.READY:
                    raise Conflict(f"{_WORDS[kind]} {member} is still {state.value}")
                records.resources.set_state(kind, region, member, ResourceState.DELETING)
            return contents

        return self._jobs().submit("resource-group.delete", target, prepare, key)

    def run_delete(self, job: RunningJob) -> Json:
        """All of the group is gone, or what could not go is as it was."""
        contents = job.arguments(GroupContents)
        try:
            job.orders("virtual machines", lambda: self._vm_orders(contents), dict[str, object])
            job.record_step(
                "forget virtual machines",
                lambda: self._forget(contents, VirtualMachine),
                dict[str, object],
            )
            job.orders("networks", lambda: self._network_orders(contents), dict[str, object])
            job.orders("storage", lambda: self._account_orders(contents), dict[str, object])
        except LeewardError:
            job.step("keep", lambda _: self._keep(contents), dict[str, object], is_undo=True)
            raise
        job.record_step("forget", lambda: self._forget_all(contents), dict[str, object])
        return {"deleted": len(contents.members()) + 1}

    # ---

    def _contents(self, records: Records, region: str, name: str) -> GroupContents:
        records.resources.get(ResourceGroup, region, name)
        inventory = load_inventory(records, [region])

        def inside(members: tuple[Member, ...]) -> tuple[str, ...]:
            return tuple(
                member.name
                for member in members
                if (member.region, member.resource_group) == (region, name)
            )

        contents = GroupContents(
            region=region,
            name=name,
            vms=inside(inventory.vms),
            networks=inside(inventory.networks),
            storage_accounts=inside(inventory.accounts),
            availability_sets=inside(inventory.availability_sets),
        )
        return _with_users(inventory, contents)

    def _vm_orders(self, contents: GroupContents) -> list[Order]:
        return [
            self._machines.delete_order(contents.region, name, key=name) for name in contents.vms
        ]

    def _network_orders(self, contents: GroupContents) -> list[Order]:
        return [
            order
            for name in contents.networks
            for order in self._resources.network_delete_orders(contents.region, name)
        ]

    def _account_orders(self, contents: GroupContents) -> list[Order]:
        return [
            order
            for name in contents.storage_accounts
            for order in self._resources.account_orders(contents.region, name, Verb.ACCOUNT_DELETE)
        ]

    def _forget(self, contents: GroupContents, kind: type[Member]) -> Json:
        with self._bench.vault.write() as records:
            for each, name in contents.members():
                if each is kind:
                    records.resources.delete(kind, contents.region, name)
                    if kind is VirtualNetwork:
                        forget_mappings(records, contents.region, name)
        return {}

    def _forget_all(self, contents: GroupContents) -> Json:
        for kind in _WORDS:
            self._forget(contents, kind)
        with self._bench.vault.write() as records:
            records.resources.delete(ResourceGroup, contents.region, contents.name)
        return {}

    def _keep(self, contents: GroupContents) -> Json:
        with self._bench.vault.write() as records:
            for kind, name in contents.members():
                records.resources.set_state(kind, contents.region, name, ResourceState.READY)
        return {}


def _with_users(inventory: Inventory, contents: GroupContents) -> GroupContents:
    """Return the contents with what outside of them needs them."""
    region = contents.region
    own = {f"{_WORDS[kind]} {name}" for kind, name in contents.members()}
    found = [
        f"{user} is in it"
        for user in users_of_group(inventory, region, contents.name)
        if user not in own
    ]
    for what, names, users_of in (
        ("network", contents.networks, users_of_network),
        ("storage account", contents.storage_accounts, users_of_account),
        ("availability set", contents.availability_sets, users_of_set),
    ):
        found += [
            f"{user} needs {what} {name}"
            for name in names
            for user in users_of(inventory, region, name)
            if user not in own
        ]
    found += [
        f"item {protected.item.name} protects virtual machine {name}"
        for name in contents.vms
        for protected in inventory.protected
        if name
        in (
            protected.item.source_vm if protected.item.source_region == region else "",
            protected.item.target_vm if protected.item.target_region == region else "",
        )
    ]
    return replace(contents, used_by=tuple(dict.fromkeys(found)))
