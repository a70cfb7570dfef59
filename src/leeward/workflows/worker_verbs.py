"""An item whose worker has been silent for long gets another one of its region.

Owns: when, which one, and that both hear of it. Must not know: what a worker does. That there is
one writer all the same is the catalog's doing: who takes over fences the one before, and a worker
that comes back does not take over by itself what was given to another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import Conflict, LeewardError
from leeward.observability.log import get_logger
from leeward.protection.health import FOLLOWING
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing
from leeward.workflows.item_specs import item_key_id
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import find_node, item_target

log = get_logger()

WORKER_CHANGE = "item.change-worker"
GONE_SECONDS = 60.0
"""A worker that has been silent for longer loses its items to another one, if there is one: longer
than a restart of it, or of the service, takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    item_id: str
    former_id: str


class WorkerVerbs:
    """`tick` now and then, from one thread."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def tick(self) -> None:
        """Every item whose worker is gone is on its way to another, where there is one."""
        with self._bench.vault.read() as records:
            lost = [record for record in records.items.replicating() if self._is_lost(record)]
            chosen = [record for record in lost if self._others(records, record)]
            open_jobs = [records.jobs.get(each) for each in records.jobs.open_ids()]
        busy = {job.target for job in open_jobs}
        for record in chosen:
            if item_target(record.item.name) not in busy:
                self._begin(record)

    def run(self, job: RunningJob) -> Json:
        """The new worker processes the item; the former one is told, once it is back, that it does
        not any more."""
        arguments = job.arguments(WorkerArguments)
        job.undo_orders("take over", lambda: self._start_orders(arguments.item_id))
        job.undo_orders("let go", lambda: self._stop_orders(arguments))
        return {"item_id": arguments.item_id}

    def _begin(self, record: ItemRecord) -> None:
        def prepare(records: Records) -> WorkerArguments:
            known = records.items.by_id(record.item.id)
            others = self._others(records, known) if self._is_lost(known) else []
            if not others:
                raise Conflict(f"{known.item.name} does not need another worker any more")
            return self._give(records, known, others[0])

        try:
            self._jobs().submit(WORKER_CHANGE, item_target(record.item.name), prepare)
        except LeewardError as error:
            log.info("worker_not_changed", item=record.item.id, reason=str(error))

    def _give(self, records: Records, record: ItemRecord, worker: NodeRecord) -> WorkerArguments:
        former = find_node(records, record.worker_id)
        records.items.update(replace(record, worker_id=worker.id))
        self._bench.record_event(
            records,
            item_target(record.item.name),
            "worker_changed",
            f"{record.item.name} is processed by {worker.label} from now on: "
            f"{former.label if former else 'its former worker'} has been silent for more than "
            f"{GONE_SECONDS:g} s",
        )
        return WorkerArguments(item_id=record.item.id, former_id=record.worker_id)

    def _is_lost(self, record: ItemRecord) -> bool:
        return (
            record.is_replicating
            and record.item.state in FOLLOWING
            and bool(record.worker_id)
            and self._bench.live.silent_seconds(record.worker_id) > GONE_SECONDS
        )

    def _others(self, records: Records, record: ItemRecord) -> list[NodeRecord]:
        """Return the workers that could process the item instead, those with the fewest items
        first."""
        key_id = item_key_id(records, record.item.vault, record.item.policy)
        load = [other.worker_id for other in records.items.listed()]
        found = [
            worker
            for worker in self._bench.answering(records, Role.WORKER, record.item.target_region)
            if worker.id != record.worker_id
            and (not key_id or key_id in self._bench.live.key_ids(worker.id))
        ]
        return sorted(found, key=lambda worker: (load.count(worker.id), worker.name))

    def _start_orders(self, item_id: str) -> list[Order]:
        with self._bench.vault.read() as records:
            record = records.items.find(item_id)
            worker = find_node(records, record.worker_id) if record else None
            if record is None or worker is None or not record.is_replicating:
                return []
            return [go_on_processing(records, record)]

    def _stop_orders(self, arguments: WorkerArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            former = find_node(records, arguments.former_id)
            record = records.items.find(arguments.item_id)
        is_back = record is not None and record.worker_id == arguments.former_id
        if former is None or is_back:  # a failover came between and chose it
            return []
        about: Json = {"item_id": arguments.item_id}
        return [Order(node=former, verb=Verb.PROCESSING_STOP, arguments=about)]
