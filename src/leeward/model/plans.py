"""Recovery plans: which items fail over in which order, and what else happens on the way.

Owns: a plan's shape. Must not know: whether it makes sense (recovery_plans.check) or who runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

ACTION_SECONDS = 60.0
APPROVAL_SECONDS = 24 * 3600.0


class ActionKind(Enum):
    """SCRIPT and WAIT_PORT are carried out by an agent of the region failed over to, HTTP by the
    service; APPROVAL waits for a person."""

    SCRIPT = "script"
    HTTP = "http"
    APPROVAL = "approval"
    WAIT_PORT = "wait-port"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAction:
    """One action before or after a group's VMs; it fails when it has not ended in its time."""

    name: str
    kind: ActionKind
    script: str = ""
    """SCRIPT: name of a file in the agent's scripts directory; the context is its standard
    input."""
    url: str = ""
    """HTTP: where the context is posted."""
    message: str = ""
    """APPROVAL: what the person is asked."""
    item: str = ""
    """WAIT_PORT: whose VM is asked; an item of this group or an earlier one."""
    port: int = 0
    timeout_seconds: float = ACTION_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGroup:
    """Items that fail over side by side, once every group of `after` is through."""

    name: str
    items: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    """Groups that come before it, wherever they are listed. Else the order is that of the plan."""
    pre: tuple[PlanAction, ...] = ()
    post: tuple[PlanAction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """Scope is the vault. Its items all go from one region to one other."""

    name: str
    vault: str
    groups: tuple[PlanGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How a plan is run. Failback is the same, once its items are reprotected."""

    planned: bool = False
    recovery_point: str = "latest"
    is_test: bool = False
    """Its VMs are test VMs in isolated networks that they share; scripts and receivers of calls are
    told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One step of a plan's run. name is that of the job's step; group, what and subject say it for
    people: ("web", "pre", "tell-lb"), ("web", "vm", "web-1")."""

    name: str
    group: str
    what: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanApproval:
    """A person's word on an action of a run; scope is the run's job, name the action's step."""

    job_id: str
    step: str
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """A step of a run and how long it took; state "" while it has not begun."""

    step: PlanStep
    state: str = ""
    began_seconds: float = 0.0
    """Since the run's first job began."""
    took_seconds: float = 0.0
    job_id: str = ""
    """VMs: the job that failed it over."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTime:
    group: str
    took_seconds: float
    slowest: str
    """What of the group took longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """How a plan's newest run went, attempts that were resumed included."""

    plan: str
    state: str
    jobs: tuple[str, ...]
    took_seconds: float
    """Of all attempts together, without the time between them."""
    steps: tuple[TimedStep, ...]
    groups: tuple[GroupTime, ...]
    critical_path: tuple[str, ...]
    """The steps that made it last as long as it did: each group's actions and slowest VM."""
    waits_for: str = ""
    """The approval it waits for."""
    error: str = ""
