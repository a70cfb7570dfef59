"""What a drill looks at, of one test VM, and what it keeps of that.

Owns: the steps from boot to reading, what makes a drill red, the item's evidence. Must not know:
how a guest is asked, how many VMs a drill has. Looking is one VM after the other: a host carries
out few orders at a time, and a failover's must find room.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from leeward.core.codec import to_plain
from leeward.core.errors import LeewardError
from leeward.model.drills import (
    Drill,
    DrillOutcome,
    DrillResult,
    DrillVerdict,
    Finding,
)
from leeward.model.recovery import Rehearsal
from leeward.protocol.drills import (
    ConsoleView,
    ProbingReport,
    ProbingSpec,
    ReadReport,
    ReadSpec,
)
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Verb
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.drill_records import keep_result
from leeward.workflows.job import RunningJob
from leeward.workflows.monitor import item_target
from leeward.workflows.rehearsing import BOOT_SECONDS, Rehearsing, tested

CONSOLE_SECONDS = 30.0
READ_SECONDS = 24 * 3600.0
_SLACK_SECONDS = 30.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillArguments:
    """Of one test VM. point_time_ns: of the point it boots from."""

    item_id: str
    item: str
    drill: Drill
    rehearsal: Rehearsal
    point_time_ns: int


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What a run has seen so far; made anew, step by step, by every replay. findings: of the VM."""

    findings: tuple[Finding, ...] = ()
    report: ReadReport = field(default_factory=lambda: ReadReport(disks=()))
    view: ConsoleView = field(default_factory=ConsoleView)

    def note(self, name: str, problem: str) -> None:
        self.findings += (Finding(name=name, passed=False, detail=problem),)

    @property
    def problem(self) -> str:
        return problem_in(self.findings)


def problem_in(findings: tuple[Finding, ...]) -> str:
    """Return the first that did not pass, as a sentence; "" if all did."""
    bad = (f"{each.name}: {each.detail}" for each in findings if not each.passed)
    return next(bad, "")


def outcome_of(job: RunningJob, problem: str) -> DrillOutcome:
    """Return what a drill with that problem, or none, comes to."""
    if job.was_cancelled:
        return DrillOutcome.CUT_SHORT
    return DrillOutcome.FAILED if problem else DrillOutcome.PASSED


class DrillLooks:
    """The steps, for a running job."""

    def __init__(self, bench: Bench, rehearsing: Rehearsing) -> None:
        self._bench = bench
        self._rehearsing = rehearsing

    def boot(self, job: RunningJob, test: DrillArguments, seen: Evidence, of: str = "") -> bool:
        """Say whether the test VM runs. of: begins the steps' names, where there are several."""
        booted = self._look(
            job,
            (of, "boot"),
            lambda: self._rehearsing.boot_order(test.item_id, test.rehearsal, hydrates=False),
            VmStatus,
            seen,
            timeout_seconds=BOOT_SECONDS,
        )
        return booted is not None

    def look(self, job: RunningJob, test: DrillArguments, seen: Evidence, of: str = "") -> None:
        """All that could be seen of the running test VM is in `seen`, up to where the job was
        cancelled."""
        rehearsal, drill = test.rehearsal, test.drill
        asked = self._look(
            job,
            (of, "probe"),
            lambda: self._probe_order(job, test, of),
            ProbingReport,
            seen,
            timeout_seconds=_probing_seconds(drill),
        )
        seen.findings += asked.findings if asked else ()
        if not job.was_cancelled:
            view = self._look(
                job,
                (of, "console"),
                lambda: self._rehearsing.order(
                    rehearsal,
                    Verb.CONSOLE_VIEW,
                    {"run_id": _run_id(job, "view", of), "vm_id": rehearsal.vm_id},
                ),
                ConsoleView,
                seen,
                timeout_seconds=CONSOLE_SECONDS,
            )
            seen.view = view or seen.view
        if drill.reads_all and not job.was_cancelled:
            report = self._look(
                job,
                (of, "read"),
                lambda: self._read_order(job, rehearsal, of),
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

    def keep(
        self,
        records: Records,
        job_id: str,
        test: DrillArguments,
        seen: Evidence,
        outcome: DrillOutcome,
    ) -> None:
        """The item's evidence is stored, and the item says what it proves. Once for each job."""
        rehearsal = test.rehearsal
        record = records.items.find(test.item_id)
        if record is None or records.resources.find(DrillResult, test.item_id, job_id):
            return
        verdict = DrillVerdict(
            job_id=job_id,
            outcome=outcome,
            region=rehearsal.region,
            recovery_point=rehearsal.recovery_point,
            point_time_ns=test.point_time_ns,
            began_ns=rehearsal.started_ns,
            ended_ns=self._bench.clock.now_ns(),
            problem=seen.problem,
        )
        result = DrillResult(
            item=test.item,
            verdict=verdict,
            host=rehearsal.host,
            plan=rehearsal.plan,
            findings=seen.findings,
            disks=seen.report.disks,
            console=seen.view.text,
            screen_sha256=_sha256(seen.view.screen),
        )
        keep_result(records, test.item_id, result, seen.view.screen)
        if outcome is not DrillOutcome.CUT_SHORT:
            records.items.update(replace(record, item=replace(record.item, last_drill=verdict)))
        kind, sentence = f"drill_{outcome.value}", _sentence(result)
        self._bench.record_event(records, item_target(record.item.name), kind, sentence, job_id)

    # ---

    def _look(
        self,
        job: RunningJob,
        step: tuple[str, str],
        make: Callable[[], Order],
        kind: type[T],
        seen: Evidence,
        *,
        timeout_seconds: float,
    ) -> T | None:
        """Return what the agent answered; None after its error was noted."""
        of, name = step
        try:
            return job.order(f"{of} {name}".strip(), make, kind, timeout_seconds=timeout_seconds)
        except LeewardError as error:
            if not job.was_cancelled:
                seen.note(name, str(error))
            return None

    def _probe_order(self, job: RunningJob, test: DrillArguments, of: str) -> Order:
        rehearsal = test.rehearsal
        with self._bench.vault.read() as records:
            vm = tested(records.items.by_id(test.item_id).target_vm, rehearsal)
        nic = next((nic for nic in vm.nics if nic.address), None)
        spec = ProbingSpec(
            run_id=_run_id(job, "probe", of),
            network_id=rehearsal.networks[nic.network] if nic else "",
            address=nic.address if nic else "",
            boot_seconds=test.drill.boot_seconds,
            probes=test.drill.probes,
        )
        return self._rehearsing.order(rehearsal, Verb.PROBE_RUN, to_plain(spec))

    def _read_order(self, job: RunningJob, rehearsal: Rehearsal, of: str) -> Order:
        spec = ReadSpec(run_id=_run_id(job, "read", of), vm_id=rehearsal.vm_id)
        return self._rehearsing.order(rehearsal, Verb.POINT_READ, to_plain(spec))


def _run_id(job: RunningJob, what: str, of: str) -> str:
    """Return an id of the run on its host, which no other VM's has."""
    whose = f"-{hashlib.sha256(of.encode()).hexdigest()[:8]}" if of else ""
    return f"{job.record.id}-{what}{whose}"


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
