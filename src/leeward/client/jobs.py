"""Waiting for a job to end, while saying how far it is.

Owns: how often to ask, and how long an absent service is forgiven. Must not know: terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from leeward.core.clock import Clock, SystemClock
from leeward.core.errors import Unavailable
from leeward.model.recovery import Job, JobState

ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
_POLL_SECONDS = 0.2
_ABSENCE_SECONDS = 60.0
"""How long the service may be away (restarting, say) before waiting for its job is given up."""


class JobSource(Protocol):
    """Where a job's state comes from."""

    def job(self, job_id: str) -> Job: ...


def wait_job(
    source: JobSource,
    job: Job,
    *,
    on_progress: Callable[[Job], None] = lambda job: None,
    timeout_seconds: float = 24 * 3600.0,
    clock: Clock | None = None,
) -> Job:
    """Return the job when it has ended, well or not; `on_progress` sees every state on the way.

    Raises: Unavailable when the service stays away for a minute, or after `timeout_seconds`.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + timeout_seconds
    heard = clock.monotonic()
    on_progress(job)
    while job.state not in ENDED:
        if clock.monotonic() > deadline:
            raise Unavailable(f"{job.id} has not ended yet", hint=f"`leeward job show {job.id}`")
        clock.sleep(_POLL_SECONDS)
        try:
            job = source.job(job.id)
        except Unavailable:
            if clock.monotonic() - heard > _ABSENCE_SECONDS:
                raise
            continue
        heard = clock.monotonic()
        on_progress(job)
    return job
