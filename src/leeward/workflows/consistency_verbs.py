"""Consistency groups: made, changed, taken apart, failed over as one.

Owns: that workers hear which items are in which group, and that all of a group's items fail over to
one shared point. Must not know: which items go together (protection.groups), which points are whole
(failover.shared), when points are shared (conductor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError, Unavailable
from leeward.core.ids import new_id
from leeward.failover.plan import DRAIN_SECONDS
from leeward.failover.shared import LATEST_SHARED, MOVED, choose_shared
from leeward.model.groups import ConsistencyGroup, GroupStanding, SharedPoint
from leeward.model.recovery import ItemState, Job, Vault, check_transition
from leeward.protection.groups import check_group
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.conductor import Conductor
from leeward.workflows.consistency import group_of, group_target, members_of, shared_points
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.failover_verbs import FailoverVerbs
from leeward.workflows.item_specs import processing_spec
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_key
from leeward.workflows.planned_verbs import PlannedVerbs
from leeward.workflows.side_by_side import Move, SideBySide

GROUP_APPLY = "consistency-group.apply"
GROUP_FAILOVER = "consistency-group.failover"
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyGroupArguments:
    """items: ids of those that were or are in the group."""

    vault: str
    group: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFailoverArguments:
    vault: str
    group: ConsistencyGroup
    recovery_point: str


class ConsistencyVerbs:
    """Keeps groups and fails them over."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        failovers: FailoverVerbs,
        planned: PlannedVerbs,
        conductor: Callable[[], Conductor],
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._side_by_side = SideBySide(bench, jobs, failovers, planned)
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
            self._check_resting(records, vault, name)
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
            self._check_resting(records, vault, name)
            records.resources.delete(ConsistencyGroup, vault, name)
            return self._told(records, vault, name, group.items)

        return self._submit(GROUP_APPLY, vault, name, prepare, key)

    def failover(
        self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that fails all the group's items over to the shared point `wanted`.

        Asked again after it failed, those left fail over to the point the others run from. Raises:
        NotFound, InvalidRequest, Conflict, Unavailable; then nothing has happened.
        """

        def prepare(records: Records) -> GroupFailoverArguments:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            self._check_resting(records, vault, name)
            items = members_of(records, group)
            choose_shared(group, [r.item for r in items], self._shared(records, group), wanted)
            for record in items:
                self._check_movable(records, record)
            return GroupFailoverArguments(vault=vault, group=group, recovery_point=wanted)

        return self._submit(GROUP_FAILOVER, vault, name, prepare, key)

    # --- running

    def run_apply(self, job: RunningJob) -> Json:
        """Workers keep or drop the items' shared points as the vault's groups want it; one that
        does not answer is told when it comes back."""
        arguments = job.arguments(ApplyGroupArguments)
        job.undo_orders("workers", lambda: self._processing_orders(arguments))
        return {"group": arguments.group}

    def run_failover(self, job: RunningJob) -> Json:
        """Every item of the group runs in its target region from its part of one shared point. One
        that cannot does not stop the others; then the first error is raised."""
        arguments = job.arguments(GroupFailoverArguments)
        group = arguments.group
        chosen = job.step("choose", lambda _: self._choose(arguments), SharedPoint)
        moves = job.step("plan", lambda _: self._moves(group, chosen), dict[str, str])
        begun = job.step("begin", lambda _: self._begin(job, group, moves), dict[str, str])
        errors = []
        for name in group.items:
            try:
                wait = partial(self._side_by_side.wait, job, name, begun[name])
                job.step(name, wait, dict[str, object])
            except LeewardError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        job.step("check", lambda _: self._check_together(group, chosen, moves), dict[str, object])
        return {"group": group.name, "recovery_point": chosen.id, "points": moves}

    # --- steps

    def _choose(self, arguments: GroupFailoverArguments) -> SharedPoint:
        """Return the shared point. For the latest, one that all members have told of and that is
        not listed yet is waited for as `latest` of one item waits for its cache."""
        group, clock = arguments.group, self._bench.clock
        newest = self._conductor().newest_whole(group.id)
        is_latest = arguments.recovery_point == LATEST_SHARED
        deadline = clock.monotonic() + (DRAIN_SECONDS if is_latest else 0.0)
        while True:
            with self._bench.vault.read() as records:
                items = [record.item for record in members_of(records, group)]
                shared = self._shared(records, group)
            is_listed = not newest or any(point.id == newest for point in shared)
            if is_listed or clock.monotonic() >= deadline:
                return choose_shared(group, items, shared, arguments.recovery_point)
            with self._bench.signals.listen(item_key(items[0].id)) as listener:
                listener.wait(_LOOK_SECONDS)

    def _moves(self, group: ConsistencyGroup, chosen: SharedPoint) -> Json:
        with self._bench.vault.read() as records:
            items = members_of(records, group)
        return {record.item.name: chosen.points[record.item.id] for record in items}

    def _begin(self, job: RunningJob, group: ConsistencyGroup, moves: dict[str, str]) -> Json:
        return self._side_by_side.begin(
            job,
            [
                Move(vault=group.vault, item=name, recovery_point=point)
                for name, point in moves.items()
            ],
        )

    def _check_together(
        self, group: ConsistencyGroup, chosen: SharedPoint, moves: dict[str, str]
    ) -> Json:
        """Return when all run from the shared point: one may have been under way to another."""
        with self._bench.vault.read() as records:
            for record in members_of(records, group):
                item = record.item
                if item.recovery_point != moves[item.name]:
                    raise Conflict(
                        f"{item.name} runs from {item.recovery_point}, the others from {chosen.id}",
                        hint=f"`leeward change-recovery-point {item.name} {moves[item.name]}`",
                    )
        return {}

    def _processing_orders(self, arguments: ApplyGroupArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                Order(
                    node=records.nodes.get(record.worker_id),
                    verb=Verb.PROCESSING_START,
                    arguments=to_plain(processing_spec(records, record)),
                    key=record.item.id,
                )
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

    def _check_movable(self, records: Records, record: ItemRecord) -> None:
        item = record.item
        if item.state in MOVED or item.state is ItemState.FAILING_OVER:
            return
        check_transition(item, ItemState.FAILING_OVER)
        for role in (Role.AGENT, Role.WORKER):
            if not self._bench.answering(records, role, item.target_region):
                raise Unavailable(f"no {role.value} of region {item.target_region} answers")

    def _check_resting(self, records: Records, vault: str, name: str) -> None:
        under_way = records.jobs.open_on(GROUP_FAILOVER, group_target(vault, name))
        if under_way is not None:
            raise Conflict(
                f"group {name} is being failed over by {under_way.id}",
                hint=f"`leeward job show {under_way.id}` tells how far it is",
            )
