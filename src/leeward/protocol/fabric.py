"""What an agent is asked to make real on its host: fully resolved, nothing left to look up.

Owns: the shape of fabric commands. Must not know: QEMU. Sits between workflows and agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leeward.model.recovery import DEFAULT_TIERS, BandwidthLimit, RetentionTier
from leeward.model.resources import PowerState


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetSpec:
    name: str
    prefix: str
    gateway: str
    host_address: str = ""
    """What this host's side of the subnet has; "": the gateway's address."""
    tunnel_id: int = 0
    """VXLAN network identifier, the same on every host of the region; 0: no tunnels."""
    bridge: str = ""
    """Existing bridge of the host to be joined with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """network_id is unique on the host, at most 11 of [a-z0-9-]: it names namespace and bridges."""

    network_id: str
    name: str
    subnets: tuple[SubnetSpec, ...]
    peers: tuple[str, ...] = ()
    """Tunnel ends ("address:port") of the other hosts that have VMs in the network."""
    is_routed: bool = False
    has_nat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSpec:
    name: str
    url: str
    disk_directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    name: str
    directory: str
    """The storage account's disk directory on the host; the image is <vm>-<disk>.<format>."""
    format: str
    size_bytes: int
    image: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    name: str
    network_id: str
    subnet: str
    address: str
    prefix_length: int
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """vm_id is unique on the host, at most 40 of [a-z0-9-]; name is the guest's host name.

    made_for: the job that asks for it: what undoes that job must not delete a VM that was there
    before. It tells no VM from another.
    """

    vm_id: str
    name: str
    vcpus: int
    memory_mib: int
    firmware: str
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    forwards: tuple[int, ...] = ()
    display: str = "none"
    made_for: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSize:
    """What of a stopped VM can be changed."""

    vm_id: str
    vcpus: int
    memory_mib: int
    forwards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskAddition:
    """Give a VM of this host one more disk."""

    vm_id: str
    disk: DiskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOfVm:
    vm_id: str
    disk: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskGrowth:
    """Make a disk larger. item_id: of the item that the VM's replication is for, "" for none."""

    vm_id: str
    disk: str
    size_bytes: int
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimSpec:
    """Have a VM's guest discard what it does not use. item_id: of the item that its replication is
    for, "" for none."""

    vm_id: str
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimResult:
    """How much less space the VM's images take on their host than before."""

    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    guest_port: int
    host_address: str
    host_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmStatus:
    vm_id: str
    power: PowerState
    accelerator: str = ""
    pid: int = 0
    forwards: tuple[Forward, ...] = ()
    console_log: str = ""
    """Path on the host of the serial console's output."""
    disk_sizes: dict[str, int] = field(default_factory=dict)
    """Disk → virtual size, bytes: known here alone when a disk was copied from an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDisk:
    """One disk's replica: where its log is, and the catalog that speaks for it."""

    disk: str
    size_bytes: int
    target_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSpec:
    """Replicate a VM on this host: tap, sweep, cut, upload. Asked again with the same item and
    epoch it changes nothing."""

    item_id: str
    epoch: int
    vm_id: str
    disks: tuple[str, ...]
    cache_url: str
    cut_interval_seconds: float = 1.0
    compression: str = "zstd"
    is_based: bool = False
    """The target has been seeded with just what this VM's disks were when it was booted: it lacks
    nothing but what the VM wrote since."""
    key_id: str = ""
    """Of the key that everything is encrypted with; "": nothing is. Never the key itself."""
    vm_config: dict[str, object] = field(default_factory=dict)
    """The VirtualMachine resource, travelling in every cut."""
    bandwidth: tuple[BandwidthLimit, ...] = ()
    app_consistent_seconds: int = 0
    """How often an application-consistent point is made; 0: only when asked for."""
    is_held: bool = False
    """Nothing is put into the cache: the item is going over to another. Writes are received on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSpec:
    """Shut the VM down, the guest by itself if it does so within `power_off_seconds`, and have all
    it wrote in the cache, as a recovery point, within `drain_seconds` more."""

    item_id: str
    epoch: int
    vm_id: str
    power_off_seconds: float
    drain_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainResult:
    """sequence: of the cut after which the VM wrote nothing. is_guest_off: the guest itself had
    powered off; else it was paused in the middle of what it did."""

    sequence: int
    is_guest_off: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSpec:
    """Have a recovery point made now while the guest is frozen, within `seconds`. run_id: of this
    very attempt, which runs beside the item's other commands."""

    run_id: str
    item_id: str
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSpec:
    """Have the newest state of an item's replica be what the disks of a stopped VM on this host
    hold: as a cut of `epoch`, no recovery point."""

    item_id: str
    epoch: int
    vm_id: str
    catalog_url: str
    replicas: tuple[ReplicaDisk, ...]
    key_id: str = ""
    """Of the key to encrypt with; "": none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """is_seeded: False when the disks are not there, or not all of their content. bytes_stored: of
    data that the replica had not held."""

    is_seeded: bool
    bytes_stored: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSpec:
    """Create and start `vm` from a recovery point: each disk an overlay over an export of it.

    hydrates: its disks become local in the background; else it reads from the export all its life.
    """

    item_id: str
    epoch: int
    point_id: str
    catalog_url: str
    replicas: tuple[ReplicaDisk, ...]
    vm: VmSpec
    networks: tuple[NetworkSpec, ...]
    hydrates: bool = True
    is_varied: bool = False
    """The item's disks have changed: of `replicas`, and the VM's disks, those count that the point
    has, with the sizes that it says. The answer tells which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """is_kept: the VM is there, and was not made for the job that is undone."""

    is_kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingSpec:
    """Turn an item's cuts into recovery points, in the target region's worker."""

    item_id: str
    epoch: int
    cache_url: str
    catalog_url: str
    replicas: tuple[ReplicaDisk, ...]
    tiers: tuple[RetentionTier, ...] = DEFAULT_TIERS
    compression: str = "zstd"
    key_id: str = ""
    consistency_group: str = ""
    """Id of the group whose shared points the item keeps or drops together with other items."""
    about: dict[str, object] = field(default_factory=dict)
    """What the item is to the service, kept in the catalog: a lost vault can be made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSpec:
    """Run a file of the host's scripts directory, with `context` as JSON on standard input."""

    run_id: str
    script: str
    context: dict[str, object]
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptResult:
    """The end of what it printed."""

    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSpec:
    """Wait until something accepts TCP connections at `address`, seen from inside the network."""

    run_id: str
    network_id: str
    address: str
    port: int
    timeout_seconds: float
