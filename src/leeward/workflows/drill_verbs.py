"""Drills of items: a test VM looked at (drill_looks), cleaned up, the evidence kept.

Owns: how an item is drilled, and that nothing of a drill is left whatever happens. Must not know:
what is looked at, when a drill is due (drill_schedule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.model.drills import Drill, DrillOutcome, check_drill
from leeward.model.recovery import Job
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.drill_looks import DrillArguments, DrillLooks, Evidence, outcome_of
from leeward.workflows.drill_records import (
    CLEAN_UP_SECONDS,
    CUT_SHORT,
    DRILL,
    forget_test_vm,
    keep_drill,
)
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.rehearsing import Rehearsing


class DrillVerbs:
    """Submits and runs drills."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing
        self._looks = DrillLooks(bench, rehearsing)

    # --- keeping

    def put(self, drill: Drill) -> Drill:
        """Return the drill, which is as given from now on; its schedule counts anew. Raises:
        InvalidRequest, NotFound."""
        check_drill(drill)
        with self._bench.vault.write() as records:
            records.items.get(drill.vault, drill.name)
            return keep_drill(records, drill, self._bench.clock.now_ns())

    def delete(self, vault: str, name: str) -> None:
        """The item is drilled no more, unless somebody asks. Raises: NotFound."""
        with self._bench.vault.write() as records:
            records.resources.get(Drill, vault, name)
            records.resources.delete(Drill, vault, name)

    # --- submitting

    def begin(
        self, vault: str, name: str, wanted: str = "", key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that drills the item as its drill says, from `wanted` if that is given.

        Raises: NotFound; Conflict while a test VM is there, or the item is not being replicated;
        Unavailable when no host of the target region answers. Then nothing has changed.
        """

        def prepare(records: Records) -> DrillArguments:
            record = records.items.get(vault, name)
            stored = records.resources.find(Drill, vault, name)
            drill = stored.value if stored else Drill(name=name, vault=vault)
            point = wanted or drill.recovery_point
            rehearsal, chosen = self._rehearsing.begin(records, record, point)
            if stored is not None:
                begun = replace(drill, begun_ns=self._bench.clock.now_ns())
                records.resources.update(stored, value=begun)
            return DrillArguments(
                item_id=record.item.id,
                item=name,
                drill=drill,
                rehearsal=rehearsal,
                point_time_ns=chosen.time_ns,
            )

        return self._jobs().submit(DRILL, item_target(name), prepare, key)

    # --- running

    def run(self, job: RunningJob) -> Json:
        """The evidence is kept and nothing of the test VM is left. Raises: Conflict when the drill
        did not pass."""
        arguments = job.arguments(DrillArguments)
        seen = Evidence()
        if self._looks.boot(job, arguments, seen):
            self._looks.look(job, arguments, seen)
        refused = job.undo_orders(
            "clean up",
            lambda: self._rehearsing.end_orders(arguments.rehearsal),
            timeout_seconds=CLEAN_UP_SECONDS,
        )
        if refused:
            seen.note("clean-up", "; ".join(refused))
        outcome = outcome_of(job, seen.problem)
        job.step(
            "record",
            lambda _: self._record(job, arguments, seen, outcome, is_clean=not refused),
            dict[str, object],
            is_undo=True,
        )
        if outcome is not DrillOutcome.PASSED:
            raise Conflict(f"the drill of {arguments.item}: {seen.problem or CUT_SHORT}")
        return {
            "recovery_point": arguments.rehearsal.recovery_point,
            "findings": to_plain(seen.findings),
            "disks": to_plain(seen.report.disks),
        }

    def _record(
        self,
        job: RunningJob,
        arguments: DrillArguments,
        seen: Evidence,
        outcome: DrillOutcome,
        *,
        is_clean: bool,
    ) -> Json:
        with self._bench.vault.write() as records:
            self._looks.keep(records, job.record.id, arguments, seen, outcome)
            if is_clean:
                forget_test_vm(records, arguments.item_id, arguments.rehearsal)
        return {}
