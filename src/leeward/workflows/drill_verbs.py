"""Drills: a test VM booted, asked, looked at, its point read, cleaned up, the evidence kept.

Owns: the order of that, what makes a drill red, and that nothing of it is left whatever happens.
Must not know: how a guest is asked, when a drill is due (drill_schedule).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, LeewardError
from leeward.model.drills import (
    Drill,
    DrillOutcome,
    DrillResult,
    DrillVerdict,
    Finding,
    check_drill,
)
from leeward.model.recovery import Job, Rehearsal
from leeward.protocol.drills import (
    ConsoleView,
    ProbingReport,
    ProbingSpec,
    ReadReport,
    ReadSpec,
)
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.drill_records import DRILL, keep_result
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.rehearsing import BOOT_SECONDS, Rehearsing

CONSOLE_SECONDS = 30.0
CLEAN_UP_SECONDS = 60.0
READ_SECONDS = 24 * 3600.0
_SLACK_SECONDS = 30.0
_CUT_SHORT = "it was cut short"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillArguments:
    """point_time_ns: of the point it boots from."""

    item_id: str
    item: str
    drill: Drill
    rehearsal: Rehearsal
    point_time_ns: int


@dataclass(slots=True, kw_only=True)
class _Evidence:
    """What a run has seen so far; made anew, step by step, by every replay."""

    findings: tuple[Finding, ...] = ()
    report: ReadReport = field(default_factory=lambda: ReadReport(disks=()))
    view: ConsoleView = field(default_factory=ConsoleView)

    def note(self, name: str, problem: str) -> None:
        self.findings += (Finding(name=name, passed=False, detail=problem),)

    @property
    def problem(self) -> str:
        bad = (f"{each.name}: {each.detail}" for each in self.findings if not each.passed)
        return next(bad, "")


class DrillVerbs:
    """Submits and runs drills."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._jobs = jobs
        self._rehearsing = rehearsing

    # --- keeping

    def put(self, drill: Drill) -> Drill:
        """Return the drill, which is as given from now on; its schedule counts anew. Raises:
        InvalidRequest, NotFound."""
        check_drill(drill)
        with self._bench.vault.write() as records:
            records.items.get(drill.vault, drill.name)
            found = records.resources.find(Drill, drill.vault, drill.name)
            begun_ns = found.value.begun_ns if found else 0
            kept = replace(drill, since_ns=self._bench.clock.now_ns(), begun_ns=begun_ns)
            if found is None:
                records.resources.insert(kept, scope=drill.vault, name=drill.name)
            else:
                records.resources.update(found, value=kept)
        return kept

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
        seen = _Evidence()
        self._drill(job, arguments, seen)
        refused = job.undo_orders(
            "clean up",
            lambda: self._rehearsing.end_orders(arguments.rehearsal),
            timeout_seconds=CLEAN_UP_SECONDS,
        )
        if refused:
            seen.note("clean-up", "; ".join(refused))
        outcome = _outcome(job, seen)
        job.step(
            "record",
            lambda _: self._record(job, arguments, seen, outcome, is_clean=not refused),
            dict[str, object],
            is_undo=True,
        )
        if outcome is not DrillOutcome.PASSED:
            raise Conflict(f"the drill of {arguments.item}: {seen.problem or _CUT_SHORT}")
        return {
            "recovery_point": arguments.rehearsal.recovery_point,
            "findings": to_plain(seen.findings),
            "disks": to_plain(seen.report.disks),
        }

    def _drill(self, job: RunningJob, arguments: DrillArguments, seen: _Evidence) -> None:
        """All that could be seen is in `seen`, up to where the job was cancelled."""
        item_id, rehearsal, drill = arguments.item_id, arguments.rehearsal, arguments.drill
        booted = self._look(
            job,
            "boot",
            lambda: self._rehearsing.boot_order(item_id, rehearsal, hydrates=False),
            VmStatus,
            seen,
            timeout_seconds=BOOT_SECONDS,
        )
        if booted is None:
            return
        asked = self._look(
            job,
            "probe",
            lambda: self._probe_order(job, arguments),
            ProbingReport,
            seen,
            timeout_seconds=_probing_seconds(drill),
        )
        seen.findings += asked.findings if asked else ()
        if not job.was_cancelled:
            view = self._look(
                job,
                "console",
                lambda: self._rehearsing.order(
                    rehearsal,
                    Verb.CONSOLE_VIEW,
                    {"run_id": f"{job.record.id}-view", "vm_id": rehearsal.vm_id},
                ),
                ConsoleView,
                seen,
                timeout_seconds=CONSOLE_SECONDS,
            )
            seen.view = view or seen.view
        if drill.reads_all and not job.was_cancelled:
            report = self._look(
                job,
                "read",
                lambda: self._read_order(job, rehearsal),
                ReadReport,
                seen,
                timeout_seconds=READ_SECONDS,
            )
            seen.report = report or seen.report
            if report is not None:
                count = sum(disk.bytes_read for disk in report.disks)
                seen.findings += (
                    Finding(name="read", passed=True, detail=f"{count} bytes verified"),
                )

    def _look(
        self,
        job: RunningJob,
        name: str,
        make: Callable[[], Order],
        kind: type[T],
        seen: _Evidence,
        *,
        timeout_seconds: float,
    ) -> T | None:
        """Return what the agent answered; None after its error was noted."""
        try:
            return job.order(name, make, kind, timeout_seconds=timeout_seconds)
        except LeewardError as error:
            if not job.was_cancelled:
                seen.note(name, str(error))
            return None

    # --- steps

    def _probe_order(self, job: RunningJob, arguments: DrillArguments) -> Order:
        rehearsal = arguments.rehearsal
        with self._bench.vault.read() as records:
            vm = records.items.by_id(arguments.item_id).target_vm
        nic = next((nic for nic in vm.nics if nic.address), None)
        spec = ProbingSpec(
            run_id=f"{job.record.id}-probe",
            network_id=rehearsal.networks[nic.network] if nic else "",
            address=nic.address if nic else "",
            boot_seconds=arguments.drill.boot_seconds,
            probes=arguments.drill.probes,
        )
        return self._rehearsing.order(rehearsal, Verb.PROBE_RUN, to_plain(spec))

    def _read_order(self, job: RunningJob, rehearsal: Rehearsal) -> Order:
        spec = ReadSpec(run_id=f"{job.record.id}-read", vm_id=rehearsal.vm_id)
        return self._rehearsing.order(rehearsal, Verb.POINT_READ, to_plain(spec))

    def _record(
        self,
        job: RunningJob,
        arguments: DrillArguments,
        seen: _Evidence,
        outcome: DrillOutcome,
        *,
        is_clean: bool,
    ) -> Json:
        """The evidence is stored, and the item says what it proves."""
        rehearsal, job_id = arguments.rehearsal, job.record.id
        verdict = DrillVerdict(
            job_id=job_id,
            outcome=outcome,
            region=rehearsal.region,
            recovery_point=rehearsal.recovery_point,
            point_time_ns=arguments.point_time_ns,
            began_ns=rehearsal.started_ns,
            ended_ns=self._bench.clock.now_ns(),
            problem=seen.problem,
        )
        result = DrillResult(
            item=arguments.item,
            verdict=verdict,
            host=rehearsal.host,
            findings=seen.findings,
            disks=seen.report.disks,
            console=seen.view.text,
            screen_sha256=_sha256(seen.view.screen),
        )
        with self._bench.vault.write() as records:
            record = records.items.find(arguments.item_id)
            if record is None or records.resources.find(DrillResult, arguments.item_id, job_id):
                return {}
            keep_result(records, arguments.item_id, result, seen.view.screen)
            item = record.item
            if is_clean and item.rehearsal == rehearsal:
                item = replace(item, rehearsal=None)
            if outcome is not DrillOutcome.CUT_SHORT:
                item = replace(item, last_drill=verdict)
            records.items.update(replace(record, item=item))
            self._bench.record_event(
                records, item_target(item.name), f"drill_{outcome.value}", _sentence(result), job_id
            )
        return {}


def _outcome(job: RunningJob, seen: _Evidence) -> DrillOutcome:
    if job.was_cancelled:
        return DrillOutcome.CUT_SHORT
    return DrillOutcome.FAILED if seen.problem else DrillOutcome.PASSED


def _sentence(result: DrillResult) -> str:
    verdict = result.verdict
    words = verdict.outcome.value.replace("_", " ")
    problem = f": {verdict.problem}" if verdict.problem else ""
    return f"{result.item}: the drill of {verdict.recovery_point} {words}{problem}"


def _probing_seconds(drill: Drill) -> float:
    asked = sum(probe.timeout_seconds for probe in drill.probes)
    return drill.boot_seconds + asked + _SLACK_SECONDS


def _sha256(screen: str) -> str:
    return hashlib.sha256(base64.b64decode(screen)).hexdigest() if screen else ""
