"""Questions about consistency groups that verbs and the conductor ask of the vault.

Owns: which items are in which group, which shared points they have. Must not know: verbs.
"""

from __future__ import annotations

from collections.abc import Sequence

from leeward.failover.shared import list_shared
from leeward.model.groups import ConsistencyGroup, SharedPoint
from leeward.model.recovery import RecoveryPoint
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench


def group_target(vault: str, name: str) -> str:
    """Return how jobs and events call a consistency group."""
    return f"consistency-group/{vault}/{name}"


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
