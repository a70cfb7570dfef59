"""Moves of several items as jobs of their own, begun together and waited for.

Owns: that each is begun once, that one which cannot be does not stop the others, and that those
under way already are found. Must not know: which items, in which order: plans and groups do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from leeward.core.errors import Conflict, LeewardError
from leeward.model.recovery import POWER_OFF_SECONDS, ItemState, JobState
from leeward.recovery_plans.check import DONE
from leeward.vault.jobs import IdempotencyKey
from leeward.workflows.bench import Bench
from leeward.workflows.engine import Json
from leeward.workflows.failover_verbs import FailoverVerbs
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_key
from leeward.workflows.planned_verbs import PlannedVerbs

_LOOK_SECONDS = 0.5
_FINGERPRINT = "recovery-plan"
_FAILOVERS = ("item.failover", "item.planned-failover")
_REFUSED = "refused: "
_ALREADY = "had been done already"


Submit = Callable[[IdempotencyKey], str]
"""Returns the id of the job it submits under that key; "": nothing is left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One item's failover. planned: its source is shut down first."""

    vault: str
    item: str
    recovery_point: str
    planned: bool = False


class SideBySide:
    """Begins and awaits them."""

    def __init__(
        self,
        bench: Bench,
        jobs: Callable[[], Jobs],
        failovers: FailoverVerbs,
        planned: PlannedVerbs,
    ) -> None:
        self._bench = bench
        self._jobs = jobs
        self._failovers = failovers
        self._planned = planned

    def begin(self, job: RunningJob, moves: list[Move]) -> Json:
        """Return the jobs that make these moves, by item; a sentence for one that could not be
        begun, "" for an item that had failed over already. Asked again by the same job, these."""
        return self.begin_each(job, {move.item: partial(self._submit, move) for move in moves})

    def begin_each(self, job: RunningJob, submits: Mapping[str, Submit]) -> Json:
        """Return what each of `submits`, by item, returned, or the job it made when this job asked
        before; a sentence for one that was refused."""
        return {name: self._once(job, name, submit) for name, submit in submits.items()}

    def wait(self, job: RunningJob, name: str, begun: str, progress: StepProgress) -> Json:
        """Return when the item's job, as `begin` returned it, has ended well. Raises: Conflict with
        its error."""
        if not begun:
            progress.report(detail=_ALREADY)
            return {}
        if begun.startswith(_REFUSED):
            raise Conflict(f"{name}: {begun.removeprefix(_REFUSED)}")
        with self._bench.signals.listen(item_key(name)) as listener:
            while True:
                progress.report(detail=begun)
                with self._bench.vault.read() as records:
                    current = records.jobs.get(begun)
                if current.state is JobState.SUCCEEDED:
                    return {"job": begun}
                if current.ended_ns:
                    raise Conflict(f"{name}: {current.error} ({begun})")
                job.check_cancelled()
                listener.wait(_LOOK_SECONDS)

    def _once(self, job: RunningJob, name: str, submit: Submit) -> str:
        key = IdempotencyKey(key=f"{job.record.id}/{name}", fingerprint=_FINGERPRINT)
        before = self._jobs().replayed(key)
        if before is not None:
            return before.id
        try:
            return submit(key)
        except LeewardError as error:
            return f"{_REFUSED}{error}"

    def _submit(self, move: Move, key: IdempotencyKey) -> str:
        with self._bench.vault.read() as records:
            item = records.items.get(move.vault, move.item).item
            under_way = records.jobs.open_of_item(item.id)
        if item.state in DONE:
            return ""
        for other in under_way if item.state is ItemState.FAILING_OVER else ():
            if other.verb in _FAILOVERS:
                return other.id
        if move.planned:
            return self._planned.failover(
                move.vault,
                move.item,
                move.recovery_point,
                power_off_seconds=POWER_OFF_SECONDS,
                key=key,
            ).id
        return self._failovers.failover(move.vault, move.item, move.recovery_point, key).id
