"""Leeward's API as typed calls.

Owns: which path is which noun. Must not know: terminals. Long operations return the Job that
carries them out; `client.jobs` waits for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from leeward.client.drills import Drills
from leeward.client.groups import ConsistencyGroups
from leeward.client.mappings import Mappings
from leeward.client.plan_drills import PlanDrills
from leeward.client.plans import Plans
from leeward.client.views import (
    EnrolmentToken,
    EventView,
    GroupView,
    ItemView,
    KeyView,
    MachineView,
    NodeView,
)
from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, NotFound
from leeward.model.recovery import Job, Policy, RecoveryPoint, Vault
from leeward.model.resources import (
    AvailabilitySet,
    Disk,
    Region,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.plan import ProtectionPlan

if TYPE_CHECKING:
    from leeward.client.rest import Reply, Rest  # httpx loads slowly: only who connects pays

T = TypeVar("T")
Resource = ResourceGroup | VirtualNetwork | StorageAccount | AvailabilitySet | VirtualMachine

COLLECTIONS: dict[type, str] = {
    ResourceGroup: "resource-groups",
    VirtualNetwork: "networks",
    StorageAccount: "storage-accounts",
    AvailabilitySet: "availability-sets",
    VirtualMachine: "virtual-machines",
    MachineView: "virtual-machines",
}


@dataclass(frozen=True, slots=True)
class _Page:
    items: list[Any]
    next: str | None = None


class Client:
    """One service. Thread-safe as httpx is; close it, or use it as a context manager."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self.plans = Plans(rest)
        self.groups = ConsistencyGroups(rest)
        self.mappings = Mappings(rest)
        self.drills = Drills(rest)
        self.plan_drills = PlanDrills(rest)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._rest.close()

    # --- regions and nodes

    def regions(self) -> tuple[Region, ...]:
        """Return every region."""
        return self._list("/regions", Region)

    def region(self, name: str) -> Region:
        """Return a region. Raises: NotFound."""
        return self._rest.get(_path("regions", name)).parse(Region)

    def create_region(self, name: str) -> Region:
        """The region exists."""
        return self._rest.put(_path("regions", name), {}).parse(Region)

    def delete_region(self, name: str) -> Job | None:
        """The region is going or gone. Raises: Conflict while something is in it."""
        return _job(self._rest.delete(_path("regions", name)))

    def enrolment_token(self, region: str) -> EnrolmentToken:
        """Return a fresh one-time token for one node of `region`."""
        return self._rest.post(_path("regions", region, "enrolment-tokens")).parse(EnrolmentToken)

    def nodes(self) -> tuple[NodeView, ...]:
        """Return every agent and worker."""
        return self._list("/nodes", NodeView)

    def forget_node(self, node_id: str, *, with_vms: bool = False) -> None:
        """The node is not enrolled any more. with_vms: nor are its VMs known. Raises: NotFound,
        Conflict while it answers or is needed."""
        self._rest.delete(_path("nodes", node_id), {"with_vms": "true"} if with_vms else {})

    # --- resources of a region

    def list(self, kind: type[T], region: str) -> tuple[T, ...]:
        """Return the region's resources of that kind (MachineView for VMs with their status)."""
        return self._list(_path("regions", region, COLLECTIONS[kind]), kind)

    def get(self, kind: type[T], region: str, name: str) -> T:
        """Return one resource. Raises: NotFound."""
        return self._rest.get(_path("regions", region, COLLECTIONS[kind], name)).parse(kind)

    def put(self, resource: Resource) -> Job | None:
        """The resource is being made as described; None: it exists already.

        Raises: InvalidRequest, Conflict, NotFound naming what is wrong.
        """
        body = to_plain(resource)
        path = _path("regions", body.pop("region"), COLLECTIONS[type(resource)], body.pop("name"))
        return _job(self._rest.put(path, body))

    def change(self, kind: type, region: str, name: str, changes: dict[str, object]) -> Job | None:
        """The resource is being changed; None: it is as wanted. What `changes` leaves out stays.

        Raises: NotFound; InvalidRequest, Conflict naming what is wrong.
        """
        path = _path("regions", region, COLLECTIONS[kind], name)
        return _job(self._rest.patch(path, to_plain(changes)))

    def group_contents(self, region: str, name: str) -> GroupView:
        """Return what goes with a resource group. Raises: NotFound."""
        path = _path("regions", region, COLLECTIONS[ResourceGroup], name, "contents")
        return self._rest.get(path).parse(GroupView)

    def delete_group_with_contents(self, region: str, name: str) -> Job | None:
        """The resource group is going with all that is in it. Raises: NotFound, Conflict."""
        path = _path("regions", region, COLLECTIONS[ResourceGroup], name)
        return _job(self._rest.delete(path, {"with_contents": "true"}))

    def delete(self, kind: type, region: str, name: str) -> Job | None:
        """The resource is going; None: it is gone. Raises: NotFound, Conflict while it is used."""
        return _job(self._rest.delete(_path("regions", region, COLLECTIONS[kind], name)))

    def start_machine(self, region: str, name: str) -> Job | None:
        """The VM is being started."""
        return self._machine_verb(region, name, "start", {})

    def stop_machine(self, region: str, name: str, *, force: bool) -> Job | None:
        """The VM is being stopped; with `force` the guest is not asked."""
        return self._machine_verb(region, name, "stop", {"force": force})

    # --- vaults

    def vaults(self) -> tuple[Vault, ...]:
        """Return every vault."""
        return self._list("/vaults", Vault)

    def vault(self, name: str) -> Vault:
        """Return a vault. Raises: NotFound."""
        return self._rest.get(_path("vaults", name)).parse(Vault)

    def create_vault(self, name: str) -> None:
        """The vault exists."""
        self._rest.put(_path("vaults", name), {})

    def vault_keys(self, name: str) -> tuple[KeyView, ...]:
        """Return the encryption keys that nodes have, by id."""
        return self._list(_path("vaults", name, "keys"), KeyView)

    def use_vault_key(self, name: str, key_id: str) -> Job | None:
        """New data of the vault is being encrypted with that key. Raises: Conflict while a node
        that needs it has not got it."""
        return _job(self._rest.post(_path("vaults", name, "use-key"), {"key_id": key_id}))

    def rebuild_vaults(self, stores: Sequence[str], *, region: str) -> Job | None:
        """What the stores hold is being made known to this service."""
        return _job(self._rest.post("/rebuild", {"stores": list(stores), "region": region}))

    def scrub(self, item: ItemView, *, dry_run: bool) -> Job | None:
        """Everything stored of the item is being verified."""
        path = _path("vaults", item.vault, "replicated-items", item.name, "scrub")
        return _job(self._rest.post(path, {"dry_run": dry_run}))

    def read_replicas(self, region: str, account: str) -> Job | None:
        """What storage accounts have of which item is being read. Raises: NotFound."""
        return _job(self._rest.post("/storage/replicas", {"region": region, "account": account}))

    def delete_replica(self, item_id: str, *, even_if_held: bool) -> Job | None:
        """All that is stored of an item that nothing protects is being erased. Raises: Conflict
        while it is in use."""
        path = _path("storage", "replicas", item_id, "delete")
        return _job(self._rest.post(path, {"even_if_held": even_if_held}))

    def compact(self, item: ItemView, *, dry_run: bool) -> Job | None:
        """The space of the item's dropped recovery points is being reclaimed."""
        path = _path("vaults", item.vault, "replicated-items", item.name, "compact")
        return _job(self._rest.post(path, {"dry_run": dry_run}))

    def delete_vault(self, name: str) -> Job | None:
        """The vault is gone. Raises: Conflict while items are in it."""
        return _job(self._rest.delete(_path("vaults", name)))

    def policies(self, vault: str) -> tuple[Policy, ...]:
        """Return the vault's replication policies."""
        return self._list(_path("vaults", vault, "policies"), Policy)

    def policy(self, vault: str, name: str) -> Policy:
        """Return a policy. Raises: NotFound."""
        return self._rest.get(_path("vaults", vault, "policies", name)).parse(Policy)

    def put_policy(self, vault: str, policy: Policy) -> None:
        """The policy is as described."""
        body = to_plain(policy)
        self._rest.put(_path("vaults", vault, "policies", body.pop("name")), body)

    def delete_policy(self, vault: str, name: str) -> None:
        """The policy is gone. Raises: Conflict while an item follows it."""
        self._rest.delete(_path("vaults", vault, "policies", name))

    # --- replicated items

    def items(self, vault: str) -> tuple[ItemView, ...]:
        """Return the vault's replicated items."""
        return self._list(_path("vaults", vault, "replicated-items"), ItemView)

    def item(self, vault: str, name: str) -> ItemView:
        """Return a replicated item and its health. Raises: NotFound."""
        return self._rest.get(_path("vaults", vault, "replicated-items", name)).parse(ItemView)

    def find_item(self, name: str, vault: str | None = None) -> ItemView:
        """Return the item of that name or id, looked for in every vault unless one is named.

        Raises: NotFound; Conflict when several vaults hold one of that name.
        """
        vaults = [vault] if vault else [each.name for each in self.vaults()]
        known = [item for each in vaults for item in self.items(each)]
        found = [item for item in known if name in (item.name, item.id)]
        if not found:
            raise _no_item(name, [item.name for item in known])
        if len(found) > 1:
            raise Conflict(
                f"{name} is in several vaults: {', '.join(item.vault for item in found)}",
                hint="say which with --vault",
            )
        return self.item(found[0].vault, found[0].name)

    def protect(self, vault: str, request: dict[str, object]) -> Job | ProtectionPlan:
        """The VM is being protected: its Job; with `plan_only` the plan, and nothing is made."""
        reply = self._rest.post(_path("vaults", vault, "replicated-items"), request)
        return reply.parse(Job) if reply.status == 202 else reply.parse(ProtectionPlan)

    def recovery_points(self, item: ItemView) -> tuple[RecoveryPoint, ...]:
        """Return the item's recovery points, newest first."""
        points = self._list(_item_path(item, "recovery-points"), RecoveryPoint)
        return tuple(sorted(points, key=lambda point: point.time_ns, reverse=True))

    def create_recovery_point(self, item: ItemView) -> Job | None:
        """The item's guest is being frozen for an application-consistent recovery point."""
        return self._item_verb(item, "recovery-points", {})

    def update_item(self, item: ItemView, changes: dict[str, object]) -> Job | None:
        """What the item's VM becomes by a failover is being changed."""
        return self._item_verb(item, "update", changes)

    def failover(self, item: ItemView, recovery_point: str) -> Job | None:
        """The item is being failed over to "latest", "latest-processed" or a point's id."""
        return self._item_verb(item, "failover", {"recovery_point": recovery_point})

    def planned_failover(
        self, item: ItemView, *, recovery_point: str, power_off_seconds: float
    ) -> Job | None:
        """The item's VM is being shut down and failed over; nothing it wrote is lost."""
        body: dict[str, object] = {
            "recovery_point": recovery_point,
            "planned": True,
            "power_off_seconds": power_off_seconds,
        }
        return self._item_verb(item, "failover", body)

    def change_recovery_point(self, item: ItemView, recovery_point: str) -> Job | None:
        """The failed-over VM is being started again from another point."""
        return self._item_verb(item, "change-recovery-point", {"recovery_point": recovery_point})

    def commit(self, item: ItemView) -> Job | None:
        """The failover is being made final: the recovery point cannot be changed any more."""
        return self._item_verb(item, "commit", {})

    def undo_commit(self, item: ItemView) -> Job | None:
        """The commit is being taken back: the recovery point can be changed again."""
        return self._item_verb(item, "undo-commit", {})

    def test_failover(
        self,
        item: ItemView,
        recovery_point: str,
        *,
        forwards: tuple[int, ...],
        network: str = "",
        networks: dict[str, str] | None = None,
    ) -> Job | None:
        """A test VM is being booted from the point, in isolated networks or in some for tests."""
        body: dict[str, object] = {
            "recovery_point": recovery_point,
            "forwards": list(forwards),
            "network": network,
            "networks": networks or {},
        }
        return self._item_verb(item, "test-failover", body)

    def clean_up_test_failover(self, item: ItemView) -> Job | None:
        """Every trace of the test VM is being removed."""
        return self._item_verb(item, "test-failover-cleanup", {})

    def reprotect(self, item: ItemView) -> Job | None:
        """The failed-over VM is being replicated back to the region it came from."""
        return self._item_verb(item, "reprotect", {})

    def unprotect(self, item: ItemView, *, delete_replica: bool) -> Job | None:
        """The item is going; with `delete_replica` what was stored in the target too."""
        wanted = {"delete_replica": "true" if delete_replica else "false"}
        return _job(self._rest.delete(_item_path(item), wanted))

    # --- jobs

    def jobs(self, *, limit: int = 200) -> tuple[Job, ...]:
        """Return the newest `limit` jobs (1 to 1000) without their steps, newest first."""
        page = self._rest.get("/jobs", {"limit": str(limit)}).parse(_Page)
        return tuple(from_plain(each, Job) for each in page.items)

    def job(self, job_id: str) -> Job:
        """Return a job. Raises: NotFound."""
        return self._rest.get(_path("jobs", job_id)).parse(Job)

    def cancel_job(self, job_id: str) -> Job:
        """Return the job, which is asked to end and undo what it did. Raises: NotFound, Conflict
        when it has ended, or where that is not safe."""
        return self._rest.post(_path("jobs", job_id, "cancel"), {}).parse(Job)

    # --- events

    def events(self, *, limit: int, target: str = "") -> tuple[EventView, ...]:
        """Return the newest `limit` events (1 to 1000), newest first; to one target if given."""
        wanted = {"limit": str(limit), **({"target": target} if target else {})}
        page = self._rest.get("/events", wanted).parse(_Page)
        return tuple(from_plain(each, EventView) for each in page.items)

    # --- shared

    def _list(self, path: str, kind: type[T]) -> tuple[T, ...]:
        found: list[T] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self._rest.get(path, {"cursor": cursor} if cursor else {}).parse(_Page)
            found += [from_plain(each, kind) for each in page.items]
            cursor = page.next
        return tuple(found)

    def trim_machine(self, region: str, name: str) -> Job | None:
        """Return the job that gives back what the VM's guest does not use."""
        return self._machine_verb(region, name, "trim", {})

    def add_disk(self, region: str, name: str, disk: Disk) -> Job | None:
        """Return the job that gives the VM one more disk."""
        return self._machine_verb(region, name, "disks", to_plain(disk))

    def remove_disk(self, region: str, name: str, disk: str) -> Job | None:
        """Return the job that takes the disk from the VM and deletes it."""
        return _job(self._rest.delete(_disk_path(region, name, disk)))

    def grow_disk(self, region: str, name: str, disk: str, size_bytes: int) -> Job | None:
        """Return the job that makes the disk so large."""
        body = {"size_bytes": size_bytes}
        return _job(self._rest.patch(_disk_path(region, name, disk), body))

    def _machine_verb(
        self, region: str, name: str, verb: str, body: dict[str, object]
    ) -> Job | None:
        return _job(self._rest.post(_path("regions", region, "virtual-machines", name, verb), body))

    def _item_verb(self, item: ItemView, verb: str, body: dict[str, object]) -> Job | None:
        return _job(self._rest.post(_item_path(item, verb), body))


def _no_item(name: str, known: Sequence[str]) -> NotFound:
    """Return what to say of a name that no item has: most often it is one that was mistyped."""
    from difflib import get_close_matches  # only who mistypes pays

    _, is_path, bare = name.rpartition("/")
    close = get_close_matches(bare, known, n=1)
    if is_path and bare in known:
        hint = f"items are named without a region: {bare}"
    elif close:
        hint = f"did you mean {close[0]}? `leeward item list` shows all"
    else:
        hint = "`leeward item list`"
    return NotFound(f"there is no replicated item {name}", hint=hint)


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _disk_path(region: str, vm: str, disk: str) -> str:
    return _path("regions", region, "virtual-machines", vm, "disks", disk)


def _item_path(item: ItemView, *parts: str) -> str:
    return _path("vaults", item.vault, "replicated-items", item.name, *parts)


def _job(reply: Reply) -> Job | None:
    return reply.parse(Job) if reply.status == 202 else None
