"""Waiting for jobs: every state is shown, a short absence forgiven, a long one not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.client.jobs import wait_job
from leeward.core.errors import Unavailable
from leeward.model.recovery import Job, JobState

RUNNING = Job(id="job-1", verb="failover", target="item/x", state=JobState.RUNNING, created_ns=1)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Source:
    """Gives the states in turn; None is an absent service."""

    def __init__(self, *states: JobState | None) -> None:
        self._states = list(states)

    def job(self, job_id: str) -> Job:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if state is None:
            raise Unavailable("away")
        return replace(RUNNING, state=state)


def test_every_state_is_shown_until_the_end() -> None:
    seen: list[JobState] = []
    source = Source(JobState.RUNNING, None, None, JobState.FAILED)
    ended = wait_job(source, RUNNING, on_progress=lambda job: seen.append(job.state), clock=Time())
    assert ended.state is JobState.FAILED
    assert seen == [JobState.RUNNING, JobState.RUNNING, JobState.FAILED]


def test_service_that_stays_away_ends_the_waiting() -> None:
    with pytest.raises(Unavailable):
        wait_job(Source(None), RUNNING, clock=Time())


def test_waiting_has_an_end() -> None:
    with pytest.raises(Unavailable, match="has not ended yet"):
        wait_job(Source(JobState.RUNNING), RUNNING, timeout_seconds=5, clock=Time())
