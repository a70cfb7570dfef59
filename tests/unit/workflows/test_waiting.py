"""What people see of the initial replication."""

from __future__ import annotations

from typing import cast

from leeward.core.clock import Clock
from leeward.model.recovery import ReplicationState
from leeward.protocol.messages import ReplicationStatus
from leeward.workflows.job import StepProgress
from leeward.workflows.waiting import _Sweep


class Steps:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, float]] = []

    def report(
        self, *, bytes_done: int, bytes_total: int, eta_seconds: float = -1.0, detail: str = ""
    ) -> None:
        self.reports.append((bytes_done, bytes_total, eta_seconds))


class Seconds:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 1.0
        return self._now


def status(state: ReplicationState, done: int = 0, total: int = 0) -> ReplicationStatus:
    return ReplicationStatus(
        item_id="item-1",
        epoch=1,
        state=state,
        initial_done=state is ReplicationState.STREAMING,
        sweep_bytes_done=done,
        sweep_bytes_total=total,
    )


def test_amount_and_time_left_follow_the_sweep_and_the_whole_amount_stays_when_it_is_over() -> None:
    steps = Steps()
    sweep = _Sweep(cast(Clock, Seconds()), cast(StepProgress, steps))
    sweep.report(status(ReplicationState.TRACKING), "")
    sweep.report(status(ReplicationState.RESYNCING, 10, 100), "")
    sweep.report(status(ReplicationState.RESYNCING, 30, 100), "")
    sweep.report(status(ReplicationState.STREAMING), "")
    assert [report[:2] for report in steps.reports] == [(0, 0), (10, 100), (30, 100), (100, 100)]
    assert steps.reports[2][2] > 0
    assert sweep.bytes_total == 100
    sweep.report(status(ReplicationState.RESYNCING, 0, 120), "")  # a resync has begun since
    sweep.finish()
    assert steps.reports[-1][:2] == (120, 120)
