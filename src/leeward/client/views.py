"""What the API shows beyond the model's nouns: live status, health, plans.

Owns: the shape of composed replies. Must not know: how they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leeward.model.drills import Readiness
from leeward.model.recovery import ReplicatedItem
from leeward.model.resources import VirtualMachine
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import HydrationStatus, ProcessingStatus, ReplicationStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView(VirtualMachine):
    """A VM and how it is now; None where its host has not spoken yet."""

    status: VmStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How an item's replication is now."""

    replication: ReplicationStatus | None = None
    replication_age_seconds: float | None = None
    processing: ProcessingStatus | None = None
    hydration: HydrationStatus | None = None
    rpo_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemView(ReplicatedItem):
    """A replicated item, its health, what its last drill proved. target: the VM that a failover
    makes; once it has, the VM as it has become since."""

    target: VirtualMachine | None = None
    health: Health = field(default_factory=Health)
    readiness: Readiness = field(default_factory=Readiness)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """What happened to a target ("item/web-1"). sequence grows with time."""

    sequence: int
    time_ns: int
    target: str
    kind: str
    message: str
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """An agent or worker, and when the service last heard of it."""

    id: str
    role: str
    region: str
    name: str
    last_seen_ns: int = 0
    is_online: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentToken:
    """A secret that enrols one node, once."""

    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """An encryption key by its id: the nodes that have it, and those that need it and have not."""

    key_id: str
    is_current: bool
    nodes: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """What lies in a resource group, by name; used_by: what outside needs something of it."""

    vms: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    storage_accounts: tuple[str, ...] = ()
    availability_sets: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()
