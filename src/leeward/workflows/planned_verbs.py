"""Planned failover: the source shut down, all it wrote applied in the target, then the failover.

Owns: what comes before the epoch is raised, and that it can be taken back: the source starts again
and goes on being replicated. Must not know: sealing and booting, those are failover_verbs'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError, Unavailable
from leeward.failover.plan import plan_planned_failover
from leeward.model.recovery import ItemState, Job, RecoveryPoint
from leeward.protection.cache import check_keeps_cache
from leeward.protocol.fabric import DrainResult, DrainSpec
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.failover_verbs import FailoverArguments, FailoverVerbs
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_key, item_target, source_agent
from leeward.workflows.specs import vm_id

DRAIN_SECONDS = 300.0
APPLY_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_SLACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArguments:
    """The item is failing over, still under the epoch it replicates under."""

    item_id: str
    failover: FailoverArguments
    power_off_seconds: float


class PlannedVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], failovers: FailoverVerbs) -> None:
        self._bench = bench
        self._jobs = jobs
        self._failovers = failovers

    def failover(
        self,
        vault: str,
        name: str,
        wanted: str,
        *,
        power_off_seconds: float,
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Return the job that shuts the source down and fails the item over, losing nothing.

        Raises: NotFound, Conflict, InvalidRequest; Unavailable when a node that is needed does not
        answer; then nothing has changed.
        """

        def prepare(records: Records) -> PlannedArguments:
            record = records.items.get(vault, name)
            check_keeps_cache(record.item)
            points = records.points.listed(record.item.id, limit=1)
            plan = plan_planned_failover(record.item, points, wanted)
            agent = _source(records, record)
            if not self._bench.is_heard(agent):
                raise Unavailable(f"{agent.label} does not answer")
            reserved = self._failovers.reserve(records, record, plan)
            if reserved.is_new_worker:
                raise Unavailable(
                    f"the worker of {name} does not answer",
                    hint="start it again: what the source wrote last could not be taken in",
                )
            return PlannedArguments(
                item_id=reserved.item_id, failover=reserved, power_off_seconds=power_off_seconds
            )

        return self._jobs().submit("item.planned-failover", item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The VM runs in the target region with all it ever wrote; or, as long as the source was
        not fenced, in the source again."""
        arguments = job.arguments(PlannedArguments)
        item_id = arguments.failover.item_id
        try:
            drained = job.order(
                "shut down and drain",
                lambda: self._drain_order(arguments),
                DrainResult,
                timeout_seconds=arguments.power_off_seconds + DRAIN_SECONDS + _SLACK_SECONDS,
            )
            last = job.step(
                "apply the rest",
                lambda progress: self._wait_listed(job, progress, item_id, drained.sequence),
                RecoveryPoint,
            )
        except LeewardError as error:
            self._start_again(job, item_id, error)
            raise
        job.go_through()
        job.record_step("raise epoch", lambda: self._raised(arguments, last), dict[str, object])
        result = self._failovers.carry_out(job, arguments.failover)
        return {**result, "planned": True, "guest_powered_off": drained.is_guest_off}

    # --- steps

    def _drain_order(self, arguments: PlannedArguments) -> Order:
        with self._bench.vault.read() as records:
            record = records.items.by_id(arguments.failover.item_id)
            agent = _source(records, record)
        spec = DrainSpec(
            item_id=record.item.id,
            epoch=record.item.epoch,
            vm_id=vm_id(record.item.source_vm),
            power_off_seconds=arguments.power_off_seconds,
            drain_seconds=DRAIN_SECONDS,
        )
        return Order(node=agent, verb=Verb.REPLICATION_DRAIN, arguments=to_plain(spec))

    def _wait_listed(
        self, job: RunningJob, progress: StepProgress, item_id: str, sequence: int
    ) -> RecoveryPoint:
        """Return the point of that cut, or a later one, once the target has it durably.

        Raises: Unavailable, Conflict.
        """
        deadline = self._bench.clock.monotonic() + APPLY_SECONDS
        with self._bench.signals.listen(item_key(item_id)) as listener:
            while True:
                with self._bench.vault.read() as records:
                    epoch = records.items.by_id(item_id).item.epoch
                    newest = records.points.newest(item_id)
                if newest and newest.epoch == epoch and newest.sequence >= sequence:
                    return newest
                job.check_cancelled()
                if self._bench.clock.monotonic() > deadline:
                    raise Unavailable(
                        f"the target has not applied cut {sequence}, the last one of the source"
                    )
                progress.report(detail=f"waiting for cut {sequence}")
                listener.wait(_LOOK_SECONDS)

    def _raised(self, arguments: PlannedArguments, last: RecoveryPoint) -> Json:
        """From here on the source is the past: its epoch is over, and its last point is known."""
        plan = arguments.failover.plan
        with self._bench.vault.write() as records:
            record = records.items.by_id(arguments.failover.item_id)
            if record.item.epoch < plan.epoch:
                item = replace(record.item, epoch=plan.epoch, drained_point=last.id)
                records.items.update(replace(record, item=item))
        return {}

    # --- undoing

    def _start_again(self, job: RunningJob, item_id: str, error: LeewardError) -> None:
        """The source runs, and the item is what its nodes say."""
        job.undo_orders("start the source again", lambda: [self._start_order(item_id)])
        job.step(
            "record failure",
            lambda _: self._failed(item_id, error),
            dict[str, object],
            is_undo=True,
        )

    def _start_order(self, item_id: str) -> Order:
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            agent = _source(records, record)
        arguments: Json = {"vm_id": vm_id(record.item.source_vm)}
        return Order(node=agent, verb=Verb.VM_START, arguments=arguments)

    def _failed(self, item_id: str, error: LeewardError) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.by_id(item_id)
            if record.item.state is ItemState.FAILING_OVER:
                problem = f"the planned failover failed: {error}"
                item = replace(record.item, state=ItemState.DEGRADED, problem=problem)
                records.items.update(replace(record, item=item, is_replicating=True))
        self._bench.signals.notify(item_key(item_id))
        return {}


def _source(records: Records, record: ItemRecord) -> NodeRecord:
    agent = source_agent(records, record)
    if agent is None:
        raise Conflict(f"the host of {record.item.source_vm} is not enrolled any more")
    return agent
