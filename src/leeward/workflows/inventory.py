"""Reading what exists for the planners.

Owns: vault rows → protection's Inventory. Must not know: plans.
"""

from __future__ import annotations

from collections.abc import Iterable

from leeward.model.recovery import NetworkMapping
from leeward.model.resources import (
    AvailabilitySet,
    Region,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.inventory import Inventory, Protected
from leeward.protocol.messages import Role
from leeward.vault.records import Records
from leeward.vault.resources import R


def load_inventory(records: Records, regions: Iterable[str]) -> Inventory:
    """Return what exists in those regions, and every item that touches one of them."""
    wanted = tuple(dict.fromkeys(regions))

    def values(kind: type[R]) -> tuple[R, ...]:
        return tuple(
            stored.value for region in wanted for stored in records.resources.listed(kind, region)
        )

    items = {
        record.item.id: Protected(
            item=record.item, target_vm=record.target_vm, cache_region=record.cache_region
        )
        for region in wanted
        for record in records.items.listed(region=region)
    }
    nodes = records.nodes.listed()
    return Inventory(
        regions=frozenset(stored.name for stored in records.resources.listed(Region)),
        resource_groups=values(ResourceGroup),
        networks=values(VirtualNetwork),
        accounts=values(StorageAccount),
        availability_sets=values(AvailabilitySet),
        vms=values(VirtualMachine),
        mappings=tuple(s.value for s in records.resources.listed(NetworkMapping, "")),
        protected=tuple(items.values()),
        regions_with_agents=frozenset(n.region for n in nodes if n.role is Role.AGENT),
        regions_with_workers=frozenset(n.region for n in nodes if n.role is Role.WORKER),
    )
