"""Routes of vaults, policies and replicated items.

Owns: their paths, and an item's health beside it. Must not know: what the verbs do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import bodies
from leeward.api.access import KeyOf, ServiceOf
from leeward.api.replies import NamePart, accepted, gone, page, reply
from leeward.core.codec import to_plain
from leeward.core.errors import InvalidRequest
from leeward.model.drills import readiness
from leeward.model.recovery import ItemState, Job, Policy, ReplicatedItem, Vault
from leeward.model.resources import VirtualMachine
from leeward.protection.update import ItemChanges
from leeward.protocol.messages import HydrationStatus, ProcessingStatus, ReplicationStatus
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.monitor import source_agent
from leeward.workflows.service import Service
from leeward.workflows.specs import vm_id

router = APIRouter(tags=["vaults"])

_ITEMS = "/vaults/{vault}/replicated-items"
_MOVED = frozenset(
    {
        ItemState.FAILING_OVER,
        ItemState.FAILED_OVER,
        ItemState.COMMITTED,
        ItemState.REPROTECTING,
    }
)
_FAILED_OVER = frozenset({ItemState.FAILED_OVER, ItemState.COMMITTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How an item's replication is now; null where nobody has told. replication_age_seconds: how
    long ago the source's agent was heard that told `replication`. rpo_seconds: age of the newest
    recovery point, or for how long something has been written that it lacks, if that is less; null
    without a point and once the item has failed over."""

    replication: ReplicationStatus | None
    replication_age_seconds: float | None
    processing: ProcessingStatus | None
    hydration: HydrationStatus | None
    rpo_seconds: float | None


# --- vaults and policies


@router.get("/vaults")
def list_vaults(service: ServiceOf) -> Response:
    """Every vault."""
    with service.bench.vault.read() as records:
        return page([stored.value for stored in records.resources.listed(Vault)])


@router.get("/vaults/{vault}", response_model=Vault)
def get_vault(service: ServiceOf, vault: NamePart) -> Response:
    """One vault."""
    with service.bench.vault.read() as records:
        return reply(records.resources.get(Vault, "", vault).value)


@router.put("/vaults/{vault}", response_model=Vault)
def put_vault(service: ServiceOf, vault: NamePart, body: bodies.EmptyBody) -> Response:
    """The vault exists, with a policy named "default"."""
    return reply(service.resources.create_vault(vault))


@router.get("/vaults/{vault}/keys")
def list_keys(service: ServiceOf, vault: NamePart) -> Response:
    """The encryption keys that nodes have, by id, and who lacks them. Never a key itself."""
    return page(service.keys.uses(vault))


@router.post("/vaults/{vault}/use-key", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def use_key(service: ServiceOf, key: KeyOf, vault: NamePart, body: bodies.UseKeyBody) -> Response:
    """Everything new in the vault is being encrypted with that key."""
    return accepted(service.keys.use(vault, body.key_id, key))


@router.post("/rebuild", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def rebuild(service: ServiceOf, key: KeyOf, body: bodies.RebuildBody) -> Response:
    """The items that stores hold are being made known, with their vaults and resources."""
    return accepted(service.rebuilding.rebuild(body.stores, region=body.region, key=key))


@router.delete("/vaults/{vault}", status_code=HTTPStatus.NO_CONTENT)
def delete_vault(service: ServiceOf, vault: NamePart) -> Response:
    """The vault is gone; refused while it has items."""
    service.resources.delete_vault(vault)
    return gone()


@router.get("/vaults/{vault}/policies")
def list_policies(service: ServiceOf, vault: NamePart) -> Response:
    """The vault's replication policies."""
    with service.bench.vault.read() as records:
        records.resources.get(Vault, "", vault)
        return page([stored.value for stored in records.resources.listed(Policy, vault)])


@router.get("/vaults/{vault}/policies/{name}", response_model=Policy)
def get_policy(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """One replication policy."""
    with service.bench.vault.read() as records:
        return reply(records.resources.get(Policy, vault, name).value)


@router.put("/vaults/{vault}/policies/{name}", response_model=Policy)
def put_policy(
    service: ServiceOf, vault: NamePart, name: NamePart, body: bodies.PolicyBody
) -> Response:
    """The policy is as given; items that follow it are told at once."""
    return reply(service.policies.put(vault, body.policy(name)))


@router.delete("/vaults/{vault}/policies/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_policy(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """The policy is gone; refused while an item follows it."""
    service.resources.delete_policy(vault, name)
    return gone()


# --- replicated items


@router.get(_ITEMS)
def list_items(service: ServiceOf, vault: NamePart) -> Response:
    """The vault's replicated items and their health."""
    with service.bench.vault.read() as records:
        records.resources.get(Vault, "", vault)
        return page([_shown(service, records, r) for r in records.items.listed(vault=vault)])


@router.get(_ITEMS + "/{item}", response_model=ReplicatedItem)
def get_item(service: ServiceOf, vault: NamePart, item: NamePart) -> Response:
    """A replicated item; `health` is how its replication is now."""
    with service.bench.vault.read() as records:
        return reply(_shown(service, records, records.items.get(vault, item)))


@router.post(_ITEMS, status_code=HTTPStatus.ACCEPTED, response_model=Job)
def protect(service: ServiceOf, key: KeyOf, vault: NamePart, body: bodies.ProtectBody) -> Response:
    """The VM is being protected (202); with `plan_only` the plan (200), and nothing is made."""
    if body.plan_only:
        return reply(service.protection.plan(vault, body.options()))
    if before := service.jobs.replayed(key):
        return accepted(before)
    return accepted(service.protection.protect(vault, body.options(), key))


@router.delete(_ITEMS + "/{item}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def disable(
    service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart, delete_replica: bool = False
) -> Response:
    """Protection is being ended; with `delete_replica` what was stored in the target goes too."""
    return accepted(service.disabling.disable(vault, item, delete_replica=delete_replica, key=key))


@router.post(_ITEMS + "/{item}/update", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def update_item(
    service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart, body: bodies.UpdateItemBody
) -> Response:
    """What the VM becomes by a failover is as given from now on; its worker is being told. With
    `cache_account` the item is going over to that one, and nothing else is changed."""
    changes = body.changes()
    if not body.cache_account:
        return accepted(service.updates.update(vault, item, changes, key))
    if changes != ItemChanges():
        raise InvalidRequest(
            "the cache account is changed alone", field="cache_account", hint="ask twice"
        )
    return accepted(service.caches.change(vault, item, body.cache_account, key))


@router.get(_ITEMS + "/{item}/recovery-points")
def list_points(service: ServiceOf, vault: NamePart, item: NamePart) -> Response:
    """The item's recovery points, newest first."""
    with service.bench.vault.read() as records:
        record = records.items.get(vault, item)
        damaged = service.bench.live.quarantined(record.worker_id, record.item.id)
        points = records.points.listed(record.item.id)
        shared = service.consistency.shared_of(records, record)
        return page(
            [
                replace(
                    point,
                    is_quarantined=point.id in damaged,
                    shared=point.shared if point.id in shared else None,
                )
                for point in points
            ]
        )


@router.post(
    _ITEMS + "/{item}/recovery-points", status_code=HTTPStatus.ACCEPTED, response_model=Job
)
def create_point(service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart) -> Response:
    """The guest is being frozen for an application-consistent point; where it cannot be, the point
    is crash-consistent and the job's result says why."""
    return accepted(service.points.create(vault, item, key))


@router.post(_ITEMS + "/{item}/scrub", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def scrub(
    service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart, body: bodies.ScrubBody
) -> Response:
    """Everything stored of the item is being read and verified; damage is quarantined and healed,
    unless `dry_run` asks for the report alone."""
    return accepted(service.scrubbing.scrub(vault, item, dry_run=body.dry_run, key=key))


@router.post(_ITEMS + "/{item}/compact", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def compact(
    service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart, body: bodies.CompactBody
) -> Response:
    """The space of dropped recovery points is being reclaimed, as far as nobody can be reading it;
    with `dry_run` the job only says how the item's space stands."""
    return accepted(service.space.compact(vault, item, dry_run=body.dry_run, key=key))


@router.post(_ITEMS + "/{item}/failover", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def failover(
    service: ServiceOf,
    key: KeyOf,
    vault: NamePart,
    item: NamePart,
    body: bodies.FailoverBody,
) -> Response:
    """The item is being failed over: the source is fenced, the VM starts in the target region.
    With `planned` the source is shut down first, and nothing is lost."""
    if body.planned:
        return accepted(
            service.planned.failover(
                vault, item, body.recovery_point, power_off_seconds=body.power_off_seconds, key=key
            )
        )
    return accepted(service.failovers.failover(vault, item, body.recovery_point, key))


@router.post(
    _ITEMS + "/{item}/change-recovery-point",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Job,
)
def change_point(
    service: ServiceOf,
    key: KeyOf,
    vault: NamePart,
    item: NamePart,
    body: bodies.ChangePointBody,
) -> Response:
    """The failed-over VM is being started anew from another point; what it wrote is lost."""
    return accepted(service.failovers.change(vault, item, body.recovery_point, key))


@router.post(_ITEMS + "/{item}/commit", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def commit(service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart) -> Response:
    """The failover is being made final."""
    return accepted(service.failovers.commit(vault, item, key))


@router.post(_ITEMS + "/{item}/test-failover", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def start_rehearsal(
    service: ServiceOf,
    key: KeyOf,
    vault: NamePart,
    item: NamePart,
    body: bodies.RehearsalBody | None = None,
) -> Response:
    """A test VM is being booted, isolated or in a network for tests; replication goes on."""
    wanted = body or bodies.RehearsalBody()
    job = service.rehearsals.start(
        vault,
        item,
        wanted.recovery_point,
        forwards=wanted.forwards,
        network=wanted.network,
        networks=wanted.networks,
        key=key,
    )
    return accepted(job)


@router.post(
    _ITEMS + "/{item}/test-failover-cleanup", status_code=HTTPStatus.ACCEPTED, response_model=Job
)
def clean_up_rehearsal(service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart) -> Response:
    """Every trace of the test VM is being removed."""
    return accepted(service.rehearsals.clean_up(vault, item, key))


@router.post(_ITEMS + "/{item}/undo-commit", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def undo_commit(service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart) -> Response:
    """The commit is being taken back: the recovery point can be changed again."""
    return accepted(service.reprotection.undo_commit(vault, item, key))


@router.post(_ITEMS + "/{item}/reprotect", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def reprotect(service: ServiceOf, key: KeyOf, vault: NamePart, item: NamePart) -> Response:
    """The failed-over VM is being replicated back to the region it came from."""
    return accepted(service.reprotection.reprotect(vault, item, key))


def _shown(service: Service, records: Records, record: ItemRecord) -> dict[str, object]:
    plain: dict[str, object] = to_plain(record.item)
    ready = readiness(
        record.item.last_drill,
        target_region=record.item.target_region,
        now_ns=service.bench.clock.now_ns(),
    )
    return plain | {
        "target": to_plain(_target(records, record)),
        "health": to_plain(_health(service, records, record)),
        "readiness": to_plain(ready),
    }


def _target(records: Records, record: ItemRecord) -> VirtualMachine:
    """Return the VM that a failover makes; once it has, the VM as it has become since."""
    planned = record.target_vm
    if record.item.state not in _FAILED_OVER:
        return planned
    made = records.resources.find(VirtualMachine, planned.region, planned.name)
    return made.value if made else planned


def _health(service: Service, records: Records, record: ItemRecord) -> Health:
    live, item = service.bench.live, record.item
    agent = source_agent(records, record)
    target = service.bench.find_agent(records, record.target_vm)
    newest = None
    if item.state not in _MOVED:
        newest = service.monitor.current_time_ns(records, record)
    replication = live.replication(agent.id, item.id) if agent else None
    return Health(
        replication=replication,
        replication_age_seconds=live.silent_seconds(agent.id) if agent and replication else None,
        processing=live.processing(record.worker_id, item.id),
        hydration=live.hydration(target.id, vm_id(record.target_vm.name)) if target else None,
        rpo_seconds=None if newest is None else (service.bench.clock.now_ns() - newest) / 1e9,
    )
