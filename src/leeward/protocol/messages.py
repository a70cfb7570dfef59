"""The envelope: enrolment, commands, results, status posts between a node and the service.

Owns: their JSON shape. A node only ever makes outbound HTTP requests; commands reach it in the
reply to a long poll.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from leeward.model.recovery import FreezeReport, RecoveryPoint, ReplicationState, SharedMark
from leeward.protocol.fabric import VmStatus


class Role(Enum):
    AGENT = "agent"
    WORKER = "worker"


class Verb(Enum):
    """Who carries it out, its `arguments`, and its `result` (all plain JSON)."""

    # agent; arguments are the named spec of protocol.fabric unless said otherwise
    ACCOUNT_CREATE = "account.create"  # AccountSpec → {}
    ACCOUNT_DELETE = "account.delete"  # AccountSpec → {}
    NETWORK_APPLY = "network.apply"  # NetworkSpec → {}
    NETWORK_DELETE = "network.delete"  # {"network_id"} → {}
    VM_CREATE = "vm.create"  # VmSpec → VmStatus; creates the disks and starts it
    VM_START = "vm.start"  # {"vm_id"} → VmStatus
    VM_STOP = "vm.stop"  # {"vm_id", "force": bool} → VmStatus
    VM_UPDATE = "vm.update"
    # VmSize → VmStatus; refused while the VM runs
    VM_DISK_ADD = "vm.disk-add"  # DiskAddition → VmStatus with the sizes of all disks
    VM_DISK_UNPLUG = "vm.disk-unplug"  # DiskOfVm → {}; the guest sees it no more
    VM_DISK_REMOVE = "vm.disk-remove"  # DiskOfVm → {}; its image is gone
    VM_DISK_GROW = "vm.disk-grow"  # DiskGrowth → VmStatus with the sizes of all disks
    VM_TRIM = "vm.trim"  # TrimSpec → TrimResult; its writes are only tracked meanwhile
    VM_DELETE = "vm.delete"  # {"vm_id"} → {}; stops it, deletes disks it made
    REPLICATION_START = "replication.start"  # ReplicationSpec → {}
    REPLICATION_STOP = "replication.stop"  # {"item_id"} → {}; detaches, removes bitmaps
    REPLICATION_DRAIN = "replication.drain"  # DrainSpec → DrainResult; the VM does not run then
    REPLICATION_FREEZE = "replication.freeze"
    # FreezeSpec → FreezeReport; crash-consistent only, and why, where the guest cannot be frozen
    REPLICATION_FENCE = "replication.fence"  # {"item_id", "epoch", "vm_id"} → {}; stops the VM
    REPLICA_SEED = "replica.seed"  # SeedSpec → SeedResult; the VM must be stopped
    RECOVERY_BOOT = "recovery.boot"  # BootSpec → VmStatus
    RECOVERY_DISCARD = "recovery.discard"
    # {"vm_id", "keep_disks"?: names, "networks"?: ids} → {}; VM, overlays and export gone, those
    # disks renamed; gone too are those networks that no other VM here is in
    SCRIPT_RUN = "script.run"  # ScriptSpec → ScriptResult; a script that hangs is ended
    PORT_WAIT = "port.wait"  # PortSpec → {}; from inside the VM's network
    # protocol.drills
    PROBE_RUN = "probe.run"  # ProbingSpec → ProbingReport; from inside the VM's network
    POINT_READ = "point.read"  # ReadSpec → ReadReport; all of a test VM's recovery point
    CONSOLE_VIEW = "console.view"  # {"run_id", "vm_id"} → ConsoleView
    # worker
    PROCESSING_START = "processing.start"  # ProcessingSpec → {}
    PROCESSING_STOP = "processing.stop"  # {"item_id", "delete": bool, "removed"} → {}
    CACHE_CHANGE = "cache.change"
    # ProcessingSpec → {}; what the cache before had is applied, and the source finds in the new one
    # where to go on. It must send nothing meanwhile
    CACHE_ERASE = "cache.erase"  # {"item_id", "url"} → {}; refused for the cache it processes from
    STORES_READ = "stores.read"  # {"urls"} → FoundItems: every item that the stores hold
    # protocol.replicas
    REPLICAS_READ = "replicas.read"  # {"urls"} → StoredItems: whatever lies in the stores, of whom
    REPLICA_ERASE = "replica.erase"  # ErasureSpec → {}; refused for what this worker processes
    PROCESSING_COMPACT = "processing.compact"  # {"item_id", "dry_run": bool} → SpaceReport
    PROCESSING_SCRUB = "processing.scrub"  # {"item_id", "dry_run": bool} → ScrubReport
    PROCESSING_SEAL = "processing.seal"
    # {"item_id", "epoch": new epoch, "drain_seconds"} → RecoveryPoint: the newest, after draining;
    # from then on the catalog refuses anything of an older epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """token: one-time. key: 32 random bytes in hex that the node made and keeps (0600)."""

    token: str
    role: Role
    region: str
    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentReply:
    node_id: str


PROCESS_HEADER = "Leeward-Process"
"""Of a node's requests: which of its processes asks, "starts.random" (decimal, hex)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """id is the idempotency key: a command delivered twice is carried out once."""

    id: str
    verb: Verb
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """ok: `result` counts; else the error's code, sentence and hint."""

    command_id: str
    ok: bool
    result: dict[str, object] = field(default_factory=dict)
    error_code: str = ""
    error: str = ""
    error_hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationStatus:
    """What an agent says of one item it replicates. TRACKING without a problem: it has just begun
    anew, and not looked at the VM yet."""

    item_id: str
    epoch: int
    state: ReplicationState
    initial_done: bool
    """True once the first consistent cut of this epoch has been uploaded."""
    sweep_bytes_done: int = 0
    sweep_bytes_total: int = 0
    uploaded_sequence: int = 0
    uploaded_time_ns: int = 0
    bytes_written: int = 0
    """By the guest, since protection began on this agent run."""
    bytes_shipped: int = 0
    """Stored in the cache, compressed, since protection began on this agent run."""
    problem: str = ""
    bandwidth_bytes_per_second: int = 0
    """What the policy lets it send just now; 0: any amount."""
    uploads_at_once: int = 0
    """Segments it sends at once, as the cache rewards it; 0 before the first."""
    current_time_ns: int = 0
    """Everything written until then is in the cut `uploaded_sequence`, a recovery point: the points
    of an idle VM do not grow old. 0 while there is more."""
    freeze: FreezeReport | None = None
    """The newest attempt at an application-consistent point; None before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingStatus:
    """What a worker says of one item it processes."""

    item_id: str
    epoch: int
    applied_sequence: int
    newest_point_time_ns: int
    bytes_applied: int = 0
    points_added: tuple[RecoveryPoint, ...] = ()
    """New since the last post the service acknowledged."""
    points_removed: tuple[str, ...] = ()
    points_complete: bool = False
    """In a worker's first report of an item: there are no points but `points_added` and what later
    posts add."""
    quarantined: tuple[str, ...] = ()
    """Points that touch something damaged: nothing is to fail over to them."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a worker found by reading everything stored of an item. damaged: objects, and what is
    wrong with each. quarantined: the recovery points these touch. heals: the source is being asked
    for what the newest state lacks."""

    item_id: str
    objects: int = 0
    bytes: int = 0
    damaged: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    heals: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceReport:
    """How an item's space in the target stands after a round of compaction and deleting.

    stored_bytes: of its segments and maps. live_bytes, dead_bytes: of data, uncompressed, that
    some recovery point needs and that none does, in windows of more than one cut;
    reclaimable_bytes: of the latter where rewriting is worth it. garbage_bytes: in objects that are
    to be deleted once nobody can be reading them. rewritten_bytes: written anew by this round.
    pins: readers that hold something, if anything could have been deleted. catalog_bytes: in all of
    the catalog's objects. trimmed_records: of the catalog, deleted by this round.
    """

    item_id: str
    stored_bytes: int = 0
    live_bytes: int = 0
    dead_bytes: int = 0
    reclaimable_bytes: int = 0
    garbage_bytes: int = 0
    freed_objects: int = 0
    freed_bytes: int = 0
    rewritten_bytes: int = 0
    pins: int = 0
    catalog_bytes: int = 0
    trimmed_records: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HydrationStatus:
    """How far a VM booted from a recovery point has its disks local."""

    vm_id: str
    bytes_done: int
    bytes_total: int
    done: bool
    first_read_ns: int = 0
    """Wall clock when the export answered its first read; 0 before."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Posted every second or so, and at once when something changes."""

    vms: tuple[VmStatus, ...] = ()
    replications: tuple[ReplicationStatus, ...] = ()
    processings: tuple[ProcessingStatus, ...] = ()
    hydrations: tuple[HydrationStatus, ...] = ()
    storage_root: str = ""
    """Agents: directory for storage accounts created without a URL."""
    tunnel: str = ""
    """Agents: where tunnels from the region's other hosts end, "address:port"; "": nowhere."""
    key_ids: tuple[str, ...] = ()
    """Of the encryption keys that the node's host has."""
    memory_available_mib: int | None = None
    """Agents: the largest VM that could be started now; None: not told."""
    memory_total_mib: int | None = None
    """Agents: the largest VM that the host could run with nothing else on it; None: not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """The service's word that an item has moved on to `epoch`: an older one must stop."""

    item_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The service's word to the item's worker: its source has just said that this cut is in the
    cache, and none later. Who hears this need not look there."""

    item_id: str
    epoch: int
    sequence: int


class MeetingPhase(Enum):
    """READY: the VM can hold at once. HELD: its tap acknowledges nothing. ENDED: it does again."""

    READY = "ready"
    HELD = "held"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingCall:
    """The service's word to an agent: this item is wanted for a shared recovery point, now."""

    item_id: str
    mark: SharedMark


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingCalls:
    calls: tuple[MeetingCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingWord:
    """How far a member is; the reply comes when it is known what the others say.

    is_changed, with READY: content has come since its last shared point. problem, with ENDED: why
    it has no share in this one, "" if it has.
    """

    mark_id: str
    item_id: str
    phase: MeetingPhase
    is_changed: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingReply:
    """go: all members are that far; go on. Else the attempt is over: let go."""

    go: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply:
    """What a node learns by posting its status."""

    supersede: tuple[Superseded, ...] = ()
    announced: tuple[Announced, ...] = ()
    is_member: bool = False
    """Something replicated from there is in a consistency group: listen for calls to meetings."""
