"""Judging a replicated item by what its nodes report.

Owns: which state and which sentence follow from the reports. Must not know: where reports and
items are kept. Called on every status post and once a second for silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from leeward.model.recovery import ItemState, ReplicatedItem, ReplicationState
from leeward.protocol.messages import ProcessingStatus, ReplicationStatus

SILENT_SECONDS = 10.0
"""A node not heard for longer does not answer."""

FOLLOWING = frozenset(
    {
        ItemState.INITIAL_REPLICATION,
        ItemState.PROTECTED,
        ItemState.RESYNCING,
        ItemState.DEGRADED,
    }
)
"""States that follow the nodes' reports; in all others a verb decides."""

_HAD_POINTS = frozenset({ItemState.PROTECTED, ItemState.RESYNCING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The newest word about one item. A status is None while its node has not mentioned it."""

    source: str
    """Who replicates it, for people: "host-1 in east"."""
    source_silent_seconds: float
    replication: ReplicationStatus | None
    worker: str
    worker_silent_seconds: float
    processing: ProcessingStatus | None
    newest_point_age_seconds: float | None
    """None: it has no recovery point yet."""
    rpo_alert_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the item is; problem is "" when all is well, and a sentence that does not change by
    the second, since it is stored."""

    state: ItemState
    problem: str = ""


def judge(item: ReplicatedItem, reports: Reports) -> Judgement:
    """Return the state that follows from the reports. Call it for items in FOLLOWING only."""
    problem = _problem(item, reports)
    if problem:
        return Judgement(state=ItemState.DEGRADED, problem=problem)
    if reports.newest_point_age_seconds is None or reports.replication is None:
        return Judgement(state=ItemState.INITIAL_REPLICATION)
    if reports.replication.state is ReplicationState.TRACKING:  # begun anew, and not looked yet
        return Judgement(state=item.state, problem=item.problem)
    if reports.replication.state is ReplicationState.RESYNCING:
        return Judgement(state=ItemState.RESYNCING)
    return Judgement(state=ItemState.PROTECTED)


def _problem(item: ReplicatedItem, reports: Reports) -> str:
    replication, processing = reports.replication, reports.processing
    is_starting = item.state is ItemState.INITIAL_REPLICATION
    if reports.source_silent_seconds > SILENT_SECONDS:
        return (
            f"{reports.source} does not answer: its VMs run on without it; start it again, or fail "
            "over if the host is lost"
        )
    if reports.worker_silent_seconds > SILENT_SECONDS:
        return f"{reports.worker} does not answer: cuts wait in the cache meanwhile; start it again"
    if replication is None or replication.epoch != item.epoch:
        return "" if is_starting else f"{reports.source} does not replicate it yet"
    if replication.problem:
        return f"{reports.source}: {replication.problem}"
    if replication.state is ReplicationState.STOPPED:
        return f"{reports.source} has stopped replicating it"
    if processing is not None and processing.problem:
        return f"{reports.worker}: {processing.problem}"
    age = reports.newest_point_age_seconds
    if age is None and item.state in _HAD_POINTS:
        return "it has no recovery point any more"
    is_flowing = replication.state in (ReplicationState.STREAMING, ReplicationState.TRACKING)
    if is_flowing and age is not None and age > reports.rpo_alert_seconds:
        return f"its newest recovery point is older than {reports.rpo_alert_seconds:g} s"
    return ""
