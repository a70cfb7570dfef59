"""Drills: test failovers that look for themselves whether the VM came up, and what they found.

Owns: their shape, and when an item counts as proven. Must not know: who runs one, or how a guest is
asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from leeward.core.errors import InvalidRequest

BOOT_SECONDS = 300.0
PROBE_SECONDS = 60.0
PROBES_MAX = 32
EVERY_SECONDS_MIN = 60
SECONDS_MAX = 86400.0
RESULTS_KEPT = 30
"""Of each item: the newest."""


class ProbeKind(Enum):
    """TCP: the port accepts a connection. HTTP: a GET is answered with a status and a text."""

    TCP = "tcp"
    HTTP = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question to the test VM, asked from inside its isolated network until it is answered."""

    kind: ProbeKind
    port: int
    path: str = "/"
    status: int = 200
    text: str = ""
    """Must be in the body; "": any will do."""
    timeout_seconds: float = PROBE_SECONDS

    @property
    def name(self) -> str:
        """Return what people call it: "tcp:5432", "http:8080/check"."""
        return f"{self.kind.value}:{self.port}{self.path if self.kind is ProbeKind.HTTP else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """How an item is drilled, and how often. Scope is the vault, name the item's."""

    name: str
    vault: str
    every_seconds: int = 0
    """0: only when somebody asks."""
    recovery_point: str = "latest"
    probes: tuple[Probe, ...] = ()
    boot_seconds: float = BOOT_SECONDS
    """How long the guest may take until its address answers."""
    reads_all: bool = True
    """Whether every byte of the point is read and verified, not just what the guest asks for."""
    since_ns: int = 0
    """When this schedule was made."""
    begun_ns: int = 0
    """When the last drill of it began; 0: none has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDrill:
    """How often a recovery plan is drilled, and from which points. What each of its VMs is asked,
    its own drill says. Scope is the vault, name the plan's."""

    name: str
    vault: str
    every_seconds: int = 0
    """0: only when somebody asks."""
    recovery_point: str = "latest"
    reads_all: bool = True
    """Whether every byte of the points is read and verified."""
    since_ns: int = 0
    begun_ns: int = 0


def check_plan_drill(drill: PlanDrill) -> None:
    """Return if the drill makes sense. Raises: InvalidRequest naming the field."""
    _check_interval(drill.every_seconds)


def check_drill(drill: Drill) -> None:
    """Return if the drill makes sense. Raises: InvalidRequest naming the field."""
    _check_interval(drill.every_seconds)
    if not 0 < drill.boot_seconds <= SECONDS_MAX:
        raise InvalidRequest(
            f"boot_seconds must be in (0, {SECONDS_MAX:.0f}]", field="boot_seconds"
        )
    if len(drill.probes) > PROBES_MAX:
        raise InvalidRequest(f"a drill has at most {PROBES_MAX} probes", field="probes")
    for probe in drill.probes:
        _check_probe(probe)


def _check_interval(every_seconds: int) -> None:
    if every_seconds and every_seconds < EVERY_SECONDS_MIN:
        raise InvalidRequest(
            f"every_seconds: a drill takes a while; at least {EVERY_SECONDS_MIN}, or 0 for none",
            field="every_seconds",
        )


def _check_probe(probe: Probe) -> None:
    field = f"probes.{probe.name}"
    if not 0 < probe.port < 65536:
        raise InvalidRequest(f"{field}: port {probe.port} is not in 1 to 65535", field=field)
    if not 0 < probe.timeout_seconds <= SECONDS_MAX:
        raise InvalidRequest(
            f"{field}: timeout_seconds must be in (0, {SECONDS_MAX:.0f}]", field=field
        )
    is_path = probe.path.startswith("/") and probe.path.isascii() and probe.path.isprintable()
    if not is_path or " " in probe.path:
        raise InvalidRequest(f"{field}: {probe.path!r} is not a path of a URL", field=field)
    if probe.kind is ProbeKind.HTTP and not 100 <= probe.status <= 599:
        raise InvalidRequest(f"{field}: status {probe.status} is none of HTTP", field=field)


class DrillOutcome(Enum):
    """CUT_SHORT: a failover came, or somebody cancelled it. It proves nothing either way."""

    PASSED = "passed"
    FAILED = "failed"
    CUT_SHORT = "cut_short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a drill looked at. detail: what was seen, or what was wrong."""

    name: str
    passed: bool
    took_seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDigest:
    """All of a disk's content at the point, as it was read for the drill.

    sha256: over every 64 KiB chunk that is not all zeros, in order, each preceded by its offset (8
    bytes, little-endian): the same for the same content, however it is stored.
    """

    disk: str
    size_bytes: int
    bytes_read: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillVerdict:
    """What a drill came to. problem: one sentence when it did not pass."""

    job_id: str
    outcome: DrillOutcome
    region: str
    recovery_point: str
    point_time_ns: int
    began_ns: int
    ended_ns: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """The evidence of one drill. Scope is the item's id, name the job's."""

    item: str
    verdict: DrillVerdict
    host: str
    plan: str = ""
    """The recovery plan that was drilled with it; "": none."""
    findings: tuple[Finding, ...] = ()
    disks: tuple[DiskDigest, ...] = ()
    console: str = ""
    """The end of what the guest wrote to its serial console."""
    screen_sha256: str = ""
    """Of the picture of its display, kept beside; "": it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDrillResult:
    """The evidence of one drill of a recovery plan: its actions', and what was found at each VM,
    whose own evidence is kept as of any drill. Scope is the plan's target, name the job's.

    The verdict's recovery point is the one that was asked for, its time that of the oldest.
    """

    plan: str
    verdict: DrillVerdict
    host: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillScreen:
    """The picture of a drill's display. png: base64."""

    png: str


class ReadinessState(Enum):
    """UNPROVEN: no drill of this direction has come to an end yet."""

    PROVEN = "proven"
    FAILED = "failed"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What the item's last drill proved, and how long ago (-1: never)."""

    state: ReadinessState = ReadinessState.UNPROVEN
    age_seconds: float = -1.0
    recovery_point: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReadiness:
    """How a recovery plan is drilled, None: only when somebody asks, and what that proved."""

    plan: str
    drill: PlanDrill | None
    readiness: Readiness


def readiness(verdict: DrillVerdict | None, *, target_region: str, now_ns: int) -> Readiness:
    """Return what `verdict`, the item's last, says of a failover to `target_region`."""
    if verdict is None or verdict.region != target_region:
        return Readiness()
    passed = verdict.outcome is DrillOutcome.PASSED
    return Readiness(
        state=ReadinessState.PROVEN if passed else ReadinessState.FAILED,
        age_seconds=max(0.0, (now_ns - verdict.ended_ns) / 1e9),
        recovery_point=verdict.recovery_point,
        problem=verdict.problem,
    )
