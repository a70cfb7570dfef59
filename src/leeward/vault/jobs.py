"""Jobs: the public record of every long operation, its steps, and the keys that made it once.

Owns: their rows. Must not know: what runs them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from leeward.core.errors import Conflict, NotFound
from leeward.model.recovery import Job, JobState, JobStep
from leeward.vault.tables import idempotency_keys, job_steps, jobs

_OPEN = (JobState.PENDING.value, JobState.RUNNING.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is needed to run a job, beyond what is shown of it."""

    id: str
    verb: str
    target: str
    state: JobState
    arguments: dict[str, object]
    cancel_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A caller's key and a hash of the request it came with."""

    key: str
    fingerprint: str


class JobStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def create(
        self, *, job_id: str, verb: str, target: str, arguments: dict[str, object], now_ns: int
    ) -> None:
        """The job exists, pending."""
        self._connection.execute(
            jobs.insert().values(
                id=job_id,
                verb=verb,
                target=target,
                state=JobState.PENDING.value,
                created_ns=now_ns,
                ended_ns=0,
                arguments=arguments,
                error_code="",
                error="",
                result={},
                cancel_requested=False,
            )
        )

    def get(self, job_id: str) -> Job:
        """Return the job with its steps. Raises: NotFound."""
        row = self._row(job_id)
        steps = self._connection.execute(
            sa.select(job_steps).where(job_steps.c.job_id == job_id).order_by(job_steps.c.index)
        )
        return _job(row, tuple(map(_step, steps)))

    def record(self, job_id: str) -> JobRecord:
        """Return what is needed to run the job. Raises: NotFound."""
        row = self._row(job_id)
        return JobRecord(
            id=row.id,
            verb=row.verb,
            target=row.target,
            state=JobState(row.state),
            arguments=row.arguments,
            cancel_requested=row.cancel_requested,
        )

    def listed(
        self, *, limit: int, before_ns: int = 0, target: str = "", verbs: Collection[str] = ()
    ) -> list[Job]:
        """Return jobs without their steps, newest first; those created before `before_ns` if it is
        not 0, of one target and of some verbs if they are given."""
        query = sa.select(jobs).order_by(jobs.c.created_ns.desc(), jobs.c.id).limit(limit)
        if before_ns:
            query = query.where(jobs.c.created_ns < before_ns)
        if target:
            query = query.where(jobs.c.target == target)
        if verbs:
            query = query.where(jobs.c.verb.in_(list(verbs)))
        return [_job(row, ()) for row in self._connection.execute(query)]

    def newest(self, verb: str, target: str) -> Job | None:
        """Return the newest job of that verb on that target without its steps, or None."""
        query = (
            sa.select(jobs)
            .where(jobs.c.verb == verb, jobs.c.target == target)
            .order_by(jobs.c.created_ns.desc())
            .limit(1)
        )
        row = self._connection.execute(query).one_or_none()
        return None if row is None else _job(row, ())

    def open_ids(self, *, verb: str = "") -> list[str]:
        """Return the ids of jobs not ended, oldest first; of one verb if it is given."""
        query = sa.select(jobs.c.id).where(jobs.c.state.in_(_OPEN)).order_by(jobs.c.created_ns)
        if verb:
            query = query.where(jobs.c.verb == verb)
        return list(self._connection.execute(query).scalars())

    def pending_ids(self, *, before_ns: int) -> list[str]:
        """Return the ids of jobs recorded before that and not begun, oldest first."""
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.state == JobState.PENDING.value, jobs.c.created_ns < before_ns)
            .order_by(jobs.c.created_ns)
        )
        return list(self._connection.execute(query).scalars())

    def open_on(self, verb: str, target: str) -> Job | None:
        """Return the newest job of that verb on that target that has not ended, or None."""
        return next(iter(self._open(jobs.c.verb == verb, jobs.c.target == target)), None)

    def open_of_item(self, item_id: str) -> list[Job]:
        """Return the jobs about the item that have not ended, newest first: their arguments have
        its id as `item_id`. (Their targets name it, but another vault may have that name.)"""
        return self._open(jobs.c.arguments["item_id"].as_string() == item_id)

    def _open(self, *conditions: sa.ColumnElement[bool]) -> list[Job]:
        query = (
            sa.select(jobs)
            .where(jobs.c.state.in_(_OPEN), *conditions)
            .order_by(jobs.c.created_ns.desc())
        )
        return [_job(row, ()) for row in self._connection.execute(query)]

    def started(self, job_id: str) -> None:
        """The job is running, unless it has ended."""
        self._connection.execute(
            jobs.update()
            .where(jobs.c.id == job_id, jobs.c.state == JobState.PENDING.value)
            .values(state=JobState.RUNNING.value)
        )

    def end(
        self,
        job_id: str,
        state: JobState,
        *,
        now_ns: int,
        result: dict[str, object] | None = None,
        error_code: str = "",
        error: str = "",
    ) -> bool:
        """The job has ended so; say whether it had not before. The first end stands."""
        changed = self._connection.execute(
            jobs.update()
            .where(jobs.c.id == job_id, jobs.c.state.in_(_OPEN))
            .values(
                state=state.value,
                ended_ns=now_ns,
                result=result or {},
                error_code=error_code,
                error=error,
            )
        )
        return changed.rowcount == 1

    def request_cancel(self, job_id: str) -> None:
        """The job ends at its next step, undoing what it did. Raises: NotFound, Conflict if it has
        ended."""
        if JobState(self._row(job_id).state).value not in _OPEN:
            raise Conflict(f"job {job_id} has already ended")
        self._connection.execute(
            jobs.update().where(jobs.c.id == job_id).values(cancel_requested=True)
        )

    def put_step(self, job_id: str, index: int, step: JobStep) -> None:
        """The job's step `index` is as given."""
        values = {
            "name": step.name,
            "state": step.state.value,
            "started_ns": step.started_ns,
            "ended_ns": step.ended_ns,
            "bytes_done": step.bytes_done,
            "bytes_total": step.bytes_total,
            "eta_seconds": step.eta_seconds,
            "detail": step.detail,
        }
        changed = self._connection.execute(
            job_steps.update()
            .where(job_steps.c.job_id == job_id, job_steps.c.index == index)
            .values(**values)
        )
        if changed.rowcount == 0:
            self._connection.execute(
                job_steps.insert().values(job_id=job_id, index=index, **values)
            )

    # --- idempotency keys

    def job_of_key(self, key: IdempotencyKey) -> str | None:
        """Return the job made under that key, or None. Raises: Conflict when the key came with
        another request."""
        row = self._connection.execute(
            sa.select(idempotency_keys).where(idempotency_keys.c.key == key.key)
        ).one_or_none()
        if row is None:
            return None
        if row.fingerprint != key.fingerprint:
            raise Conflict(
                "this Idempotency-Key was used for another request", hint="use a new key"
            )
        return str(row.job_id)

    def keep_key(self, key: IdempotencyKey, job_id: str, *, now_ns: int) -> None:
        """Asked again under that key, the answer is that job."""
        self._connection.execute(
            idempotency_keys.insert().values(
                key=key.key, fingerprint=key.fingerprint, job_id=job_id, created_ns=now_ns
            )
        )

    def purge(self, *, keys_before_ns: int, jobs_before_ns: int) -> None:
        """Keys made and jobs ended before those times are gone."""
        self._connection.execute(
            idempotency_keys.delete().where(idempotency_keys.c.created_ns < keys_before_ns)
        )
        self._connection.execute(
            jobs.delete().where(jobs.c.state.not_in(_OPEN), jobs.c.ended_ns < jobs_before_ns)
        )

    def _row(self, job_id: str) -> sa.Row[tuple[object, ...]]:
        row = self._connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no job {job_id}", hint="`leeward job list`")
        return row


def _job(row: sa.Row[tuple[object, ...]], steps: tuple[JobStep, ...]) -> Job:
    return Job(
        id=row.id,
        verb=row.verb,
        target=row.target,
        state=JobState(row.state),
        created_ns=row.created_ns,
        ended_ns=row.ended_ns,
        steps=steps,
        error_code=row.error_code,
        error=row.error,
        result=row.result,
    )


def _step(row: sa.Row[tuple[object, ...]]) -> JobStep:
    return JobStep(
        name=row.name,
        state=JobState(row.state),
        started_ns=row.started_ns,
        ended_ns=row.ended_ns,
        bytes_done=row.bytes_done,
        bytes_total=row.bytes_total,
        eta_seconds=row.eta_seconds,
        detail=row.detail,
    )
