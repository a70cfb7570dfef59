"""Whether an item can go over to another cache account now, and what cannot begin meanwhile.

Owns: these two questions. Must not know: accounts, how it goes over.
"""

from __future__ import annotations

from leeward.core.errors import Conflict
from leeward.model.recovery import ItemState, ReplicatedItem

_CHANGEABLE = frozenset({ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED})


def check_cache_change(item: ReplicatedItem) -> None:
    """Return if the item may go over to another cache account. Raises: Conflict."""
    check_keeps_cache(item)
    if item.state not in _CHANGEABLE:
        raise Conflict(
            f"{item.name} is {item.state.value.replace('_', ' ')}: its cache account cannot be "
            "changed now",
            field="state",
            hint="once it is protected, it can",
        )


def check_keeps_cache(item: ReplicatedItem) -> None:
    """Return unless the item is just going over to another cache account, while its source sends
    nothing. Raises: Conflict."""
    if item.next_cache_account:
        raise Conflict(
            f"{item.name} is just going over to cache account {item.next_cache_account}",
            field="state",
            hint="wait for that job: `leeward job list`",
        )
