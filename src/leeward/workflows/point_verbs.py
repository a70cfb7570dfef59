"""Recovery points on demand: the guest is frozen now, and the point is listed.

Owns: the job. Must not know: how a guest is frozen; the agent of the item's source does that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, Unavailable
from leeward.model.recovery import FreezeReport, Job, RecoveryPoint
from leeward.protection.health import FOLLOWING
from leeward.protocol.fabric import FreezeSpec
from leeward.protocol.messages import Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_key, item_target, source_agent

FREEZE_SECONDS = 60.0
"""Until the source has made a point of either kind."""
APPLY_SECONDS = 300.0
"""Until the target has applied it; the cuts before it come first."""
_SLACK_SECONDS = 30.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointArguments:
    item_id: str
    name: str
    epoch: int


class PointVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def create(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that makes an application-consistent point, or a crash-consistent one and
        says why. Raises: NotFound; Conflict while the item is not replicated; Unavailable when its
        source does not answer."""

        def prepare(records: Records) -> PointArguments:
            record = records.items.get(vault, name)
            item = record.item
            if item.state not in FOLLOWING or not record.is_replicating:
                state = item.state.value.replace("_", " ")
                raise Conflict(
                    f"{name} is {state}: nothing is replicated that a point could be made of",
                    field="state",
                    hint="points are made while it is protected",
                )
            agent = source_agent(records, record)
            if agent is None or not self._bench.is_heard(agent):
                label = agent.label if agent is not None else f"the host of {item.source_vm}"
                raise Unavailable(f"{label} does not answer", hint="start its agent again")
            return PointArguments(item_id=item.id, name=name, epoch=item.epoch)

        return self._jobs().submit("item.recovery-point", item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The point is listed; the result says what kind it is, and how long the guest stood."""
        arguments = job.arguments(PointArguments)
        report = job.order(
            "freeze and cut",
            lambda: self._order(job, arguments),
            FreezeReport,
            timeout_seconds=FREEZE_SECONDS + _SLACK_SECONDS,
        )
        point = job.step(
            "list",
            lambda progress: self._wait_listed(job, progress, arguments, report),
            RecoveryPoint,
        )
        return {"recovery_point": point.id, **to_plain(report)}

    def _order(self, job: RunningJob, arguments: PointArguments) -> Order:
        with self._bench.vault.read() as records:
            agent = source_agent(records, records.items.by_id(arguments.item_id))
        if agent is None:
            raise Conflict(f"the host of {arguments.name} is not enrolled any more")
        spec = FreezeSpec(
            run_id=job.record.id,
            item_id=arguments.item_id,
            epoch=arguments.epoch,
            seconds=FREEZE_SECONDS,
        )
        return Order(node=agent, verb=Verb.REPLICATION_FREEZE, arguments=to_plain(spec))

    def _wait_listed(
        self,
        job: RunningJob,
        progress: StepProgress,
        arguments: PointArguments,
        report: FreezeReport,
    ) -> RecoveryPoint:
        """Return the point once the target has it durably. Raises: Unavailable, Conflict."""
        deadline = self._bench.clock.monotonic() + APPLY_SECONDS
        with self._bench.signals.listen(item_key(arguments.item_id)) as listener:
            while True:
                with self._bench.vault.read() as records:
                    epoch = records.items.by_id(arguments.item_id).item.epoch
                    found = records.points.find(arguments.item_id, report.point_id)
                    newest = records.points.newest(arguments.item_id)
                if found is not None:
                    return found
                if epoch != arguments.epoch:
                    raise Conflict(f"{arguments.name} has failed over meanwhile")
                position = (report.epoch, report.sequence)
                if newest is not None and (newest.epoch, newest.sequence) > position:
                    raise Conflict(f"{report.point_id} came and was dropped by the policy's tiers")
                job.check_cancelled()
                if self._bench.clock.monotonic() > deadline:
                    raise Unavailable(f"the target has not applied {report.point_id} yet")
                progress.report(detail=f"waiting for {report.point_id}")
                listener.wait(_LOOK_SECONDS)
