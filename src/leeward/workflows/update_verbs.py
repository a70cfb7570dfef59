"""Changing what a protected VM becomes.

Owns: that the vault and the item's catalog both have it. Must not know: what may be changed, that
is protection.update's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import NotFound
from leeward.model.recovery import Job, Policy
from leeward.protection.health import FOLLOWING
from leeward.protection.inventory import Protected
from leeward.protection.update import ItemChanges, plan_update
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.inventory import load_inventory
from leeward.workflows.item_orders import go_on_processing
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.policy_verbs import check_policy_key, source_orders

ITEM_UPDATE = "item.update"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateArguments:
    item_id: str


class UpdateVerbs:
    """Submits and runs updates."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def update(
        self, vault: str, name: str, changes: ItemChanges, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that tells the item's worker; the vault has the changes already, and a
        failover from now on heeds them. Raises: NotFound, InvalidRequest, Conflict; then nothing
        has changed."""

        def prepare(records: Records) -> UpdateArguments:
            record = records.items.get(vault, name)
            before = Protected(
                item=record.item, target_vm=record.target_vm, cache_region=record.cache_region
            )
            inventory = load_inventory(records, [record.item.target_region])
            after = plan_update(inventory, before, changes)
            if changes.memory_mib:
                self._bench.check_memory(records, after.target_vm)
            record = replace(record, item=after.item, target_vm=after.target_vm)
            if changes.policy:
                _check_policy(self._bench, records, record)
            records.items.update(record)
            return UpdateArguments(item_id=record.item.id)

        return self._jobs().submit(ITEM_UPDATE, item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The item's catalog tells of the changes, should the vault be lost, and its source heeds
        its policy; nodes that are silent hear of it when they are back."""
        arguments = job.arguments(UpdateArguments)
        job.undo_orders("worker", lambda: self._worker_orders(arguments.item_id))
        job.undo_orders("source", lambda: self._source_orders(arguments.item_id))
        return {"item_id": arguments.item_id}

    def _worker_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            record = records.items.find(item_id)
            if record is None or not record.worker_id or not record.is_replicating:
                return []
            return [go_on_processing(records, record)]

    def _source_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            record = records.items.find(item_id)
            if record is None or not record.is_replicating or record.item.state not in FOLLOWING:
                return []
            return source_orders(records, record)


def _check_policy(bench: Bench, records: Records, record: ItemRecord) -> None:
    """Return if the item can follow its policy. Raises: NotFound, Conflict."""
    vault, policy = record.item.vault, record.item.policy
    if records.resources.find(Policy, vault, policy) is None:
        raise NotFound(
            f"vault {vault} has no policy {policy}",
            field="policy",
            hint=f"`leeward policy create {policy} --vault {vault}`",
        )
    check_policy_key(bench, records, record)
