"""Consistency groups: made, changed, taken apart.

Owns: that workers hear which items are in which group. Must not know: which items go together
(protection.groups), which points are whole (failover.shared), when points are shared
(conductor.py), how a group moves (consistency_moves.py) or is tested (consistency_tests.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.errors import Conflict
from leeward.core.ids import new_id
from leeward.model.groups import ConsistencyGroup, GroupStanding, SharedPoint
from leeward.model.recovery import Job, Vault
from leeward.protection.groups import check_group
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.conductor import Conductor
from leeward.workflows.consistency import (
    GROUP_APPLY,
    GROUP_MOVES,
    GROUP_TESTS,
    check_resting,
    group_of,
    group_target,
    members_of,
    shared_points,
)
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs

_BUSY = (*GROUP_MOVES, *GROUP_TESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyGroupArguments:
    """items: ids of those that were or are in the group."""

    vault: str
    group: str
    items: tuple[str, ...]


class ConsistencyVerbs:
    """Keeps groups and fails them over."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        conductor: Callable[[], Conductor],
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._conductor = conductor

    # --- asking

    def standing(self, vault: str, name: str) -> GroupStanding:
        """Return how the group does. Raises: NotFound."""
        with self._bench.vault.read() as records:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            return self._conductor().standing(records, group)

    def listed(self, vault: str) -> list[GroupStanding]:
        """Return how the vault's groups do. Raises: NotFound."""
        with self._bench.vault.read() as records:
            records.resources.get(Vault, "", vault)
            groups = records.resources.listed(ConsistencyGroup, vault)
            return [self._conductor().standing(records, stored.value) for stored in groups]

    def points(self, vault: str, name: str) -> tuple[SharedPoint, ...]:
        """Return the group's shared points, newest first. Raises: NotFound."""
        with self._bench.vault.read() as records:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            return self._shared(records, group)

    def shared_of(self, records: Records, record: ItemRecord) -> frozenset[str]:
        """Return the ids of the item's points that it shares with all of its group: a mark that
        others lack is worth nothing."""
        group = group_of(records, record.item.vault, record.item.name)
        shared = self._shared(records, group) if group else ()
        item_id = record.item.id
        return frozenset(point.points[item_id] for point in shared if item_id in point.points)

    # --- submitting

    def put(
        self, vault: str, name: str, items: tuple[str, ...], key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that tells the workers; the group is as given from now on.

        Raises: InvalidRequest, NotFound, Conflict; then nothing has changed.
        """

        def prepare(records: Records) -> ApplyGroupArguments:
            records.resources.get(Vault, "", vault)
            found = records.resources.find(ConsistencyGroup, vault, name)
            group = ConsistencyGroup(
                id=found.value.id if found else new_id("cg"),
                name=name,
                vault=vault,
                items=tuple(sorted(items)),
            )
            others = [o.value for o in records.resources.listed(ConsistencyGroup, vault)]
            wanted = {record.item.name: record.item for record in members_of(records, group)}
            check_group(group, wanted, others)
            check_resting(records, vault, name, _BUSY)
            if found is None:
                records.resources.insert(group, scope=vault, name=name)
            else:
                records.resources.update(found, value=group)
            touched = {*group.items, *(found.value.items if found else ())}
            return self._told(records, vault, name, tuple(touched))

        return self._submit(GROUP_APPLY, vault, name, prepare, key)

    def delete(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that tells the workers; the group is gone, and its shared points are from
        now on like any others. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> ApplyGroupArguments:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            check_resting(records, vault, name, _BUSY)
            if any(_is_tested(record, name) for record in records.items.listed(vault=vault)):
                raise Conflict(
                    f"group {name} has test VMs",
                    field="group",
                    hint=f"`leeward consistency-group test-failover-cleanup {name}` first",
                )
            records.resources.delete(ConsistencyGroup, vault, name)
            return self._told(records, vault, name, group.items)

        return self._submit(GROUP_APPLY, vault, name, prepare, key)

    # --- running

    def run_apply(self, job: RunningJob) -> Json:
        """Workers keep or drop the items' shared points as the vault's groups want it; one that
        does not answer is told when it comes back."""
        arguments = job.arguments(ApplyGroupArguments)
        job.undo_orders("workers", lambda: self._processing_orders(arguments))
        return {"group": arguments.group}

    # --- steps

    def _processing_orders(self, arguments: ApplyGroupArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                go_on_processing(records, record)
                for record in records.items.by_ids(arguments.items).values()
                if record.worker_id and record.is_replicating
            ]

    # --- shared

    def _submit(
        self,
        verb: str,
        vault: str,
        name: str,
        prepare: Callable[[Records], object],
        key: IdempotencyKey | None,
    ) -> Job:
        job = self._jobs().submit(verb, group_target(vault, name), prepare, key)
        self._conductor().look_soon()
        return job

    def _shared(self, records: Records, group: ConsistencyGroup) -> tuple[SharedPoint, ...]:
        return shared_points(self._bench, records, group, members_of(records, group))

    def _told(
        self, records: Records, vault: str, name: str, items: tuple[str, ...]
    ) -> ApplyGroupArguments:
        ids = sorted(record.item.id for record in records.items.named(vault, items))
        return ApplyGroupArguments(vault=vault, group=name, items=tuple(ids))


def _is_tested(record: ItemRecord, group: str) -> bool:
    rehearsal = record.item.rehearsal
    return rehearsal is not None and rehearsal.group == group
