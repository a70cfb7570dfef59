"""What the catalog of an item keeps for a vault that is lost, and what a worker finds in stores.

Owns: their shape. Must not know: catalogs, vaults. Written by the service into every item's
processing, read back by `leeward vault rebuild` through a worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leeward.model.groups import ConsistencyGroup
from leeward.model.recovery import NetworkMapping, Policy, ReplicatedItem, Vault
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutItem:
    """An item and everything of the target region that a failover of it uses."""

    vault: Vault
    policy: Policy
    item: ReplicatedItem
    target_vm: VirtualMachine
    cache_region: str
    cache: StorageAccount
    accounts: tuple[StorageAccount, ...] = ()
    groups: tuple[ResourceGroup, ...] = ()
    networks: tuple[VirtualNetwork, ...] = ()
    sets: tuple[AvailabilitySet, ...] = ()
    mappings: tuple[NetworkMapping, ...] = ()
    consistency_group: ConsistencyGroup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundItem:
    """What a worker has read of one item in the stores it was given.

    epoch: the catalog's. urls: disk → the store its replica was found in; none for a disk of which
    nothing is stored. problem: why it cannot be used, "" if it can.
    """

    item_id: str
    epoch: int = 0
    about: AboutItem | None = None
    urls: dict[str, str] = field(default_factory=dict)
    point_count: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundItems:
    items: tuple[FoundItem, ...] = ()
