"""One running job: its steps recorded durably and shown publicly.

Owns: what a step is: run once, timed, cancellable, its error kept as a value. Must not know: what
the steps do. Handed to every verb.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, LeewardError, Unavailable, error_from_code
from leeward.model.recovery import JobState, JobStep
from leeward.observability.log import get_logger
from leeward.vault.jobs import JobRecord
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order, Outdated
from leeward.workflows.engine import Json, Steps
from leeward.workflows.patience import patiently

log = get_logger()
T = TypeVar("T")

ORDER_SECONDS = 120.0
UNDO_SECONDS = 20.0
_REPORT_SECONDS = 0.5
_CANCELLED = "the job was cancelled"


class StepProgress:
    """How far one step is, for people; written to the vault at most twice a second."""

    def __init__(self, running: RunningJob, index: int, name: str) -> None:
        self._running = running
        self._index = index
        self._step = JobStep(
            name=name, state=JobState.RUNNING, started_ns=running.bench.clock.now_ns()
        )
        self._written = 0.0
        self._write()

    def report(
        self, *, bytes_done: int = 0, bytes_total: int = 0, eta_seconds: float = -1.0, detail: str
    ) -> None:
        """People see that soon."""
        self._set(
            JobState.RUNNING,
            bytes_done=bytes_done,
            bytes_total=bytes_total,
            eta_seconds=eta_seconds,
            detail=detail,
        )
        if self._running.bench.clock.monotonic() - self._written >= _REPORT_SECONDS:
            self._write()

    def end(self, state: JobState, detail: str = "") -> None:
        """The step has ended so."""
        self._set(
            state,
            bytes_done=self._step.bytes_done,
            bytes_total=self._step.bytes_total,
            eta_seconds=-1.0,
            detail=detail or self._step.detail,
        )
        self._write()

    def _set(
        self,
        state: JobState,
        *,
        bytes_done: int,
        bytes_total: int,
        eta_seconds: float,
        detail: str,
    ) -> None:
        ended = 0 if state is JobState.RUNNING else self._running.bench.clock.now_ns()
        self._step = JobStep(
            name=self._step.name,
            state=state,
            started_ns=self._step.started_ns,
            ended_ns=ended,
            bytes_done=bytes_done,
            bytes_total=bytes_total,
            eta_seconds=eta_seconds,
            detail=detail,
        )

    def _write(self) -> None:
        try:
            with self._running.bench.vault.write() as records:
                records.jobs.put_step(self._running.record.id, self._index, self._step)
        except Unavailable as error:  # what people see is not worth the job
            log.warning("progress_not_written", job=self._running.record.id, error=str(error))
        self._written = self._running.bench.clock.monotonic()


class RunningJob:
    """One run of a job's verb, in one thread. A later run after a kill walks the same steps and
    gets the recorded results of those that had ended."""

    def __init__(self, bench: Bench, record: JobRecord, steps: Steps) -> None:
        self.bench = bench
        self.record = record
        self.was_cancelled = False
        self._steps = steps
        self._count = 0
        self._is_irrevocable = False

    def go_through(self) -> None:
        """From here on there is no way back: the job is not cancelled any more."""
        self._is_irrevocable = True

    def arguments(self, kind: type[T]) -> T:
        """Return the job's arguments."""
        return from_plain(self.record.arguments, kind)

    def step(
        self,
        name: str,
        action: Callable[[StepProgress], object],
        kind: type[T],
        *,
        is_undo: bool = False,
    ) -> T:
        """Return the action's result: run now, or recorded by an earlier run.

        Actions are idempotent and leave nothing in memory that later steps need. Undo steps ask
        the vault alone and wait for it. Raises: the LeewardError the action raised; Conflict when
        the job was cancelled (never in undo steps).
        """
        index = self._count
        self._count += 1
        outcome = self._steps.run(name, lambda: self._outcome(index, name, action, is_undo))
        if "value" in outcome:
            return from_plain(outcome["value"], kind)
        self.was_cancelled = self.was_cancelled or bool(outcome.get("cancelled"))
        raise error_from_code(
            str(outcome["code"]),
            str(outcome["message"]),
            field=_text(outcome.get("field")),
            hint=_text(outcome.get("hint")),
        )

    def record_step(self, name: str, action: Callable[[], object], kind: type[T]) -> T:
        """As `step`, for an action that only writes down what has been done: it waits for a vault
        that cannot be used, rather than have all of it undone."""
        return self.step(name, lambda _: patiently(self.bench.signals, action), kind)

    def check_cancelled(self) -> None:
        """Return unless somebody asked to cancel the job in time. Raises: Conflict."""
        if self._is_irrevocable:
            return
        with self.bench.vault.read() as records:
            if records.jobs.record(self.record.id).cancel_requested:
                raise Conflict(_CANCELLED)

    # --- orders to nodes, as steps; `make` is called inside the step, so that a later run, when the
    # vault has moved on, does not need what it reads

    def order(
        self,
        name: str,
        make: Callable[[], Order],
        kind: type[T],
        *,
        timeout_seconds: float = ORDER_SECONDS,
    ) -> T:
        """Return the node's result. Raises: the error it answered with; Unavailable."""
        return self.orders(name, lambda: [make()], kind, timeout_seconds=timeout_seconds)[0]

    def orders(
        self,
        name: str,
        make: Callable[[], list[Order]],
        kind: type[T],
        *,
        timeout_seconds: float = ORDER_SECONDS,
    ) -> list[T]:
        """Return the nodes' results, the orders having been carried out side by side."""

        def action(progress: StepProgress) -> object:
            orders, ids = self._send(name, make)
            try:
                return [
                    self.bench.dispatch.wait_answer(
                        command_id,
                        order.node,
                        timeout_seconds=timeout_seconds,
                        check=self.check_cancelled,
                    )
                    for command_id, order in zip(ids, orders, strict=True)
                ]
            except LeewardError:
                self.bench.dispatch.withdraw(ids)
                raise

        results = self.step(name, action, list[dict[str, object]])
        return [from_plain(result, kind) for result in results]

    def undo_orders(
        self,
        name: str,
        make: Callable[[], list[Order]],
        *,
        late: bool = True,
        timeout_seconds: float = UNDO_SECONDS,
    ) -> tuple[str, ...]:
        """The orders are carried out as far as can be waited for: nodes that do not answer get them
        when they come back, if it may be `late`. What is refused is noted, returned, and changes
        nothing."""

        def action(progress: StepProgress) -> object:
            refused = []
            try:
                orders, ids = self._send(name, make, is_undo=True)
                for command_id, order in zip(ids, orders, strict=True):
                    if self.bench.is_heard(order.node):
                        refused += self._wait_undone(command_id, order, timeout_seconds)
                if not late:
                    patiently(self.bench.signals, lambda: self.bench.dispatch.withdraw(ids))
            except LeewardError as error:
                refused.append(str(error))
            if refused:
                progress.report(detail="; ".join(refused))
            return {"refused": refused}

        done = self.step(name, action, dict[str, list[str]], is_undo=True)
        return tuple(done.get("refused", ()))

    def _send(
        self, name: str, make: Callable[[], list[Order]], *, is_undo: bool = False
    ) -> tuple[list[Order], list[str]]:
        """Return the orders and the ids of their commands, queued. Orders are made anew as long as
        another job changes what they are made from before they are queued."""
        while True:
            orders = make()
            send = partial(self.bench.dispatch.send, orders, job_id=self.record.id, step=name)
            with suppress(Outdated):
                return orders, patiently(self.bench.signals, send) if is_undo else send()

    def _wait_undone(self, command_id: str, order: Order, timeout_seconds: float) -> list[str]:
        try:
            self.bench.dispatch.wait_answer(
                command_id,
                order.node,
                timeout_seconds=timeout_seconds,
                check=lambda: None,
                keep=True,
            )
        except LeewardError as error:
            log.warning("undo_refused", job=self.record.id, command=command_id, error=str(error))
            return [str(error)]
        return []

    # ---

    def _outcome(
        self, index: int, name: str, action: Callable[[StepProgress], object], is_undo: bool
    ) -> Json:
        progress = StepProgress(self, index, name)
        bound = log.bind(job=self.record.id, step=name)
        try:
            if not is_undo:
                self.check_cancelled()
            value = to_plain(
                patiently(self.bench.signals, lambda: action(progress))
                if is_undo
                else action(progress)
            )
        except LeewardError as error:
            cancelled = not is_undo and self._is_cancel(error)
            progress.end(JobState.CANCELLED if cancelled else JobState.FAILED, str(error))
            bound.warning("step_failed", code=error.code, error=str(error))
            return {
                "code": error.code,
                "message": error.message,
                "field": error.field,
                "hint": error.hint,
                "cancelled": cancelled,
            }
        except Exception as error:
            bound.exception("step_broken")
            sentence = f"step {name} broke: {type(error).__name__}: {error}"
            progress.end(JobState.FAILED, sentence)
            return {"code": LeewardError.code, "message": sentence}
        progress.end(JobState.SUCCEEDED)
        return {"value": value}

    def _is_cancel(self, error: LeewardError) -> bool:
        return isinstance(error, Conflict) and error.message == _CANCELLED


def _text(value: object) -> str | None:
    return None if value is None else str(value)
