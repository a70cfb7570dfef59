"""Consistency groups moved as one: failed over, started from another shared point.

Owns: that all of a group's items end at their parts of one shared point, and that what one of them
could not do can be asked for again. Must not know: how one item moves (failover_verbs). Items move
by jobs of their own: they outlive the group's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from leeward.core.errors import Conflict, LeewardError, Unavailable
from leeward.failover.shared import MOVED, choose_other
from leeward.model.groups import ConsistencyGroup, SharedPoint
from leeward.model.recovery import ItemState, Job, check_transition
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import (
    GROUP_CHANGE,
    GROUP_FAILOVER,
    GROUP_MOVES,
    check_resting,
    group_target,
    members_of,
)
from leeward.workflows.engine import Json
from leeward.workflows.failover_verbs import FailoverVerbs
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.shared_choice import SharedChoice
from leeward.workflows.side_by_side import Move, SideBySide


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMoveArguments:
    vault: str
    group: ConsistencyGroup
    recovery_point: str


class ConsistencyMoves:
    """Submits and runs them."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        failovers: FailoverVerbs,
        side_by_side: SideBySide,
        choice: SharedChoice,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._failovers = failovers
        self._side_by_side = side_by_side
        self._choice = choice

    # --- submitting

    def failover(
        self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that fails all the group's items over to the shared point `wanted`.

        Asked again after it failed, those left fail over to the point the others run from. Raises:
        NotFound, InvalidRequest, Conflict, Unavailable; then nothing has happened.
        """

        def prepare(records: Records) -> GroupMoveArguments:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            check_resting(records, vault, name, GROUP_MOVES)
            self._choice.choose(records, group, wanted)
            for record in members_of(records, group):
                self._check_movable(records, record)
            return GroupMoveArguments(vault=vault, group=group, recovery_point=wanted)

        return self._jobs().submit(GROUP_FAILOVER, group_target(vault, name), prepare, key)

    def change(self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that starts all the group's VMs anew from the shared point `wanted`; what
        they wrote since is lost. One that runs from its part of it already is left alone.

        Raises: NotFound, InvalidRequest; Conflict unless all have failed over and none is
        committed; Unavailable; then nothing has happened.
        """

        def prepare(records: Records) -> GroupMoveArguments:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            check_resting(records, vault, name, GROUP_MOVES)
            chosen = self._choose_other(records, group, wanted)
            for record in members_of(records, group):
                agent = self._bench.agent_of(records, record.target_vm)
                if not self._bench.is_heard(agent):
                    raise Unavailable(
                        f"{agent.label} does not answer, and {record.item.target_vm} may run there",
                        hint="make that host answer, then ask again",
                    )
            return GroupMoveArguments(vault=vault, group=group, recovery_point=chosen.id)

        return self._jobs().submit(GROUP_CHANGE, group_target(vault, name), prepare, key)

    # --- running

    def run_failover(self, job: RunningJob) -> Json:
        """Every item of the group runs in its target region from its part of one shared point. One
        that cannot does not stop the others; then the first error is raised."""
        arguments = job.arguments(GroupMoveArguments)
        chosen = job.step("choose", lambda _: self._choose(arguments), SharedPoint)
        return self._move(job, arguments.group, chosen, self._fail_over)

    def run_change(self, job: RunningJob) -> Json:
        """Every item of the group runs from its part of the other shared point. One that cannot
        does not stop the others; then the first error is raised."""
        arguments = job.arguments(GroupMoveArguments)
        chosen = job.step("choose", lambda _: self._chosen(arguments), SharedPoint)
        return self._move(job, arguments.group, chosen, self._start_anew)

    def _move(
        self,
        job: RunningJob,
        group: ConsistencyGroup,
        chosen: SharedPoint,
        begin: Callable[[RunningJob, ConsistencyGroup, dict[str, str]], Json],
    ) -> Json:
        parts = job.step("plan", lambda _: self._parts(group, chosen), dict[str, str])
        begun = job.step("begin", lambda _: begin(job, group, parts), dict[str, str])
        errors = []
        for name in group.items:
            try:
                wait = partial(self._side_by_side.wait, job, name, begun[name])
                job.step(name, wait, dict[str, object])
            except LeewardError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        job.step("check", lambda _: self._check_together(group, chosen, parts), dict[str, object])
        return {"group": group.name, "recovery_point": chosen.id, "points": parts}

    # --- steps

    def _choose(self, arguments: GroupMoveArguments) -> SharedPoint:
        group, wanted = arguments.group, arguments.recovery_point
        self._choice.wait_newest(group, wanted)
        with self._bench.vault.read() as records:
            return self._choice.choose(records, group, wanted)

    def _chosen(self, arguments: GroupMoveArguments) -> SharedPoint:
        with self._bench.vault.read() as records:
            return self._choose_other(records, arguments.group, arguments.recovery_point)

    def _choose_other(self, records: Records, group: ConsistencyGroup, wanted: str) -> SharedPoint:
        items = [record.item for record in members_of(records, group)]
        return choose_other(group, items, self._choice.listed(records, group), wanted)

    def _parts(self, group: ConsistencyGroup, chosen: SharedPoint) -> Json:
        """Return the items' recovery points, by name."""
        with self._bench.vault.read() as records:
            items = members_of(records, group)
        return {record.item.name: chosen.points[record.item.id] for record in items}

    def _fail_over(self, job: RunningJob, group: ConsistencyGroup, parts: dict[str, str]) -> Json:
        moves = [
            Move(vault=group.vault, item=name, recovery_point=point)
            for name, point in parts.items()
        ]
        return self._side_by_side.begin(job, moves)

    def _start_anew(self, job: RunningJob, group: ConsistencyGroup, parts: dict[str, str]) -> Json:
        changes = {
            name: partial(self._change_one, group.vault, name, point)
            for name, point in parts.items()
        }
        return self._side_by_side.begin_each(job, changes)

    def _change_one(self, vault: str, name: str, point: str, key: IdempotencyKey) -> str:
        with self._bench.vault.read() as records:
            item = records.items.get(vault, name).item
        if item.state is ItemState.FAILED_OVER and item.recovery_point == point:
            return ""
        return self._failovers.change(vault, name, point, key).id

    def _check_together(
        self, group: ConsistencyGroup, chosen: SharedPoint, parts: dict[str, str]
    ) -> Json:
        """Return when all run from the shared point: one may have been under way to another."""
        with self._bench.vault.read() as records:
            for record in members_of(records, group):
                item = record.item
                if item.recovery_point != parts[item.name]:
                    raise Conflict(
                        f"{item.name} runs from {item.recovery_point}, the others from {chosen.id}",
                        hint=f"`leeward change-recovery-point {item.name} {parts[item.name]}`",
                    )
        return {}

    def _check_movable(self, records: Records, record: ItemRecord) -> None:
        item = record.item
        if item.state in MOVED or item.state is ItemState.FAILING_OVER:
            return
        check_transition(item, ItemState.FAILING_OVER)
        self._bench.check_answering(records, item.target_region)
