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
    *,
    begun: Mapping[str, str] | None = None,
) -> SharedPoint:
    """Return the shared point that all the group's items go to.

    items: the group's. shared: its shared points, newest first. wanted: LATEST_SHARED or the id of
    one. Items that have failed over already stay where they are: latest is then what they run from.
    begun: item's id → point, of those that are on their way or have a test VM. Raises: NotFound;
    InvalidRequest; Conflict when some run from a point that is not of it.
    """
    _check_wanted(group, wanted)
    bound = dict(begun or {})
    bound.update({item.id: item.recovery_point for item in items if item.state in MOVED})
    whole = _of_all(items, shared, wanted)
    fitting = [
        point for point in whole if all(point.points.get(each) == bound[each] for each in bound)
    ]
    if fitting:
        return fitting[0]
    names = ", ".join(item.name for item in items if item.id in bound)
    if names and any(wanted in (LATEST_SHARED, point.id) for point in shared):
        has_moved = any(item.state in MOVED for item in items)
        raise Conflict(
            f"{names} of {group.name} {'has failed over to' if has_moved else 'begins from'} a "
            "point that "
            + ("the others do not share" if wanted == LATEST_SHARED else f"is not of {wanted}"),
            field="recovery_point",
            hint="`leeward change-recovery-point` of that item to its part of a shared point; "
            f"`leeward consistency-group points {group.name}` shows them",
        )
    raise _not_there(group, wanted)


def choose_other(
    group: ConsistencyGroup,
    items: Sequence[ReplicatedItem],
    shared: Sequence[SharedPoint],
    wanted: str,
) -> SharedPoint:
    """Return the shared point that the group's items, all failed over, are started from instead.

    Raises: Conflict when not all have failed over, one is committed, or all run from it already;
    NotFound; InvalidRequest.
    """
    _check_wanted(group, wanted)
    waiting = [item for item in items if item.state is not ItemState.FAILED_OVER]
    if waiting:
        told = "; ".join(f"{item.name} is {item.state.value.replace('_', ' ')}" for item in waiting)
        is_committed = all(item.state is ItemState.COMMITTED for item in waiting)
        raise Conflict(
            f"the recovery point of {group.name} changes only while all of it is failed over: "
            f"{told}",
            field="state",
            hint=f"`leeward undo-commit {waiting[0].name}` takes its commit back"
            if is_committed
            else f"`leeward consistency-group failover {group.name}` brings all to one point",
        )
    whole = _of_all(items, shared, wanted)
    if not whole:
        raise _not_there(group, wanted)
    if all(whole[0].points[item.id] == item.recovery_point for item in items):
        raise Conflict(
            f"{group.name} already runs from {whole[0].id}",
            field="recovery_point",
            hint=f"`leeward consistency-group points {group.name}` lists the others",
        )
    return whole[0]


def _check_wanted(group: ConsistencyGroup, wanted: str) -> None:
    if wanted != LATEST_SHARED and not wanted.startswith("sp-"):
        raise InvalidRequest(
            f"recovery_point: {wanted!r} is no shared point",
            field="recovery_point",
            hint=f"use {LATEST_SHARED} or an id of `leeward consistency-group points {group.name}`",
        )


def _of_all(
    items: Sequence[ReplicatedItem], shared: Sequence[SharedPoint], wanted: str
) -> list[SharedPoint]:
    """Return those of the points that `wanted` may mean and that all the items have."""
    ids = {item.id for item in items}
    return [
        point
        for point in shared
        if point.points.keys() >= ids and wanted in (LATEST_SHARED, point.id)
    ]


def _not_there(group: ConsistencyGroup, wanted: str) -> NotFound:
    return NotFound(
        f"group {group.name} has no shared recovery point"
        + ("" if wanted == LATEST_SHARED else f" {wanted}"),
        field="recovery_point",
        hint=f"`leeward consistency-group points {group.name}` lists them; each item has points of "
        "its own besides",
    )
