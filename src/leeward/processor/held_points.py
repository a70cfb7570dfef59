"""Dropping recovery points around those that are held.

Owns: what is dropped when a point that nobody wants has to stay. Must not know: tiers, stores.
Pure; between the worker's retention and item.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from leeward.model.recovery import RecoveryPoint


def plan_around_held(
    points: Sequence[RecoveryPoint],
    held: AbstractSet[str],
    plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]],
) -> tuple[str, ...]:
    """Return the ids of the points that `plan` drops and nobody holds.

    points: oldest first. A point that stays only because it is held counts for nothing else: no
    other is dropped that would have been kept had it been dropped. So a consistency group loses no
    shared point because one is held of one of its members.
    """
    left = list(points)
    for point in reversed(points):  # what is dropped of a point depends on newer ones' times
        if point.id in held and point.id in plan(left):
            left.remove(point)
    return tuple(each for each in plan(left) if each not in held)
