"""Which recovery points a policy's tiers no longer want.

Owns: the plan. Must not know: catalogs, stores, clocks; ages count from the newest point, so that
a dead source never ages away its last copies, and no gap between two points counts for more than
the tiers can cause, so that neither does a source whose clock steps. Pure; the processor carries
the plan out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from leeward.model.recovery import Consistency, RecoveryPoint, RetentionTier, SharedMark

_SECOND_NS = 1_000_000_000
_GAP_SECONDS_MIN = 3600
"""Gaps between points up to this long count in full: a VM may be off for a while."""
_OF_NO_GROUP = SharedMark(id="", group="", members=(), time_ns=0)


def plan_retention(
    points: Sequence[RecoveryPoint], tiers: Sequence[RetentionTier], *, group: str = ""
) -> tuple[str, ...]:
    """Return the ids of the points to drop, oldest first.

    A point belongs to the shortest tier that reaches its age (both ends inclusive). Of a tier's
    points the first in every period of `every_seconds` of the source's clock is kept, and the first
    that is application-consistent: periods begin at multiples since 1970, so a point once kept is
    not exchanged for another as time goes on. The newest point is always kept; without tiers
    nothing else is.

    group: the consistency group that the item is in now, if it is in one. What its members share is
    judged by itself, and by nothing but what all members have alike: so each of them keeps or drops
    the same, whatever points of its own it has beside.
    """
    ordered = sorted(points, key=lambda point: (point.epoch, point.sequence))
    if not ordered:
        return ()
    by_reach = sorted(tiers, key=lambda tier: tier.for_seconds)
    is_own = [not group or _mark(point).group != group for point in ordered]
    shared = [at for at, own in enumerate(is_own) if not own]
    dropped = {
        *_drop_own(ordered, is_own, by_reach),
        *(shared[at] for at in _drop_shared([_mark(ordered[at]) for at in shared], by_reach)),
    }
    return tuple(ordered[at].id for at in sorted(dropped - {len(ordered) - 1}))


def _mark(point: RecoveryPoint) -> SharedMark:
    return point.shared or _OF_NO_GROUP


def _drop_own(
    ordered: Sequence[RecoveryPoint], is_own: Sequence[bool], by_reach: Sequence[RetentionTier]
) -> Iterator[int]:
    """Yield the places of the points of one VM alone that are to be dropped."""
    first: set[tuple[int, int, int, bool]] = set()
    times_ns = [point.time_ns for point in ordered]
    ages_ns = _ages_ns(times_ns, by_reach)
    turns = {tier: _turns(times_ns, tier) for tier in by_reach if tier.every_seconds}
    for at, (point, age_ns) in enumerate(zip(ordered, ages_ns, strict=True)):
        tier = _tier_of(age_ns, by_reach)
        if not is_own[at]:
            continue
        is_application = point.consistency is Consistency.APPLICATION
        if tier is None or (
            tier in turns and (*_period(point, tier, turns[tier][at]), is_application) in first
        ):
            yield at
        # in every tier that it has been in: who came after it there was, or should be, dropped
        for been in by_reach[: by_reach.index(tier) + 1] if tier else by_reach:
            if been in turns:
                period = _period(point, been, turns[been][at])
                first |= {(*period, False), (*period, is_application)}


def _period(point: RecoveryPoint, tier: RetentionTier, turn: int) -> tuple[int, int, int]:
    """Return the tier's reach, the number of its period that the point is in, and the turn: periods
    that a clock which was set back counts anew are others."""
    return tier.for_seconds, point.time_ns // (tier.every_seconds * _SECOND_NS), turn


def _turns(times_ns: Sequence[int], tier: RetentionTier) -> list[int]:
    """Return for each point how often the source's clock has been set back before it, by a period
    of the tier or more."""
    turns = [0] if times_ns else []
    for older, newer in pairwise(times_ns):
        turns.append(turns[-1] + (older - newer >= tier.every_seconds * _SECOND_NS))
    return turns


def _drop_shared(marks: Sequence[SharedMark], by_reach: Sequence[RetentionTier]) -> Iterator[int]:
    """Yield the places of the shared points to be dropped; the newest is not among them. The first
    of a period is one whose predecessor, as its mark tells, was in an earlier one."""
    ages_ns = _ages_ns([mark.time_ns for mark in marks], by_reach)
    for at, (mark, age_ns) in enumerate(zip(marks[:-1], ages_ns[:-1], strict=True)):
        tier = _tier_of(age_ns, by_reach)
        if tier is None:
            yield at
        elif tier.every_seconds and mark.previous_ns:
            period_ns = tier.every_seconds * _SECOND_NS
            if mark.previous_ns // period_ns == mark.time_ns // period_ns:
                yield at


def _ages_ns(times_ns: Sequence[int], tiers: Sequence[RetentionTier]) -> list[int]:
    """Return the ages of points of these times, in the same order; that of the newest is 0.

    It is the sum of the gaps between the points since, each at least 0, and at most twice the
    longest distance at which a tier keeps points.
    """
    longest = max((tier.every_seconds for tier in tiers), default=0)
    limit_ns = max(2 * longest, _GAP_SECONDS_MIN) * _SECOND_NS
    ages: list[int] = [0] if times_ns else []
    for older, newer in zip(reversed(times_ns[:-1]), reversed(times_ns[1:]), strict=True):
        ages.append(ages[-1] + min(max(newer - older, 0), limit_ns))
    return ages[::-1]


def _tier_of(age_ns: int, by_reach: Sequence[RetentionTier]) -> RetentionTier | None:
    """Return the shortest tier that reaches that age, or None."""
    for tier in by_reach:
        if age_ns <= tier.for_seconds * _SECOND_NS:
            return tier
    return None
