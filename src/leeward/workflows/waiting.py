"""Waiting for the initial replication, saying how far it is.

Owns: when it is over, rate and ETA. Must not know: what happens before and after.
"""

from __future__ import annotations

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, Unavailable
from leeward.model.recovery import ItemState
from leeward.protocol.messages import ReplicationStatus
from leeward.workflows.bench import Bench
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.monitor import item_key, source_agent

INITIAL_SECONDS = 7 * 86400.0
_LOOK_SECONDS = 1.0
_RATE_SECONDS = 5.0
"""Rates are of the last so many seconds: a start or a stall shows, a hiccup does not."""


def wait_initial(job: RunningJob, progress: StepProgress, item_id: str) -> Json:
    """Return the first recovery point's id and the bytes swept, once the worker lists one.

    Raises: Conflict when the item is disabled or the job cancelled; Unavailable after a week.
    """
    bench, sweep = job.bench, _Sweep(job.bench.clock, progress)
    deadline = bench.clock.monotonic() + INITIAL_SECONDS
    with bench.signals.listen(item_key(item_id)) as listener:
        while True:
            job.check_cancelled()
            done, status, problem = _look(bench, item_id)
            if status is not None:
                sweep.report(status, problem)
            if done is not None:
                sweep.finish()
                return {"recovery_point": done, "bytes": sweep.bytes_total}
            if bench.clock.monotonic() > deadline:
                raise Unavailable("the initial replication did not end within a week")
            listener.wait(_LOOK_SECONDS)


def _look(bench: Bench, item_id: str) -> tuple[str | None, ReplicationStatus | None, str]:
    """Return the first point's id once the item is past its initial replication, else None; the
    agent's word; the item's problem."""
    with bench.vault.read() as records:
        record = records.items.find(item_id)
        if record is None or record.item.state is ItemState.DISABLING:
            raise Conflict("its protection was disabled meanwhile")
        agent = source_agent(records, record)
        point = records.points.newest(item_id)
    status = bench.live.replication(agent.id, item_id) if agent else None
    is_over = point is not None and point.epoch == record.item.epoch
    is_over = is_over and record.item.state is not ItemState.INITIAL_REPLICATION
    return point.id if point and is_over else None, status, record.item.problem


class _Sweep:
    """What the agent says of its sweep, told to people. The agent speaks of it no more once it is
    over: then it was all of it."""

    def __init__(self, clock: Clock, progress: StepProgress) -> None:
        self.bytes_total = 0
        self._clock = clock
        self._progress = progress
        self._rate = _Rate()

    def report(self, status: ReplicationStatus, problem: str) -> None:
        """People see how far it is."""
        is_over = status.initial_done and not status.sweep_bytes_total
        done = self.bytes_total if is_over else status.sweep_bytes_done
        self.bytes_total = status.sweep_bytes_total or self.bytes_total
        speed = self._rate.of(self._clock.monotonic(), done)
        self._progress.report(
            bytes_done=done,
            bytes_total=self.bytes_total,
            eta_seconds=(self.bytes_total - done) / speed if speed and self.bytes_total else -1.0,
            detail=problem,
        )

    def finish(self) -> None:
        """People see that it is done, whatever the agent has begun since."""
        self._progress.report(bytes_done=self.bytes_total, bytes_total=self.bytes_total, detail="")


class _Rate:
    """Bytes per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def of(self, now: float, count: int) -> float:
        """Return the rate, `count` being the bytes so far; 0 while it cannot be told."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()  # the sweep began anew
        self._seen.append((now, count))
        while now - self._seen[0][0] > _RATE_SECONDS and len(self._seen) > 2:
            self._seen.pop(0)
        seconds = now - self._seen[0][0]
        return (count - self._seen[0][1]) / seconds if seconds > 0 else 0.0
