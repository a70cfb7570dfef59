"""What workers find in stores of every item, and whose the service says that is.

Owns: their shapes. Must not know: which items are protected; the service compares. Used by
`leeward storage replicas`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """All that one store has of one item.

    has_catalog: the item's recovery points are listed there; else it is a cache's leftover, or a
    disk's replica whose catalog lies elsewhere. name, vault: what the catalog says. held: how many
    readers have pinned it or hold a point of it. problem: why the catalog cannot be read, "".
    """

    url: str
    item_id: str
    objects: int
    bytes: int
    has_catalog: bool = False
    has_disks: bool = False
    name: str = ""
    vault: str = ""
    point_count: int = 0
    newest_point: str = ""
    newest_time_ns: int = 0
    held: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItems:
    """problems: URL → why that store could not be listed."""

    items: tuple[StoredItem, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureSpec:
    """Everything of the item is to be erased from that store, the catalog last."""

    item_id: str
    url: str
    even_if_held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What one storage account has of one item. used_by: "vault/item", "": it is a leftover."""

    region: str
    account: str
    used_by: str
    stored: StoredItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """problems: sentences on accounts that could not be read."""

    replicas: tuple[Replica, ...] = ()
    problems: tuple[str, ...] = ()
