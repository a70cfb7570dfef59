"""Verifying everything stored of an item.

Owns: the job, and the event that says what was found. Must not know: how it is read; the item's
worker does that, on its own once a day and whenever it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.model.recovery import Job
from leeward.protocol.messages import ScrubReport, Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target

SCRUB_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubArguments:
    item_id: str
    name: str
    dry_run: bool


class ScrubVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def scrub(
        self, vault: str, name: str, *, dry_run: bool, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job whose result is what is damaged. Raises: NotFound; Conflict while no
        worker has the item."""

        def prepare(records: Records) -> ScrubArguments:
            record = records.items.get(vault, name)
            if not record.worker_id:
                raise Conflict(f"no worker processes {name} yet")
            return ScrubArguments(item_id=record.item.id, name=name, dry_run=dry_run)

        return self._jobs().submit("item.scrub", item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """Everything stored was read; what was found is in the result, and an event says so."""
        arguments = job.arguments(ScrubArguments)
        report = job.order(
            "scrub", lambda: self._order(arguments), ScrubReport, timeout_seconds=SCRUB_SECONDS
        )
        if report.damaged and not arguments.dry_run:
            job.record_step(
                "record", lambda: self._record(job, arguments, report), dict[str, object]
            )
        return to_plain(report)  # type: ignore[no-any-return]

    def _order(self, arguments: ScrubArguments) -> Order:
        with self._bench.vault.read() as records:
            worker = records.nodes.get(records.items.by_id(arguments.item_id).worker_id)
        plain: Json = {"item_id": arguments.item_id, "dry_run": arguments.dry_run}
        return Order(node=worker, verb=Verb.PROCESSING_SCRUB, arguments=plain)

    def _record(self, job: RunningJob, arguments: ScrubArguments, report: ScrubReport) -> Json:
        points = report.quarantined
        span = f" ({points[0]} to {points[-1]})" if points else ""
        with self._bench.vault.write() as records:
            self._bench.record_event(
                records,
                item_target(arguments.name),
                "item_damaged",
                f"{len(report.damaged)} stored objects of {arguments.name} are damaged; "
                f"{len(points)} recovery points are quarantined{span}"
                + ("; the source sends everything anew" if report.heals else ""),
                job.record.id,
            )
        return {}
