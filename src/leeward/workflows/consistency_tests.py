"""Test failover of a consistency group: a test VM of each item, all from one shared point.

Owns: that verb; that its test VMs run all, or nothing of them is left. Must not know: what makes a
test VM (rehearsing), how they are cleaned up later (rehearsal_clean_up).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.errors import Conflict, LeewardError
from leeward.model.groups import ConsistencyGroup
from leeward.model.recovery import Job, Rehearsal
from leeward.protocol.fabric import VmStatus
from leeward.recovery_plans.check import find_test_obstacles
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import (
    GROUP_MOVES,
    GROUP_TEST,
    GROUP_TESTS,
    check_resting,
    group_target,
    members_of,
)
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.rehearsing import BOOT_SECONDS, Rehearsing, Together
from leeward.workflows.shared_choice import SharedChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTestArguments:
    """rehearsals: by item id."""

    group: str
    recovery_point: str
    rehearsals: dict[str, Rehearsal]


class ConsistencyTests:
    """Submits and runs it."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        rehearsing: Rehearsing,
        choice: SharedChoice,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing
        self._choice = choice

    def start(self, vault: str, name: str, wanted: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that boots test VMs of all the group's items from the shared point
        `wanted`, on one host, in isolated networks that they share.

        Raises: NotFound, InvalidRequest; Conflict with every reason against it; Unavailable. Then
        nothing has changed.
        """

        def prepare(records: Records) -> GroupTestArguments:
            group = records.resources.get(ConsistencyGroup, vault, name).value
            check_resting(records, vault, name, (*GROUP_MOVES, *GROUP_TESTS))
            members = members_of(records, group)
            obstacles = find_test_obstacles(group.items, {r.item.name: r.item for r in members})
            if obstacles:
                raise Conflict(
                    f"group {name} cannot be tested: {'; '.join(obstacles)}",
                    field="state",
                    hint=f"`leeward consistency-group test-failover-cleanup {name}` or `leeward "
                    "test-failover-cleanup ITEM` takes test VMs away",
                )
            chosen = self._choice.choose(records, group, wanted)
            together = Together(
                scope=group_target(vault, name),
                host=self._rehearsing.host_of_all(records, members, f"group {name}"),
                group=name,
            )
            rehearsals = {}
            for record in members:
                part = chosen.points[record.item.id]
                rehearsal, _ = self._rehearsing.begin(records, record, part, together)
                rehearsals[record.item.id] = rehearsal
            return GroupTestArguments(group=name, recovery_point=chosen.id, rehearsals=rehearsals)

        return self._jobs().submit(GROUP_TEST, group_target(vault, name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """All test VMs run beside everything else, or nothing of them is left."""
        arguments = job.arguments(GroupTestArguments)
        rehearsals = arguments.rehearsals
        try:
            job.orders(
                "boot",
                lambda: self._rehearsing.boot_all(rehearsals),
                VmStatus,
                timeout_seconds=BOOT_SECONDS,
            )
            job.record_step("record", lambda: self._started(arguments), dict[str, object])
        except LeewardError:
            sentence = f"the test failover of group {arguments.group} has failed or was cancelled"
            job.undo_orders("clean up", lambda: self._rehearsing.end_all(rehearsals))
            job.step(
                "forget",
                lambda _: self._rehearsing.forget_all(rehearsals, sentence),
                dict[str, object],
                is_undo=True,
            )
            raise
        first = next(iter(rehearsals.values()))
        return {
            "group": arguments.group,
            "region": first.region,
            "host": first.host,
            "recovery_point": arguments.recovery_point,
        }

    def _started(self, arguments: GroupTestArguments) -> Json:
        sentence = (
            f"in the test of group {arguments.group} from {arguments.recovery_point}, reachable by "
            "nobody outside the networks that its test VMs share"
        )
        for item_id, rehearsal in arguments.rehearsals.items():
            self._rehearsing.record_running(item_id, rehearsal, sentence)
        return {}
