"""Questions about consistency groups that verbs and the conductor ask of the vault.

Owns: which items are in which group, which shared points they have, which jobs are at them. Must
not know: what verbs do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leeward.core.errors import Conflict
from leeward.failover.shared import list_shared
from leeward.model.groups import ConsistencyGroup, SharedPoint
from leeward.model.recovery import RecoveryPoint
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench

GROUP_APPLY = "consistency-group.apply"
GROUP_FAILOVER = "consistency-group.failover"
GROUP_CHANGE = "consistency-group.change-recovery-point"
GROUP_TEST = "consistency-group.test-failover"
GROUP_CLEAN_UP = "consistency-group.test-failover-cleanup"
GROUP_MOVES = (GROUP_FAILOVER, GROUP_CHANGE)
GROUP_TESTS = (GROUP_TEST, GROUP_CLEAN_UP)


def group_target(vault: str, name: str) -> str:
    """Return how jobs and events call a consistency group."""
    return f"consistency-group/{vault}/{name}"


def check_resting(records: Records, vault: str, name: str, verbs: Iterable[str]) -> None:
    """Return if no job of these verbs is at the group. Raises: Conflict."""
    for verb in verbs:
        under_way = records.jobs.open_on(verb, group_target(vault, name))
        if under_way is not None:
            raise Conflict(
                f"group {name} is busy: {under_way.id} ({verb}) is under way",
                hint=f"`leeward job show {under_way.id}` tells how far it is",
            )


def members_of(records: Records, group: ConsistencyGroup) -> list[ItemRecord]:
    """Return the group's items, by name; those that are gone are missing."""
    return records.items.named(group.vault, group.items)


def group_of(records: Records, vault: str, item: str) -> ConsistencyGroup | None:
    """Return the group that the item is in, or None."""
    groups = (stored.value for stored in records.resources.listed(ConsistencyGroup, vault))
    return next((group for group in groups if item in group.items), None)


def shared_points(
    bench: Bench, records: Records, group: ConsistencyGroup, items: Sequence[ItemRecord]
) -> tuple[SharedPoint, ...]:
    """Return the group's shared points that nothing is known to be wrong with, newest first."""
    points: dict[str, list[RecoveryPoint]] = records.points.shared(r.item.id for r in items)
    for record in items:
        damaged = bench.live.quarantined(record.worker_id, record.item.id)
        points[record.item.id] = [p for p in points[record.item.id] if p.id not in damaged]
    return list_shared(points, group)
