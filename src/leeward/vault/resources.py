"""Resources of regions and vaults, as rows: (kind, scope, name) → a frozen model dataclass.

Owns: their storage and versions. Must not know: their rules.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Generic, TypeVar

import sqlalchemy as sa

from leeward.core.codec import from_json, from_plain, to_json, to_plain
from leeward.core.errors import Conflict, NotFound
from leeward.model.drills import (
    Drill,
    DrillResult,
    DrillScreen,
    PlanDrill,
    PlanDrillResult,
)
from leeward.model.groups import ConsistencyGroup
from leeward.model.plans import PlanApproval, RecoveryPlan
from leeward.model.recovery import NetworkMapping, Policy, Vault
from leeward.model.resources import (
    AvailabilitySet,
    Region,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.vault.tables import resources

Resource = (
    Region
    | ResourceGroup
    | VirtualNetwork
    | StorageAccount
    | AvailabilitySet
    | VirtualMachine
    | Vault
    | Policy
    | NetworkMapping
    | RecoveryPlan
    | PlanApproval
    | Drill
    | DrillResult
    | DrillScreen
    | PlanDrill
    | PlanDrillResult
    | ConsistencyGroup
)
R = TypeVar("R", bound=Resource)
"""Scope of a row: the region's name; for policies, recovery plans, drills and consistency groups
the vault's; for approvals the job's id; for results of drills the item's id or the plan's target;
"" for regions, vaults, mappings."""

KINDS: dict[type[object], str] = {
    Region: "region",
    ResourceGroup: "resource-group",
    VirtualNetwork: "network",
    StorageAccount: "storage-account",
    AvailabilitySet: "availability-set",
    VirtualMachine: "virtual-machine",
    Vault: "vault",
    Policy: "policy",
    NetworkMapping: "network-mapping",
    RecoveryPlan: "recovery-plan",
    PlanApproval: "plan-approval",
    Drill: "drill",
    DrillResult: "drill-result",
    DrillScreen: "drill-screen",
    PlanDrill: "plan-drill",
    PlanDrillResult: "plan-drill-result",
    ConsistencyGroup: "consistency-group",
}
_SHORT = {"virtual-machine": "vm"}
_UNLISTED = {"plan-approval", "drill", "drill-result", "drill-screen"}
_LISTED = frozenset(KINDS.values()) - _UNLISTED - {"plan-drill", "plan-drill-result"}
"""Kinds that the command line lists, by these names or by a shorter one."""


class ResourceState(Enum):
    """Whether nodes have made it real yet."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Generic[R]):
    """A resource and what the vault knows about its row."""

    value: R
    scope: str
    name: str
    state: ResourceState
    created_by: str
    """Id of the item that made it by itself; "" when a person did."""
    requested: dict[str, object]
    """What was asked for, before the service filled in the rest: to tell a repeated request."""
    version: int


def as_requested(value: Resource) -> dict[str, object]:
    """Return the resource as `Stored.requested` reads back: JSON knows no tuples."""
    return from_json(to_json(value), dict)


class ResourceStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def find(self, kind: type[R], scope: str, name: str) -> Stored[R] | None:
        """Return the resource, or None."""
        row = self._connection.execute(
            sa.select(resources).where(*_is(kind, scope, name))
        ).one_or_none()
        return None if row is None else _stored(row, kind)

    def get(self, kind: type[R], scope: str, name: str) -> Stored[R]:
        """Return the resource. Raises: NotFound: a region that is not there is named first."""
        found = self.find(kind, scope, name)
        if found is None:
            in_region = any(field.name == "region" for field in fields(kind))
            if in_region and self.find(Region, "", scope) is None:
                raise NotFound(
                    f"there is no region {scope}", field="region", hint="`leeward region list`"
                )
            where = f" in {scope}" if scope else ""
            noun = KINDS[kind]
            hint = f"`leeward {_SHORT.get(noun, noun)} list`" if noun in _LISTED else None
            raise NotFound(f"there is no {noun.replace('-', ' ')} {name}{where}", hint=hint)
        return found

    def listed(self, kind: type[R], scope: str | None = None) -> list[Stored[R]]:
        """Return all of a kind, by scope and name; of one scope if it is given."""
        query = sa.select(resources).where(resources.c.kind == KINDS[kind])
        if scope is not None:
            query = query.where(resources.c.scope == scope)
        rows = self._connection.execute(query.order_by(resources.c.scope, resources.c.name))
        return [_stored(row, kind) for row in rows]

    def insert(
        self,
        value: Resource,
        *,
        scope: str,
        name: str,
        state: ResourceState = ResourceState.READY,
        created_by: str = "",
        requested: dict[str, object] | None = None,
    ) -> None:
        """The resource exists. Raises: Conflict if one of that kind, scope and name does."""
        self._connection.execute(
            resources.insert().values(
                kind=KINDS[type(value)],
                scope=scope,
                name=name,
                body=to_plain(value),
                requested=requested or {},
                state=state.value,
                created_by=created_by,
                version=1,
            )
        )

    def update(
        self,
        stored: Stored[R],
        *,
        value: R | None = None,
        state: ResourceState | None = None,
        requested: dict[str, object] | None = None,
    ) -> None:
        """The row holds what is given (None: as it was). Raises: Conflict when it changed since
        `stored` was read, or is gone."""
        kind = type(stored.value)
        changed = self._connection.execute(
            resources.update()
            .where(*_is(kind, stored.scope, stored.name), resources.c.version == stored.version)
            .values(
                body=to_plain(stored.value if value is None else value),
                state=(state or stored.state).value,
                requested=stored.requested if requested is None else requested,
                version=stored.version + 1,
            )
        )
        if changed.rowcount != 1:
            raise Conflict(f"{KINDS[kind].replace('-', ' ')} {stored.name} has just been changed")

    def set_state(self, kind: type[object], scope: str, name: str, state: ResourceState) -> None:
        """The resource, if it exists, is in that state."""
        self._connection.execute(
            resources.update()
            .where(*_is(kind, scope, name))
            .values(state=state.value, version=resources.c.version + 1)
        )

    def delete(self, kind: type[object], scope: str, name: str) -> None:
        """The resource does not exist. Idempotent."""
        self._connection.execute(resources.delete().where(*_is(kind, scope, name)))


def _is(kind: type[object], scope: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        resources.c.kind == KINDS[kind],
        resources.c.scope == scope,
        resources.c.name == name,
    )


def _stored(row: sa.Row[tuple[object, ...]], kind: type[R]) -> Stored[R]:
    return Stored(
        value=from_plain(row.body, kind),
        scope=row.scope,
        name=row.name,
        state=ResourceState(row.state),
        created_by=row.created_by,
        requested=row.requested,
        version=row.version,
    )
