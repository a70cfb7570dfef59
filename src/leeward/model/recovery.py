"""Vaults, policies, replicated items, recovery points, jobs: values and legal state changes.

Owns: what an item may do next. Must not know: who does it, or where any of it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from leeward.core.errors import Conflict, InvalidRequest
from leeward.model.drills import DrillVerdict
from leeward.model.resources import NetworkInterface, VirtualMachine


class ItemState(Enum):
    PROTECTING = "protecting"
    INITIAL_REPLICATION = "initial_replication"
    PROTECTED = "protected"
    RESYNCING = "resyncing"
    DEGRADED = "degraded"
    FAILING_OVER = "failing_over"
    FAILED_OVER = "failed_over"
    COMMITTED = "committed"
    REPROTECTING = "reprotecting"
    DISABLING = "disabling"
    FAILED = "failed"


_S = ItemState
TRANSITIONS: dict[ItemState, frozenset[ItemState]] = {
    _S.PROTECTING: frozenset({_S.INITIAL_REPLICATION, _S.FAILED, _S.DISABLING}),
    _S.INITIAL_REPLICATION: frozenset({_S.PROTECTED, _S.RESYNCING, _S.DEGRADED, _S.DISABLING}),
    _S.PROTECTED: frozenset({_S.RESYNCING, _S.DEGRADED, _S.FAILING_OVER, _S.DISABLING}),
    _S.RESYNCING: frozenset({_S.PROTECTED, _S.DEGRADED, _S.FAILING_OVER, _S.DISABLING}),
    _S.DEGRADED: frozenset(
        {_S.INITIAL_REPLICATION, _S.PROTECTED, _S.RESYNCING, _S.FAILING_OVER, _S.DISABLING}
    ),
    _S.FAILING_OVER: frozenset({_S.FAILED_OVER, _S.PROTECTED, _S.DEGRADED}),
    _S.FAILED_OVER: frozenset({_S.FAILING_OVER, _S.COMMITTED, _S.DEGRADED, _S.DISABLING}),
    _S.COMMITTED: frozenset({_S.FAILED_OVER, _S.REPROTECTING, _S.DISABLING}),
    _S.REPROTECTING: frozenset({_S.PROTECTED, _S.COMMITTED, _S.DISABLING}),
    _S.DISABLING: frozenset(),
    _S.FAILED: frozenset({_S.PROTECTING, _S.DISABLING}),
}


class Consistency(Enum):
    """NONE: data only, no recovery point (initial replication, resync)."""

    NONE = "none"
    CRASH = "crash"
    APPLICATION = "application"


class ReplicationState(Enum):
    """STREAMING: write order known. RESYNCING: tap live, not yet clean. TRACKING: bitmaps only."""

    STREAMING = "streaming"
    RESYNCING = "resyncing"
    TRACKING = "tracking"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionTier:
    """Keep one recovery point per `every_seconds` (0: every one) up to `for_seconds` of age."""

    every_seconds: int
    for_seconds: int


POWER_OFF_SECONDS = 60.0
"""How long the guest of a planned failover may take to power off before it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthLimit:
    """Send at most so much between two times of the day, by the source host's clock and time zone.

    bytes_per_second: 0 is any amount. start, end: "HH:MM", end exclusive; an end that is not later
    than the start is on the next day.
    """

    bytes_per_second: int
    start: str = "00:00"
    end: str = "24:00"


def bandwidth_at(limits: Sequence[BandwidthLimit], minute: int) -> int:
    """Return the bytes a second that may be sent in a minute of the day, 0 for any amount: what the
    first of the limits says that speaks of it."""
    for limit in limits:
        start, end = minute_of_day(limit.start), minute_of_day(limit.end)
        is_within = start <= minute < end if start < end else not end <= minute < start
        if is_within:
            return limit.bytes_per_second
    return 0


def minute_of_day(text: str) -> int:
    """Return the minute that "HH:MM" is, 1440 for "24:00". Raises: InvalidRequest."""
    match = re.fullmatch(r"(\d\d):(\d\d)", text)
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1
    if not 0 <= minute <= 24 * 60:
        raise InvalidRequest(f"{text!r} is not a time of the day", hint="like 08:00")
    return minute


DEFAULT_TIERS = (
    RetentionTier(every_seconds=0, for_seconds=600),
    RetentionTier(every_seconds=60, for_seconds=7200),
    RetentionTier(every_seconds=3600, for_seconds=86400),
)


AES_256_GCM = "aes-256-gcm"
APP_CONSISTENT_SECONDS_MIN = 10
"""Guests are not frozen more often by a policy."""
TRIM_SECONDS_MIN, TRIM_SECONDS_MAX = 3600, 30 * 86400
"""Guests are not trimmed more often by a policy, nor seldomer: jobs are remembered that long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: str
    cut_interval_seconds: float = 1.0
    tiers: tuple[RetentionTier, ...] = DEFAULT_TIERS
    """Ages count from the newest point: a dead source never ages away its last copies."""
    compression: str = "zstd"
    """"zstd", "lz4" or "none"."""
    encryption: str = "none"
    """"none", or AES_256_GCM: everything leaves the source encrypted with the vault's key."""
    rpo_alert_seconds: float = 30.0
    shared_interval_seconds: float = 60.0
    """Between two recovery points that the items of a consistency group share."""
    bandwidth: tuple[BandwidthLimit, ...] = ()
    """Of each VM, into its cache; the first that speaks of a time counts, none: no limit."""
    app_consistent_seconds: int = 0
    """How often the guest is frozen for an application-consistent point; 0: only when asked."""
    trim_seconds: int = 0
    """How often the guest is asked to give back what it does not use; 0: only when asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    name: str
    key_id: str = ""
    """Of the key that new data is encrypted with where the policy says so. The key itself is on
    agents and workers only."""


def point_id(epoch: int, sequence: int) -> str:
    """Return the id of the recovery point that a cut is."""
    return f"rp-{epoch:04d}-{sequence:08d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMark:
    """What a recovery point carries that was made together with those of other VMs.

    Each member bears witness for itself: its tap acknowledged nothing from its mark on until, all
    members holding, it was told to go on. The points with one mark's id are one moment of all its
    members if every one of `members` has such a point; else each is only its own VM's.
    """

    id: str
    """Of one attempt, never used again; sorts by time."""
    group: str
    """Id of the consistency group."""
    members: tuple[str, ...]
    """Ids of its items, sorted."""
    time_ns: int
    """The service's clock when the attempt began: the same in every member."""
    previous_ns: int = 0
    """time_ns of the group's shared point before it, as far as was known then; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTime:
    """How long a guest stood still for a recovery point, ns: at most, from asking for the freeze to
    the answer that it thawed; ours_ns: of that, what we kept it waiting."""

    total_ns: int
    ours_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A moment of the source VM that can be opened on all its disks at once."""

    id: str
    """"rp-" + epoch + "-" + cut sequence: sorts by time within an item."""
    epoch: int
    sequence: int
    time_ns: int
    """The source host's clock at the cut's mark."""
    consistency: Consistency
    is_quarantined: bool = False
    """It touches something damaged in the stores: nothing fails over to it."""
    shared: SharedMark | None = None
    frozen: FrozenTime | None = None
    """Of an application-consistent point; None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeReport:
    """What the newest attempt at an application-consistent recovery point came to.

    number: counts attempts on the source host. time_ns: when it began. epoch, sequence: of the
    point that it ended with. frozen_ms: how long the guest's file systems were frozen at most, from
    asking for it to the answer that it thawed; ours_ms: of that, what we kept it waiting.
    """

    number: int
    epoch: int
    time_ns: int
    sequence: int
    consistency: Consistency
    frozen_ms: float = 0.0
    ours_ms: float = 0.0
    problem: str = ""
    """Why the point is crash-consistent only, "" if it is not."""

    @property
    def point_id(self) -> str:
        return point_id(self.epoch, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMapping:
    """One disk of a replicated item and where its replica goes."""

    disk: str
    source_account: str
    target_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerDisk:
    """A disk that a replicated VM has no more; recovery points of the time before have it."""

    mapping: DiskMapping
    size_bytes: int
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerDirection:
    """What an item used before it was reprotected, and uses again when it is next."""

    worker_id: str
    cache_region: str
    cache_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A test failover: where its VM runs. networks: target network → id of its isolated copy; one
    set aside for tests → its id on the host."""

    recovery_point: str
    region: str
    host: str
    vm_id: str
    networks: dict[str, str] = field(default_factory=dict)
    started_ns: int = 0
    plan: str = ""
    """The recovery plan that is tested, whose test VMs share networks; "": none."""
    group: str = ""
    """The consistency group that is tested, whose test VMs share networks; "": none."""
    nics: tuple[NetworkInterface, ...] = ()
    """Its interfaces, some or all in networks set aside for tests; (): in isolated copies."""
    copies: tuple[str, ...] = ()
    """The target networks of those of `nics` that are in isolated copies."""

    @property
    def reachable(self) -> tuple[NetworkInterface, ...]:
        """Those of its interfaces that are in networks set aside for tests."""
        return tuple(nic for nic in self.nics if nic.network not in self.copies)

    @property
    def set_aside(self) -> tuple[str, ...]:
        """The networks set aside for tests that it is in."""
        return tuple(dict.fromkeys(nic.network for nic in self.reachable))

    @property
    def test_network(self) -> str:
        """The networks set aside for tests that it is in, for people; "": isolated copies."""
        return ", ".join(self.set_aside)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatedItem:
    """id names it in stores for ever; name is that of its first source VM. Reprotecting turns it
    round: source and target change places."""

    id: str
    name: str
    vault: str
    policy: str
    state: ItemState
    epoch: int
    source_region: str
    source_vm: str
    target_region: str
    target_resource_group: str
    target_network: dict[str, str] = field(default_factory=dict)
    """source network → target network."""
    target_availability_set: str = ""
    test_networks: dict[str, str] = field(default_factory=dict)
    """Of its test VMs: network interface → network set aside for tests, or network/subnet. All
    others are in isolated copies."""
    test_addresses: dict[str, str] = field(default_factory=dict)
    """network interface of those → address there."""
    target_vm: str = ""
    cache_account: str = ""
    next_cache_account: str = ""
    """The one that it is just going over to; "" normally. Meanwhile its source sends nothing."""
    disks: tuple[DiskMapping, ...] = ()
    excluded_disks: tuple[str, ...] = ()
    former_disks: tuple[FormerDisk, ...] = ()
    has_varied_disks: bool = False
    """True once a disk was added, removed or made larger: what disks a recovery point has, and how
    large, its catalog says."""
    recovery_point: str = ""
    """The point it is failed over to, if it is."""
    drained_point: str = ""
    """The point that holds all its source ever wrote, once a planned failover has proven one."""
    former: FormerDirection | None = None
    """None until it is reprotected for the first time."""
    problem: str = ""
    """One sentence for the operator when something is wrong; "" when all is well."""
    rehearsal: Rehearsal | None = None
    """The test failover under way; it changes nothing of the item's state."""

    @property
    def all_disks(self) -> tuple[DiskMapping, ...]:
        """The disks of any of its recovery points, those it has now first."""
        return (*self.disks, *(former.mapping for former in self.former_disks))

    freeze: FreezeReport | None = None
    """What the newest attempt at an application-consistent point came to; None before the first."""
    last_drill: DrillVerdict | None = None
    """What the last drill that came to an end proved."""


def machine_of_test(item: ReplicatedItem, target_vm: VirtualMachine) -> VirtualMachine | None:
    """Return what occupies networks set aside for tests: the item's test VM, named for people;
    None while it has none there."""
    test = item.rehearsal
    if test is None or not test.nics:
        return None
    return replace(
        target_vm,
        name=f"test VM of {item.name}",
        region=test.region,
        host=test.host,
        nics=test.reachable,
    )


def check_transition(item: ReplicatedItem, following: ItemState) -> None:
    """Return if the item may become `following`. Raises: Conflict."""
    if following not in TRANSITIONS[item.state]:
        now, then = _words(item.state), _words(following)
        is_so = item.state is following
        raise Conflict(
            f"{item.name} is {now} {'already' if is_so else f'and cannot become {then}'}",
            field="state",
            hint=_way_out(item, following),
        )


def check_is(item: ReplicatedItem, *states: ItemState) -> None:
    """Return if the item is in one of `states`; the first is the usual one. Raises: Conflict."""
    if item.state not in states:
        raise Conflict(
            f"{item.name} is {_words(item.state)}, not {_words(states[0])}",
            field="state",
            hint=_way_to(item, states[0]),
        )


def _words(state: ItemState) -> str:
    return state.value.replace("_", " ")


def _way_out(item: ReplicatedItem, following: ItemState) -> str:
    """Return what has to happen for the item to become `following`."""
    before = {
        ItemState.REPROTECTING: ItemState.COMMITTED,
        ItemState.COMMITTED: ItemState.FAILED_OVER,
        ItemState.FAILING_OVER: ItemState.PROTECTED,
    }
    return _way_to(item, before.get(following, following))


def _way_to(item: ReplicatedItem, wanted: ItemState) -> str:
    """Return what brings the item to `wanted`, or a step nearer."""
    name = item.name
    if item.state in _OF_A_JOB:
        return f"a job is at it: `leeward item show {name}` tells how far it is"
    if item.state is ItemState.FAILED:
        return f"`leeward unprotect {name}` and protect it again"
    if item.state is ItemState.COMMITTED:
        return f"`leeward reprotect {name}` comes first, `leeward undo-commit` before that"
    if item.state is ItemState.FAILED_OVER:
        return f"`leeward commit {name}` comes first"
    if wanted is ItemState.COMMITTED:
        return f"`leeward commit {name}` after a failover comes first"
    if wanted is ItemState.FAILED_OVER:
        return f"`leeward failover {name}` comes first"
    return f"`leeward item show {name}` tells what it is doing"


_OF_A_JOB = frozenset(
    {
        ItemState.PROTECTING,
        ItemState.INITIAL_REPLICATION,
        ItemState.FAILING_OVER,
        ItemState.REPROTECTING,
        ItemState.DISABLING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMapping:
    source_region: str
    source_network: str
    target_region: str
    target_network: str


class JobState(Enum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStep:
    name: str
    state: JobState
    started_ns: int = 0
    ended_ns: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    eta_seconds: float = -1.0
    """-1: unknown."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    verb: str
    target: str
    """What it acts on: "item/web-1", "vm/east/web-1"."""
    state: JobState
    created_ns: int
    ended_ns: int = 0
    steps: tuple[JobStep, ...] = ()
    error_code: str = ""
    error: str = ""
    result: dict[str, object] = field(default_factory=dict)
