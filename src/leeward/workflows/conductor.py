"""When a consistency group's next shared point is due, and how the last attempts went.

Owns: calling meetings in time, backing off, saying what is wrong. Must not know: how a meeting
goes (meetings.py), whether items fit together (protection.groups). One thread.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leeward.model.groups import ConsistencyGroup, GroupStanding, SharedPoint
from leeward.model.recovery import Policy, ReplicationState, SharedMark
from leeward.observability.log import get_logger
from leeward.protection.groups import find_difference, seconds_until_next
from leeward.protection.health import FOLLOWING
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import group_target, members_of, shared_points
from leeward.workflows.meetings import Meetings, Outcome
from leeward.workflows.monitor import source_agent
from leeward.workflows.resource_verbs import DEFAULT_POLICY
from leeward.workflows.ticking import Ticking

log = get_logger()

TICK_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""Between two looks for groups that were made or changed."""
FAILURES_TOLD = 3
"""Attempts in a row that come to nothing before somebody is told."""


@dataclass(slots=True)
class _Course:
    """What is remembered of one group; a restart of the service forgets it."""

    ended_at: float = float("-inf")
    """When the last attempt ended."""
    meeting: str = ""
    failures: int = 0
    attempts: int = 0
    voided: int = 0
    newest: SharedMark | None = None
    is_whole: bool = False
    """The last meeting came to a shared point."""
    problem: str = ""


class Conductor:
    """`start` calls meetings until `stop`; the rest may be asked from any thread."""

    def __init__(self, bench: Bench, meetings: Meetings) -> None:
        self._bench = bench
        self._meetings = meetings
        self._lock = threading.Lock()
        self._courses: dict[str, _Course] = {}
        self._groups: tuple[tuple[ConsistencyGroup, float], ...] = ()
        self._looked_at = float("-inf")
        self._members: frozenset[str] = frozenset()
        self._ticking = Ticking(
            "conductor", self.tick, seconds=TICK_SECONDS, pause_seconds=LOOK_SECONDS
        )

    def start(self) -> None:
        """Groups have shared points from time to time."""
        self._ticking.start()

    def stop(self) -> None:
        """No more meetings are called."""
        self._ticking.stop()

    @property
    def members(self) -> frozenset[str]:
        """Ids of the items that are in a group, as of the last look."""
        return self._members

    def look_soon(self) -> None:
        """Groups or policies have changed."""
        self._looked_at = float("-inf")

    def newest_whole(self, group_id: str) -> str:
        """Return the id of the newest shared point that all members have told of, "" if none has
        been made since this process was started. It may not be listed yet."""
        with self._lock:
            course = self._courses.get(group_id)
            return course.newest.id if course and course.newest else ""

    def standing(self, records: Records, group: ConsistencyGroup) -> GroupStanding:
        """Return how the group does."""
        items = members_of(records, group)
        shared = shared_points(self._bench, records, group, items)
        with self._lock:
            course = replace(self._courses.get(group.id, _Course()))
        return GroupStanding(
            group=group,
            interval_seconds=_interval_seconds(records, items),
            points=len(shared),
            newest=shared[0] if shared else None,
            attempts=course.attempts,
            voided=course.voided,
            problem=course.problem,
        )

    # --- the thread

    def tick(self) -> None:
        """Meetings that are due are called, those that have ended are noted."""
        now = self._bench.clock.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look()
        for group, interval_seconds in self._groups:
            with self._lock:
                course = self._courses.setdefault(group.id, _Course())
            if course.meeting:
                outcome = self._meetings.outcome(course.meeting)
                if outcome is not None:
                    self._note(group, course, outcome)
            elif now - course.ended_at >= seconds_until_next(interval_seconds, course.failures):
                self._call(group, course)

    def _look(self) -> None:
        with self._bench.vault.read() as records:
            groups = [stored.value for stored in records.resources.listed(ConsistencyGroup)]
            items = [members_of(records, group) for group in groups]
            intervals = [_interval_seconds(records, found) for found in items]
        self._groups = tuple(zip(groups, intervals, strict=True))
        self._members = frozenset(record.item.id for found in items for record in found)
        with self._lock:
            for gone in self._courses.keys() - {group.id for group in groups}:
                del self._courses[gone]

    def _call(self, group: ConsistencyGroup, course: _Course) -> None:
        """Call the group's members, or note why that would be in vain."""
        with self._bench.vault.read() as records:
            items = members_of(records, group)
            nodes = {r.item.id: source_agent(records, r) for r in items}
            listed = () if course.newest else shared_points(self._bench, records, group, items)
            newest = course.newest
            # a share that got lost on its way is made up for, though nobody has written since
            is_there = newest is not None and records.points.is_shared(newest.members, newest.id)
        problem = self._obstacle(group, items, nodes)
        if problem:
            with self._lock:
                course.problem = problem
            return
        mark = self._mark(group, items, course, listed)
        with self._lock:
            course.meeting = mark.id
            course.attempts += 1
        self._meetings.call(
            mark,
            {item_id: node.id for item_id, node in nodes.items() if node is not None},
            {record.item.id: record.item.name for record in items},
            may_skip=course.is_whole and is_there,
        )

    def _obstacle(
        self,
        group: ConsistencyGroup,
        items: Sequence[ItemRecord],
        nodes: dict[str, NodeRecord | None],
    ) -> str:
        """Return why nobody need be called now, "" if all can."""
        missing = sorted(set(group.items) - {record.item.name for record in items})
        if missing:
            return f"{missing[0]} is not protected any more"
        if difference := find_difference([record.item for record in items]):
            return difference
        for record in items:
            item, node = record.item, nodes[record.item.id]
            if not record.is_replicating or item.state not in FOLLOWING:
                return f"{item.name} is {item.state.value.replace('_', ' ')}"
            if node is None or not self._bench.is_heard(node):
                return f"the host of {item.name} does not answer"
            said = self._bench.live.replication(node.id, item.id)
            is_streaming = said is not None and said.state is ReplicationState.STREAMING
            if said is None or not is_streaming or said.epoch != item.epoch:
                return f"{item.name} does not stream"
            if not self._meetings.is_listening(node.id):
                return f"{node.label} does not listen for calls yet"
        return ""

    def _mark(
        self,
        group: ConsistencyGroup,
        items: Sequence[ItemRecord],
        course: _Course,
        listed: Sequence[SharedPoint],
    ) -> SharedMark:
        known = [course.newest.time_ns] if course.newest else [p.time_ns for p in listed[:1]]
        previous_ns = max(known, default=0)
        time_ns = max(self._bench.clock.now_ns(), previous_ns + 1)  # ids sort by it
        return SharedMark(
            id=f"sp-{time_ns // 1_000_000}-{secrets.token_hex(4)}",
            group=group.id,
            members=tuple(sorted(record.item.id for record in items)),
            time_ns=time_ns,
            previous_ns=previous_ns,
        )

    def _note(self, group: ConsistencyGroup, course: _Course, outcome: Outcome) -> None:
        was_told = course.failures >= FAILURES_TOLD
        with self._lock:
            course.meeting = ""
            course.is_whole = outcome.is_needless or not outcome.problem
            course.failures = 0 if course.is_whole else course.failures + 1
            course.voided += not course.is_whole
            course.problem = outcome.problem
            if not outcome.problem and not outcome.is_needless:
                course.newest = outcome.mark
            course.ended_at = self._bench.clock.monotonic()
        bound = log.bind(group=group.name, point=outcome.mark.id)
        if outcome.problem:
            bound.info("shared_point_void", problem=outcome.problem)
        if course.failures == FAILURES_TOLD:
            self._tell(
                group,
                "group_not_shared",
                f"{group.name} gets no shared recovery points: {outcome.problem}",
            )
        elif was_told and course.is_whole:
            self._tell(group, "group_shared", f"{group.name} has shared recovery points again")

    def _tell(self, group: ConsistencyGroup, kind: str, sentence: str) -> None:
        with self._bench.vault.write() as records:
            self._bench.record_event(records, group_target(group.vault, group.name), kind, sentence)


def _interval_seconds(records: Records, items: Sequence[ItemRecord]) -> float:
    policies = [records.resources.find(Policy, r.item.vault, r.item.policy) for r in items]
    found = [p.value.shared_interval_seconds for p in policies if p is not None]
    return min(found, default=DEFAULT_POLICY.shared_interval_seconds)
