"""Verbs on the resources around VMs: groups, networks, storage accounts, sets, regions, vaults.

Owns: which are records only, and which need agents to become real. Must not know: VMs, protection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError, NotFound, Unavailable
from leeward.core.ids import check_name
from leeward.model.plans import RecoveryPlan
from leeward.model.recovery import Job, NetworkMapping, Policy, Vault
from leeward.model.resources import (
    AvailabilitySet,
    Region,
    ResourceGroup,
    StorageAccount,
    VirtualNetwork,
)
from leeward.protection.addresses import check_network
from leeward.protection.inventory import Inventory
from leeward.protection.usage import (
    users_of_account,
    users_of_group,
    users_of_network,
    users_of_set,
)
from leeward.protocol.messages import Role, Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import KINDS, ResourceState, as_requested
from leeward.workflows.bench import Bench, storage_root
from leeward.workflows.dispatch import Order
from leeward.workflows.drill_records import forget_plan_drills
from leeward.workflows.engine import Json
from leeward.workflows.inventory import load_inventory
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.plan_jobs import plan_target
from leeward.workflows.specs import account_spec, complete_account, network_id

Grouped = ResourceGroup | VirtualNetwork | StorageAccount | AvailabilitySet
DEFAULT_POLICY = Policy(name="default")

_USERS: dict[type[Grouped], Callable[[Inventory, str, str], list[str]]] = {
    ResourceGroup: users_of_group,
    VirtualNetwork: users_of_network,
    StorageAccount: users_of_account,
    AvailabilitySet: users_of_set,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceArguments:
    """Which resource."""

    region: str
    name: str


class ResourceVerbs:
    """Creates what is a record at once; submits and runs jobs for what agents make real."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    # --- records only

    def create_region(self, name: str) -> Region:
        """Return the region, which exists."""
        check_name(name)
        with self._bench.vault.write() as records:
            found = records.resources.find(Region, "", name)
            if found is None:
                records.resources.insert(Region(name=name), scope="", name=name)
        return Region(name=name)

    def delete_region(self, name: str) -> None:
        """The region does not exist. Raises: NotFound; Conflict while anything is in it."""
        with self._bench.vault.write() as records:
            records.resources.get(Region, "", name)
            inventory = load_inventory(records, [name])
            inside = [
                *inventory.resource_groups,
                *inventory.networks,
                *inventory.accounts,
                *inventory.availability_sets,
                *inventory.vms,
            ]
            nodes = records.nodes.listed(region=name)
            if inside or inventory.protected or nodes:
                raise Conflict(
                    f"region {name} is not empty: it has {len(inside)} resources, "
                    f"{len(inventory.protected)} replicated items and {len(nodes)} nodes",
                    hint="delete, unprotect and forget them first",
                )
            records.resources.delete(Region, "", name)

    def create_vault(self, name: str) -> Vault:
        """Return the vault, which exists, with a policy named "default"."""
        check_name(name)
        with self._bench.vault.write() as records:
            if records.resources.find(Vault, "", name) is None:
                records.resources.insert(Vault(name=name), scope="", name=name)
                records.resources.insert(DEFAULT_POLICY, scope=name, name=DEFAULT_POLICY.name)
        return Vault(name=name)

    def delete_vault(self, name: str) -> None:
        """The vault, its policies and plans do not exist. Raises: NotFound; Conflict while it is
        used."""
        with self._bench.vault.write() as records:
            records.resources.get(Vault, "", name)
            if items := records.items.listed(vault=name):
                raise Conflict(
                    f"vault {name} still has {len(items)} replicated items, {items[0].item.name} "
                    "for one",
                    hint="`leeward unprotect ITEM` first",
                )
            for policy in records.resources.listed(Policy, name):
                records.resources.delete(Policy, name, policy.name)
            for plan in records.resources.listed(RecoveryPlan, name):
                forget_plan_drills(records, plan_target(name, plan.name), name, plan.name)
                records.resources.delete(RecoveryPlan, name, plan.name)
            records.resources.delete(Vault, "", name)

    def delete_policy(self, vault: str, name: str) -> None:
        """The policy does not exist. Raises: NotFound; Conflict while an item follows it."""
        with self._bench.vault.write() as records:
            records.resources.get(Policy, vault, name)
            for record in records.items.listed(vault=vault):
                if record.item.policy == name:
                    raise Conflict(f"item {record.item.name} follows policy {name}")
            records.resources.delete(Policy, vault, name)

    def create(self, resource: ResourceGroup | VirtualNetwork | AvailabilitySet) -> bool:
        """The resource exists; say whether it did not before. Agents make networks real when a VM
        needs them. Raises: InvalidRequest, NotFound, Conflict (exists with other settings)."""
        check_name(resource.name)
        if isinstance(resource, VirtualNetwork):
            check_network(resource)
        with self._bench.vault.write() as records:
            self._check_place(records, resource)
            if self._exists(records, resource):
                return False
            records.resources.insert(
                resource,
                scope=resource.region,
                name=resource.name,
                requested=as_requested(resource),
            )
        return True

    def delete(self, kind: type[ResourceGroup | AvailabilitySet], region: str, name: str) -> None:
        """The resource does not exist. Raises: NotFound; Conflict while it is used."""
        with self._bench.vault.write() as records:
            records.resources.get(kind, region, name)
            self._check_unused(records, kind, region, name)
            records.resources.delete(kind, region, name)

    # --- what agents make real

    def create_account(
        self, account: StorageAccount, key: IdempotencyKey | None = None
    ) -> Job | None:
        """Return the job that creates the account, the one under way if there is one; None when
        the account is there already, just as wanted.

        Raises: NotFound, Conflict, Unavailable (no agent of the region to make it).
        """
        check_name(account.name)
        target = f"storage-account/{account.region}/{account.name}"
        with self._bench.vault.read() as records:
            found = records.resources.find(StorageAccount, account.region, account.name)
        if found is not None and found.requested == as_requested(account):
            if found.state is ResourceState.READY:
                return None
            if job := self._jobs().join_on(key, "storage-account.create", target):
                return job

        def prepare(records: Records) -> ResourceArguments:
            self._check_place(records, account)
            if self._exists(records, account):
                raise Conflict(f"storage account {account.name} has just been created")
            if not self._bench.answering(records, Role.AGENT, account.region):
                raise Unavailable(f"no agent of region {account.region} answers")
            records.resources.insert(
                complete_account(account, storage_root(records, account.region)),
                scope=account.region,
                name=account.name,
                state=ResourceState.CREATING,
                requested=as_requested(account),
            )
            return ResourceArguments(region=account.region, name=account.name)

        return self._jobs().submit("storage-account.create", target, prepare, key)

    def delete_real(
        self,
        kind: type[VirtualNetwork | StorageAccount],
        region: str,
        name: str,
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Return the job that deletes the network or storage account, with all that is in it; the
        one under way if there is one. Raises: NotFound; Conflict while it is used."""
        verb, target = f"{KINDS[kind]}.delete", f"{KINDS[kind]}/{region}/{name}"
        if job := self._jobs().join_on(key, verb, target):
            return job

        def prepare(records: Records) -> ResourceArguments:
            stored = records.resources.get(kind, region, name)
            if stored.state is not ResourceState.READY:
                raise Conflict(f"{name} is still {stored.state.value}")
            self._check_unused(records, kind, region, name)
            records.resources.set_state(kind, region, name, ResourceState.DELETING)
            return ResourceArguments(region=region, name=name)

        return self._jobs().submit(verb, target, prepare, key)

    def run_create_account(self, job: RunningJob) -> Json:
        """The account's object store and directory exist on the region's hosts, or it is gone."""
        arguments = job.arguments(ResourceArguments)
        try:
            job.orders(
                "create",
                lambda: self.account_orders(arguments.region, arguments.name, Verb.ACCOUNT_CREATE),
                dict[str, object],
            )
            job.step("record", lambda _: self._ready(arguments), dict[str, object])
        except LeewardError:
            job.step(
                "forget",
                lambda _: self._forget(StorageAccount, arguments),
                dict[str, object],
                is_undo=True,
            )
            raise
        return {}

    def run_delete_account(self, job: RunningJob) -> Json:
        """The account is gone from hosts and vault."""
        arguments = job.arguments(ResourceArguments)
        return self._run_delete(
            job,
            StorageAccount,
            lambda: self.account_orders(arguments.region, arguments.name, Verb.ACCOUNT_DELETE),
        )

    def run_delete_network(self, job: RunningJob) -> Json:
        """The network is gone from hosts and vault; hosts that are away hear of it later."""
        arguments = job.arguments(ResourceArguments)
        return self._run_delete(
            job,
            VirtualNetwork,
            lambda: self.network_delete_orders(arguments.region, arguments.name),
        )

    # --- orders, shared with protection

    def account_orders(self, region: str, name: str, verb: Verb) -> list[Order]:
        """Return the orders that create or delete the account on the region's hosts that answer.

        Raises: NotFound; Unavailable when none does.
        """
        with self._bench.vault.read() as records:
            account = records.resources.get(StorageAccount, region, name).value
            agents = self._bench.answering(records, Role.AGENT, region)
        if not agents:
            raise Unavailable(f"no agent of region {region} answers")
        arguments = to_plain(account_spec(account))
        return [Order(node=agent, verb=verb, arguments=arguments, key=name) for agent in agents]

    def network_delete_orders(self, region: str, name: str) -> list[Order]:
        """Return the orders that remove the network from the region's hosts that answer."""
        with self._bench.vault.read() as records:
            agents = self._bench.answering(records, Role.AGENT, region)
        return [
            Order(
                node=agent,
                verb=Verb.NETWORK_DELETE,
                arguments={
                    "network_id": network_id(self._bench.installation, region, name, agent.name)
                },
                key=name,
            )
            for agent in agents
        ]

    # ---

    def _run_delete(
        self,
        job: RunningJob,
        kind: type[VirtualNetwork | StorageAccount],
        make: Callable[[], list[Order]],
    ) -> Json:
        arguments = job.arguments(ResourceArguments)
        try:
            job.orders("delete", make, dict[str, object])
        except LeewardError:
            job.step("keep", lambda _: self._keep(kind, arguments), dict[str, object], is_undo=True)
            raise
        job.record_step("forget", lambda: self._forget(kind, arguments), dict[str, object])
        return {}

    def _ready(self, arguments: ResourceArguments) -> Json:
        return self._keep(StorageAccount, arguments)

    def _keep(
        self, kind: type[VirtualNetwork | StorageAccount], arguments: ResourceArguments
    ) -> Json:
        with self._bench.vault.write() as records:
            records.resources.set_state(kind, arguments.region, arguments.name, ResourceState.READY)
        return {}

    def _forget(
        self, kind: type[VirtualNetwork | StorageAccount], arguments: ResourceArguments
    ) -> Json:
        with self._bench.vault.write() as records:
            records.resources.delete(kind, arguments.region, arguments.name)
            if kind is VirtualNetwork:
                forget_mappings(records, arguments.region, arguments.name)
        return {}

    def _check_place(self, records: Records, resource: Grouped) -> None:
        if records.resources.find(Region, "", resource.region) is None:
            raise NotFound(f"there is no region {resource.region}", field="region")
        if isinstance(resource, ResourceGroup):
            return
        group = resource.resource_group
        if records.resources.find(ResourceGroup, resource.region, group) is None:
            raise NotFound(
                f"there is no resource group {group} in region {resource.region}",
                field="resource_group",
            )

    def _exists(self, records: Records, resource: Grouped) -> bool:
        found = records.resources.find(type(resource), resource.region, resource.name)
        if found is None:
            return False
        if found.state is ResourceState.READY and found.requested == as_requested(resource):
            return True
        kind = KINDS[type(resource)].replace("-", " ")
        if found.state is not ResourceState.READY:
            raise Conflict(f"{kind} {resource.name} is still {found.state.value}", field="name")
        raise Conflict(
            f"{kind} {resource.name} exists in {resource.region} with other settings", field="name"
        )

    def _check_unused(self, records: Records, kind: type[Grouped], region: str, name: str) -> None:
        users = _USERS[kind](load_inventory(records, [region]), region, name)
        if users:
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            raise Conflict(
                f"{KINDS[kind].replace('-', ' ')} {name} is in use: {', '.join(users[:3])}{more}",
                hint="delete them first, or `leeward resource-group delete --with-contents`"
                if kind is ResourceGroup
                else "delete what uses it first",
            )


def is_unused(records: Records, kind: type[Grouped], region: str, name: str) -> bool:
    """Say whether nothing is in the resource and nothing needs it."""
    return not _USERS[kind](load_inventory(records, [region]), region, name)


def mapping_name(mapping: NetworkMapping) -> str:
    """Return the name a mapping is stored under: one per source network and target region."""
    return f"{mapping.source_region}/{mapping.source_network}/{mapping.target_region}"


def forget_mappings(records: Records, region: str, network: str) -> None:
    """No mapping from or to the network exists."""
    for stored in records.resources.listed(NetworkMapping, ""):
        mapping = stored.value
        if (region, network) in (
            (mapping.source_region, mapping.source_network),
            (mapping.target_region, mapping.target_network),
        ):
            records.resources.delete(NetworkMapping, "", stored.name)
