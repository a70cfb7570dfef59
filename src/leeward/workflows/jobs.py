"""Jobs: submitting, running, cancelling, and taking up after a restart what was cut short.

Owns: that a job is recorded before it runs, runs once, and ends in the public record. Must not
know: what verbs do. Between the routes, the engine and the verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError, Unavailable
from leeward.core.ids import new_id
from leeward.model.recovery import Job, JobState
from leeward.observability.log import get_logger
from leeward.vault.jobs import IdempotencyKey, JobRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.engine import Json, Steps, WorkflowEngine
from leeward.workflows.job import RunningJob
from leeward.workflows.patience import patiently

log = get_logger()

VerbBody = Callable[[RunningJob], Json]
"""Carries a job out and returns its result. On an error it undoes what it did, then raises."""

OPEN_JOBS_MAX = 500
"""Each running job holds a thread; further ones are refused until some have ended, but for URGENT
ones: a site that is still being protected can be failed over all the same."""
URGENT = frozenset(
    {
        "item.failover",
        "item.change-cache",
        "item.planned-failover",
        "item.change-recovery-point",
        "item.commit",
        "item.disable",
        "recovery-plan.run",
        "consistency-group.failover",
        "consistency-group.change-recovery-point",
        "vm.stop",
    }
)
_START_SECONDS = 5
"""A job not begun so long after it was recorded is started once more."""
CANCELLABLE = frozenset(
    {
        "vm.create",
        "item.protect",
        "item.planned-failover",
        "item.reprotect",
        "recovery-plan.run",
        "recovery-plan.test",
        "recovery-plan.drill",
        "item.drill",
        "consistency-group.test-failover",
    }
)
"""What these have done is undone, up to the step from which there is no way back (see
RunningJob.go_through); a plan's run stops where it is and can be resumed."""


class Jobs:
    """Thread-safe."""

    def __init__(self, bench: Bench, engine: WorkflowEngine, verbs: Mapping[str, VerbBody]) -> None:
        self._bench = bench
        self._engine = engine
        self._verbs = verbs

    def launch(self) -> None:
        """Jobs that an earlier process left unfinished go on."""
        self._engine.launch(self._run)
        with self._bench.vault.read() as records:
            left = records.jobs.open_ids()
        for job_id in left:
            self._start(job_id)

    def take_up(self) -> None:
        """Jobs that were recorded but could not be started are started."""
        before_ns = self._bench.clock.now_ns() - _START_SECONDS * 10**9
        with self._bench.vault.read() as records:
            waiting = records.jobs.pending_ids(before_ns=before_ns)
        for job_id in waiting:
            self._start(job_id)

    def replayed(self, key: IdempotencyKey | None) -> Job | None:
        """Return the job that was made under that key, if there was one. Raises: Conflict."""
        if key is None:
            return None
        with self._bench.vault.read() as records:
            job_id = records.jobs.job_of_key(key)
            return records.jobs.get(job_id) if job_id else None

    def submit(
        self,
        verb: str,
        target: str,
        prepare: Callable[[Records], object],
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Return a new job whose arguments are what `prepare` returned; it runs from now on.

        prepare: checks the request and makes its first changes, in the transaction that records the
        job: they are there together or not at all. Under a key used before, that job is returned
        and nothing happens. Raises: what prepare raises; Conflict, Unavailable.
        """
        with self._bench.vault.write() as records:
            before = records.jobs.job_of_key(key) if key else None
            if before:
                return records.jobs.get(before)
            if verb not in URGENT and len(records.jobs.open_ids()) >= OPEN_JOBS_MAX:
                raise Conflict(
                    f"{OPEN_JOBS_MAX} jobs are still running", hint="try again when some have ended"
                )
            job_id = new_id("job")
            now_ns = self._bench.clock.now_ns()
            records.jobs.create(
                job_id=job_id,
                verb=verb,
                target=target,
                arguments=to_plain(prepare(records)),
                now_ns=now_ns,
            )
            if key:
                records.jobs.keep_key(key, job_id, now_ns=now_ns)
            job = records.jobs.get(job_id)
        log.info("job_submitted", job=job_id, verb=verb, target=target)
        self._start(job_id)
        return job

    def join(self, key: IdempotencyKey | None, find: Callable[[Records], Job | None]) -> Job | None:
        """Return the job that the key stands for, else the one under way that `find` returns; the
        key stands for that from now on, also when the job and what it was about are gone."""
        with self._bench.vault.write() as records:
            before = records.jobs.job_of_key(key) if key else None
            if before:
                return records.jobs.get(before)
            job = find(records)
            if job and key:
                records.jobs.keep_key(key, job.id, now_ns=self._bench.clock.now_ns())
            return job

    def join_on(self, key: IdempotencyKey | None, verb: str, target: str) -> Job | None:
        """As `join`: the job of that verb on that target that has not ended."""
        return self.join(key, lambda records: records.jobs.open_on(verb, target))

    def cancel(self, job_id: str) -> Job:
        """Return the job, which ends at its next step and undoes what it did. Raises: NotFound,
        Conflict when it has ended or is of a kind that must not be cut short."""
        with self._bench.vault.write() as records:
            job = records.jobs.get(job_id)
            if job.state not in (JobState.PENDING, JobState.RUNNING):
                raise Conflict(f"job {job_id} has already ended")
            if job.verb not in CANCELLABLE:
                raise Conflict(
                    f"a job {job.verb} cannot be cancelled: half of it is worse than all"
                )
            records.jobs.request_cancel(job_id)
            return records.jobs.get(job_id)

    def _start(self, job_id: str) -> None:
        """The job runs; at the next `take_up` if the engine cannot be used now. One whose run has
        ended without a word has failed."""
        try:
            if self._engine.start(job_id):
                return
        except Unavailable as error:
            log.warning("job_not_started", job=job_id, error=str(error))
            return
        self._end(
            self._begun(job_id),
            JobState.FAILED,
            error_code=LeewardError.code,
            error="its run was lost; ask again",
        )

    def _begun(self, job_id: str) -> JobRecord:
        with self._bench.vault.write() as records:
            records.jobs.started(job_id)
            return records.jobs.record(job_id)

    def _run(self, job_id: str, steps: Steps) -> None:
        """The job has ended, well or not. The engine's body: it may run again after a kill."""
        record = patiently(self._bench.signals, lambda: self._begun(job_id))
        running = RunningJob(self._bench, record, steps)
        try:
            result = self._verbs[record.verb](running)
        except LeewardError as error:
            state = JobState.CANCELLED if running.was_cancelled else JobState.FAILED
            self._end(record, state, error_code=error.code, error=str(error))
        except Exception as error:
            log.exception("job_broken", job=job_id, verb=record.verb)
            self._end(
                record,
                JobState.FAILED,
                error_code=LeewardError.code,
                error=f"{type(error).__name__}: {error}",
            )
        else:
            self._end(record, JobState.SUCCEEDED, result=result)

    def _end(
        self,
        record: JobRecord,
        state: JobState,
        *,
        result: Json | None = None,
        error_code: str = "",
        error: str = "",
    ) -> None:
        def write() -> None:
            with self._bench.vault.write() as records:
                is_news = records.jobs.end(
                    record.id,
                    state,
                    now_ns=self._bench.clock.now_ns(),
                    result=result,
                    error_code=error_code,
                    error=error,
                )
                if is_news:
                    sentence = f"{record.verb} {state.value}" + (f": {error}" if error else "")
                    self._bench.record_event(
                        records, record.target, f"job_{state.value}", sentence, record.id
                    )

        patiently(self._bench.signals, write)
        log.info("job_ended", job=record.id, verb=record.verb, state=state.value, error=error)
