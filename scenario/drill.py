"""Drills: green when the VM comes up, red when its point has rotted or its service stays away.

Owns: the defects, and what must be true of every drill. Must not know: how a drill looks. One byte
written through the VM's own block layer moves its service to another port: checksums stay right.
One byte flipped in a stored segment: nothing that the boot reads.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.fire import processes_of
from demo.poller import ask

from leeward.model.drills import DrillOutcome, DrillResult, ReadinessState
from leeward.model.recovery import ItemState, Job, JobState
from scenario.common import Findings, Result
from scenario.rig import GUEST_PORT, Part, Rig, create_vm, write_byte
from scenario.stage import play

PROBE = f'http:{GUEST_PORT}/check,text="ok": true,timeout=45s'
LISTENS = b"nc -ll -p 8080"
BULK_MIB = 8
DRILL = "item.drill"


def run() -> Result:
    """Return what the drills showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("a VM in east, protected in west, its drill described"):
        create_vm(rig, "--display", "vga")
        address = rig.wait_guest("east")
        ask(address, f"/write?mb={BULK_MIB}", timeout_seconds=120)
        rig.run("protect", "east/web-1", "--to", "west")
        rig.wait_protected(since=time.time())
        findings.check("nothing is proven yet", _ready(rig) is ReadinessState.UNPROVEN)
        rig.run("drill", "create", "web-1", "--probe", PROBE, "--boot", "2m")
    with findings.part("a drill of a healthy item"):
        first = drill(rig, findings, passes=True)
        findings.figures["drill_s"] = (first.verdict.ended_ns - first.verdict.began_ns) / 1e9
        seen = [finding.name for finding in first.findings]
        findings.check("it looked at all", seen == ["boot", "http:8080/check", "read"], str(seen))
        findings.check("the console is kept", "leeward: ready" in first.console)
        picture = rig.directory / "screen.png"
        rig.run("drill", "screenshot", "web-1", str(picture))
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        is_one = picture.read_bytes().startswith(b"\x89PNG") and digest == first.screen_sha256
        findings.check("and a picture of its display", is_one)
        findings.check("so are digests", {d.disk for d in first.disks} == {"system", "data"})
        again = drill(rig, findings, passes=True, point=first.verdict.recovery_point)
        findings.check("the same point gives the same digests", again.disks == first.disks)
        status = rig.run("status")
        findings.check("`leeward status` says it is proven", "proven" in status)
    with findings.part("its service stays away, every checksum right"):
        with service_moved(rig):
            rig.wait_protected(since=time.time())
            found = drill(rig, findings, passes=False)
            bad = [finding.name for finding in found.findings if not finding.passed]
            findings.check("only the service is missing", bad == ["http:8080/check"], str(bad))
        rig.wait_protected(since=time.time())
        drill(rig, findings, passes=True)
    with findings.part("a stored segment has rotted"):
        with rotten_segment(rig):
            found = drill(rig, findings, passes=False)
            bad = [finding.name for finding in found.findings if not finding.passed]
            findings.check("reading finds it, the boot does not", bad == ["read"], str(bad))
        drill(rig, findings, passes=True)
    with findings.part("by the clock, the service killed meanwhile"):
        rig.run("drill", "create", "web-1", "--probe", PROBE, "--every", "60s")
        begun = rig.wait("a drill that nobody asked for", lambda: _under_way(rig), seconds=120)
        rig.kill(Part.SERVICE)
        ended = rig.wait_job(begun.id, seconds=300)
        findings.check("it goes through", ended.state is JobState.SUCCEEDED, ended.error)
        rig.run("drill", "delete", "web-1")
        check_nothing_left(rig, findings)
    with findings.part("a failover comes in the middle of a drill"):
        job_id = rig.job("drill", "run", "web-1")
        rig.wait("its test VM", lambda: list(_machines(rig)))
        began = time.monotonic()
        rig.run("failover", "web-1")
        findings.figures["failover_s"] = time.monotonic() - began
        cut_short = rig.wait_job(job_id)
        findings.check("the drill gives way", cut_short.state is JobState.CANCELLED)
        rig.wait_guest("west")
        left = _left(rig)
        findings.check("nothing of the test VM is left", not left, ", ".join(left))
        findings.check("one VM runs in west", len(list(_machines(rig))) == 1)


def drill(rig: Rig, findings: Findings, *, passes: bool, point: str = "") -> DrillResult:
    """Return the evidence of a drill, having checked that it passed, or not, and left nothing."""
    arguments = ("--recovery-point", point) if point else ()
    job = rig.wait_job(rig.job("drill", "run", "web-1", *arguments), seconds=300)
    result = result_of(rig, job)
    wanted = DrillOutcome.PASSED if passes else DrillOutcome.FAILED
    state = JobState.SUCCEEDED if passes else JobState.FAILED
    findings.check(
        f"the drill is {'green' if passes else 'red'}",
        result.verdict.outcome is wanted and job.state is state,
        result.verdict.problem,
    )
    ready = ReadinessState.PROVEN if passes else ReadinessState.FAILED
    findings.check("the item's readiness says so", _ready(rig) is ready, str(_ready(rig)))
    check_nothing_left(rig, findings)
    return result


def result_of(rig: Rig, job: Job) -> DrillResult:
    """Return the evidence that the job has kept."""
    results = rig.client.drills.results(rig.item())
    return next(result for result in results if result.verdict.job_id == job.id)


def check_nothing_left(rig: Rig, findings: Findings) -> None:
    """Nothing of a test VM is there: not in the vault, no QEMU, export, namespace, overlay."""
    left = _left(rig) + [f"process {pid}" for pid in _machines(rig)]
    left += [f"export {pid}" for pid in rig.pids(Part.EXPORT_SERVER, "west")]
    findings.check("nothing of the test VM is left", not left, ", ".join(left))
    findings.check("web-1 itself is protected", rig.item().state is ItemState.PROTECTED)


def _left(rig: Rig) -> list[str]:
    west = rig.data / "regions" / "west"
    left = [str(path) for path in (*west.rglob("*-test-*"), *west.glob("hosts/*/networks/t*"))]
    return left + (["a test VM in the vault"] if rig.item().rehearsal else [])


def _under_way(rig: Rig) -> Job | None:
    return next((j for j in rig.client.jobs() if j.verb == DRILL and not j.ended_ns), None)


def _machines(rig: Rig) -> Iterator[int]:
    for pid in processes_of(rig.data, "west"):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"qemu-system-x86_64\0"):
                yield pid
        except OSError:
            continue


def _ready(rig: Rig) -> ReadinessState:
    return rig.item().readiness.state


# ── defects ──────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def service_moved(rig: Rig) -> Iterator[None]:
    """What boots from points made meanwhile has its service on another port."""
    image = next((rig.data / "regions" / "east").rglob("web-1-system.raw"))
    offset = image.read_bytes().index(LISTENS) + len(LISTENS) - 1
    try:
        write_byte(rig, offset, b"1")
        assert image.read_bytes()[offset : offset + 1] == b"1", "the write has not come through"
        yield
    finally:
        write_byte(rig, offset, b"0")


@contextmanager
def rotten_segment(rig: Rig) -> Iterator[None]:
    """One byte of the largest stored segment of disk `data` is another one meanwhile."""
    objects = rig.data / "regions" / "west" / "storage" / "webdataasr" / "objects"
    segment = max(objects.rglob("*"), key=lambda path: path.stat().st_size)
    middle = segment.stat().st_size // 2
    with segment.open("r+b") as file:
        before = os.pread(file.fileno(), 1, middle)
        os.pwrite(file.fileno(), bytes([before[0] ^ 0xFF]), middle)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, middle)
