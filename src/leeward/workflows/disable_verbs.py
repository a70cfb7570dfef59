"""Disabling protection of an item.

Owns: when it may be disabled. Must not know: the steps of ending, those are ending.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import Conflict
from leeward.model.recovery import ItemState, Job, check_transition
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import group_of
from leeward.workflows.ending import Ending, Used, used_resources
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.resource_verbs import ResourceVerbs

_OF_JOBS = frozenset(
    {
        ItemState.PROTECTING,
        ItemState.FAILING_OVER,
        ItemState.REPROTECTING,
        ItemState.DISABLING,
    }
)
_FAILED_OVER = frozenset({ItemState.FAILED_OVER, ItemState.COMMITTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class DisableArguments:
    """used: what the item used, removed where nothing else does."""

    item_id: str
    delete_replica: bool
    used: Used


class DisableVerbs:
    """Submits and runs disabling."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], resources: ResourceVerbs) -> None:
        self._bench = bench
        self._jobs = jobs
        self._ending = Ending(bench, resources)

    def disable(
        self, vault: str, name: str, *, delete_replica: bool, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that ends the item's protection, the one under way if there is one.

        Raises: NotFound, Conflict.
        """

        def find(records: Records) -> Job | None:
            under_way = records.jobs.open_of_item(records.items.get(vault, name).item.id)
            return next((job for job in under_way if job.verb == "item.disable"), None)

        if job := self._jobs().join(key, find):
            return job

        def prepare(records: Records) -> DisableArguments:
            record = records.items.get(vault, name)
            _check(record, has_job=bool(records.jobs.open_of_item(record.item.id)))
            group = group_of(records, vault, name)
            if group is not None:
                raise Conflict(
                    f"{name} is in consistency group {group.name}",
                    hint=f"`leeward consistency-group update {group.name} --remove {name}`, or "
                    f"`leeward consistency-group delete {group.name}`",
                )
            item = replace(record.item, state=ItemState.DISABLING, problem="")
            records.items.update(replace(record, item=item, is_replicating=False))
            used = used_resources(item, record.target_vm, cache_region=record.cache_region)
            return DisableArguments(item_id=item.id, delete_replica=delete_replica, used=used)

        return self._jobs().submit("item.disable", item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The item is gone; nodes that do not answer hear of it when they come back."""
        arguments = job.arguments(DisableArguments)
        self._ending.end_item(
            job, arguments.item_id, arguments.used, delete_replica=arguments.delete_replica
        )
        return {}


def _check(record: ItemRecord, *, has_job: bool) -> None:
    """Return if the item may be disabled. has_job: a state that a job would lead out of can be left
    this way when that job was lost."""
    item = record.item
    if item.rehearsal is not None:
        raise Conflict(
            f"{item.name} has a test VM, which reads its recovery points",
            hint=f"`leeward test-failover-cleanup {item.name}` first",
        )
    if item.state in (ItemState.PROTECTING, ItemState.REPROTECTING) and has_job:
        raise Conflict(
            f"{item.name} is just being protected", hint="cancel that job, or wait a few seconds"
        )
    if has_job or item.state not in _OF_JOBS:
        check_transition(item, ItemState.DISABLING)
    if item.state in _FAILED_OVER and not record.is_hydrated:
        raise Conflict(
            f"{item.target_vm} in {item.target_region} still reads its recovery point: once "
            "nothing protects the replica, it could be deleted under the VM",
            hint=f"wait until its disks are local: `leeward item show {item.name}`",
        )
