"""Test failover: a VM booted from a recovery point beside everything else, and its clean-up.

Owns: the two verbs and their steps. Must not know: what makes a test VM (rehearsing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError
from leeward.failover.select import LATEST
from leeward.model.recovery import Job, Rehearsal
from leeward.protocol.fabric import VmStatus
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import GROUP_TESTS, group_target
from leeward.workflows.drill_records import PLAN_DRILL
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.plan_jobs import PLAN_CLEAN_UP, plan_target
from leeward.workflows.rehearsing import BOOT_SECONDS, Rehearsing, Together

_CLEAN_UP = "item.test-failover-cleanup"
_AT_IT = frozenset({"item.test-failover", "item.drill", _CLEAN_UP})


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalArguments:
    """forwards: TCP ports of the test VM that its host forwards from 127.0.0.1."""

    item_id: str
    rehearsal: Rehearsal
    forwards: tuple[int, ...] = ()


class RehearsalVerbs:
    """Submits and runs test failovers and their clean-ups."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing

    # --- submitting

    def start(
        self,
        vault: str,
        name: str,
        wanted: str = LATEST,
        *,
        forwards: tuple[int, ...] = (),
        together: Together | None = None,
        network: str = "",
        networks: Mapping[str, str] | None = None,
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Return the job that boots the item's test VM from `wanted`, together with others if so,
        in networks set aside for tests as in Rehearsing.begin.

        Raises: NotFound; Conflict while a test VM is there, the item is not being replicated, or
        the network is one of production; Unavailable when no host of the target region answers.
        Then nothing has changed.
        """
        if len(set(forwards)) < len(forwards) or not all(0 < port < 65536 for port in forwards):
            raise InvalidRequest("forwards: each is a TCP port, none twice", field="forwards")

        def prepare(records: Records) -> RehearsalArguments:
            record = records.items.get(vault, name)
            rehearsal, _ = self._rehearsing.begin(
                records, record, wanted, together, network, networks
            )
            return RehearsalArguments(
                item_id=record.item.id, rehearsal=rehearsal, forwards=forwards
            )

        return self._jobs().submit("item.test-failover", item_target(name), prepare, key)

    def clean_up(self, vault: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that removes every trace of the item's test VM, the one under way if there
        is one. Raises: NotFound; Conflict when there is none, or it is of a job under way."""
        if before := self._jobs().replayed(key):
            return before
        with self._bench.vault.read() as records:
            open_jobs = records.jobs.open_of_item(records.items.get(vault, name).item.id)
        for job in open_jobs:
            if job.verb == _CLEAN_UP:
                return job

        def prepare(records: Records) -> RehearsalArguments:
            item = records.items.get(vault, name).item
            if item.rehearsal is None:
                raise Conflict(
                    f"{name} has no test VM",
                    field="item",
                    hint=f"`leeward test-failover {name}` makes one",
                )
            at_it = [j for j in records.jobs.open_of_item(item.id) if j.verb in _AT_IT]
            if item.rehearsal.group:
                target = group_target(vault, item.rehearsal.group)
                at_it += [j for v in GROUP_TESTS if (j := records.jobs.open_on(v, target))]
            if item.rehearsal.plan:
                target = plan_target(vault, item.rehearsal.plan)
                verbs = (PLAN_DRILL, PLAN_CLEAN_UP)
                at_it += [j for v in verbs if (j := records.jobs.open_on(v, target))]
            for open_job in at_it:
                raise Conflict(
                    f"the test VM of {name} belongs to {open_job.id}, which is under way",
                    hint=f"wait for it: `leeward job wait {open_job.id}`",
                )
            return RehearsalArguments(item_id=item.id, rehearsal=item.rehearsal)

        return self._jobs().submit(_CLEAN_UP, item_target(name), prepare, key)

    # --- running

    def run_start(self, job: RunningJob) -> Json:
        """The test VM runs beside everything else, or nothing of it is left."""
        arguments = job.arguments(RehearsalArguments)
        item_id, rehearsal = arguments.item_id, arguments.rehearsal
        try:
            status = job.order(
                "boot",
                lambda: self._rehearsing.boot_order(
                    item_id, rehearsal, forwards=arguments.forwards
                ),
                VmStatus,
                timeout_seconds=BOOT_SECONDS,
            )
        except LeewardError:
            job.undo_orders("clean up", lambda: self._rehearsing.end_orders(rehearsal))
            job.step(
                "forget",
                lambda _: self._rehearsing.forget(item_id, rehearsal, "its test failover failed"),
                dict[str, object],
                is_undo=True,
            )
            raise
        job.record_step("record", lambda: self._started(arguments), dict[str, object])
        return {
            "region": rehearsal.region,
            "host": rehearsal.host,
            "recovery_point": rehearsal.recovery_point,
            "network": rehearsal.test_network,
            "addresses": {nic.name: nic.address for nic in rehearsal.reachable},
            "status": to_plain(status),
        }

    def run_clean_up(self, job: RunningJob) -> Json:
        """Nothing of the test VM is left: VM, disks, export, networks."""
        arguments = job.arguments(RehearsalArguments)
        item_id, rehearsal = arguments.item_id, arguments.rehearsal
        sentence = "its test VM has been cleaned up"
        job.orders(
            "clean up",
            lambda: self._rehearsing.end_orders(rehearsal),
            dict[str, object],
        )
        job.record_step(
            "record",
            lambda: self._rehearsing.forget(item_id, rehearsal, sentence),
            dict[str, object],
        )
        return {}

    def _started(self, arguments: RehearsalArguments) -> Json:
        rehearsal = arguments.rehearsal
        where = "reachable by nobody outside its networks"
        if rehearsal.nics:
            addresses = ", ".join(nic.address for nic in rehearsal.reachable)
            where = f"in network {rehearsal.test_network} at {addresses}"
        self._rehearsing.record_running(arguments.item_id, rehearsal, where)
        return {}
