"""Whether items can be a consistency group, and when it is time for their next shared point.

Owns: every reason against either, each a sentence. Must not know: where they are stored, how their
hosts are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leeward.core.errors import Conflict, InvalidRequest
from leeward.core.ids import check_name
from leeward.model.groups import ConsistencyGroup
from leeward.model.recovery import ReplicatedItem

ITEMS_MAX = 32
"""Each one more makes it less likely that all hold within the bound."""
BACK_OFF_SECONDS_MAX = 60.0


def check_group(
    group: ConsistencyGroup,
    items: Mapping[str, ReplicatedItem],
    others: Iterable[ConsistencyGroup],
) -> None:
    """Return if the group can be. items: the vault's, by name. others: its other groups.

    Raises: InvalidRequest naming the field; Conflict when an item is in another group.
    """
    check_name(group.name)
    if len(set(group.items)) != len(group.items):
        raise InvalidRequest("an item is named twice", field="items")
    if not 2 <= len(group.items) <= ITEMS_MAX:
        raise InvalidRequest(f"a consistency group has 2 to {ITEMS_MAX} items", field="items")
    for name in group.items:
        if name not in items:
            raise InvalidRequest(
                f"vault {group.vault} has no replicated item {name}",
                field="items",
                hint="`leeward item list` shows those it has",
            )
    for other in others:
        taken = sorted(set(other.items) & set(group.items))
        if other.name != group.name and taken:
            raise Conflict(
                f"{taken[0]} is in consistency group {other.name} already",
                field="items",
                hint=f"`leeward consistency-group update {other.name}` can let go of it",
            )
    if problem := find_difference([items[name] for name in group.items]):
        raise InvalidRequest(problem, field="items")


def find_difference(items: Sequence[ReplicatedItem]) -> str:
    """Return what keeps items from having one moment and one fate, "" if nothing does."""
    first = items[0]
    for other in items[1:]:
        if (other.source_region, other.target_region) != (first.source_region, first.target_region):
            return (
                f"{first.name} goes from {first.source_region} to {first.target_region}, "
                f"{other.name} from {other.source_region} to {other.target_region}"
            )
        if other.policy != first.policy:
            return (
                f"{first.name} follows policy {first.policy}, {other.name} {other.policy}: a "
                "group shares its points, so it is kept to one policy"
            )
    return ""


def seconds_until_next(interval_seconds: float, failures: int) -> float:
    """Return how long to wait for the next attempt after so many in a row that came to nothing: at
    first less than an interval, so that one bad moment costs little, then more and more."""
    if not failures:
        return interval_seconds
    return min(interval_seconds, 2.0**failures, BACK_OFF_SECONDS_MAX)
