"""Shared recovery points: which there are, and to which a group fails over.

Owns: that a shared point counts only as a whole. Must not know: how points are made or opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.model.groups import ConsistencyGroup, SharedPoint
from leeward.model.recovery import ItemState, RecoveryPoint, ReplicatedItem, SharedMark

LATEST_SHARED = "latest-shared"
MOVED = frozenset({ItemState.FAILED_OVER, ItemState.COMMITTED})


def list_shared(
    points: Mapping[str, Sequence[RecoveryPoint]], group: ConsistencyGroup
) -> tuple[SharedPoint, ...]:
    """Return the group's shared points, newest first: those of which every item that took part has
    its own. points: by item's id; whose are not given has none. Damaged ones do not count."""
    found: dict[str, dict[str, str]] = {}
    marks: dict[str, SharedMark] = {}
    for item_id, listed in points.items():
        for point in listed:
            mark = point.shared
            if mark is not None and mark.group == group.id and not point.is_quarantined:
                found.setdefault(mark.id, {})[item_id] = point.id
                marks[mark.id] = mark
    whole = [mark for mark in marks.values() if found[mark.id].keys() >= set(mark.members)]
    return tuple(
        SharedPoint(id=mark.id, group=group.name, time_ns=mark.time_ns, points=found[mark.id])
        for mark in sorted(whole, key=lambda mark: (mark.time_ns, mark.id), reverse=True)
    )


def choose_shared(
    group: ConsistencyGroup,
    items: Sequence[ReplicatedItem],
    shared: Sequence[SharedPoint],
    wanted: str,
) -> SharedPoint:
    """Return the shared point that all the group's items fail over to.

    items: the group's. shared: its shared points, newest first. wanted: LATEST_SHARED or the id of
    one. Items that have failed over already stay where they are: latest is then what they run from.
    Raises: NotFound; InvalidRequest; Conflict when some run from a point that is not of it.
    """
    if wanted != LATEST_SHARED and not wanted.startswith("sp-"):
        raise InvalidRequest(
            f"recovery_point: {wanted!r} is no shared point",
            field="recovery_point",
            hint=f"use {LATEST_SHARED} or an id of `leeward consistency-group points {group.name}`",
        )
    moved = {item.id: item.recovery_point for item in items if item.state in MOVED}
    ids = {item.id for item in items}
    fitting = [
        point
        for point in shared
        if point.points.keys() >= ids
        and (wanted in (LATEST_SHARED, point.id))
        and all(point.points[item_id] == moved[item_id] for item_id in moved)
    ]
    if fitting:
        return fitting[0]
    names = ", ".join(item.name for item in items if item.state in MOVED)
    if names and any(wanted in (LATEST_SHARED, point.id) for point in shared):
        raise Conflict(
            f"{names} of {group.name} has failed over to a point that "
            + ("the others do not share" if wanted == LATEST_SHARED else f"is not of {wanted}"),
            field="recovery_point",
            hint="`leeward change-recovery-point` of that item to its part of a shared point; "
            f"`leeward consistency-group points {group.name}` shows them",
        )
    raise NotFound(
        f"group {group.name} has no shared recovery point"
        + ("" if wanted == LATEST_SHARED else f" {wanted}"),
        field="recovery_point",
        hint=f"`leeward consistency-group points {group.name}` lists them; each item has points of "
        "its own besides",
    )
