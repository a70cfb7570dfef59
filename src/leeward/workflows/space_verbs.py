"""Reclaiming the space of an item's dropped recovery points when asked, and saying how it stands.

Owns: the job. Must not know: how it is done; the item's worker does that, and by itself as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.model.recovery import Job
from leeward.protocol.messages import SpaceReport, Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target

COMPACT_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactArguments:
    item_id: str
    dry_run: bool


class SpaceVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def compact(
        self, vault: str, name: str, *, dry_run: bool, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job whose result is how the item's space stands. Raises: NotFound; Conflict
        while no worker has the item."""

        def prepare(records: Records) -> CompactArguments:
            record = records.items.get(vault, name)
            if not record.worker_id:
                raise Conflict(f"no worker processes {name} yet")
            return CompactArguments(item_id=record.item.id, dry_run=dry_run)

        return self._jobs().submit("item.compact", item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """All that can be reclaimed is, unless it is a dry run; how things stand is the result."""
        arguments = job.arguments(CompactArguments)
        report = job.order(
            "compact",
            lambda: self._order(arguments),
            SpaceReport,
            timeout_seconds=COMPACT_SECONDS,
        )
        return to_plain(report)  # type: ignore[no-any-return]

    def _order(self, arguments: CompactArguments) -> Order:
        with self._bench.vault.read() as records:
            worker = records.nodes.get(records.items.by_id(arguments.item_id).worker_id)
        plain: Json = {"item_id": arguments.item_id, "dry_run": arguments.dry_run}
        return Order(node=worker, verb=Verb.PROCESSING_COMPACT, arguments=plain)
