"""Service, agents and workers killed, each at each step of a whole round of verbs, on real QEMU.

Owns: the nemesis and what must be true after each verb. Must not know: which steps a verb has: they
are taken from the job as it goes. The VM needs no guest: its disks are what counts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from demo.fire import processes_of

from leeward.client.jobs import ENDED
from leeward.core.errors import LeewardError
from leeward.model.recovery import Job, JobState
from scenario.common import Findings, Result
from scenario.rig import PLACE, Part, Rig
from scenario.stage import play

SETTLE_SECONDS = 60.0
JOB_SECONDS = 300.0
_NOT_YET = ("does not answer", "no agent", "no worker", "still reads its recovery point")
Victim = tuple[Part, str | None]
VICTIMS: tuple[Victim, ...] = (
    (Part.SERVICE, None),
    (Part.AGENT, "east"),
    (Part.AGENT, "west"),
    (Part.WORKER, "west"),
    (Part.WORKER, "east"),
)
DRILL = ("drill", "run", "web-1")
"""Its VM has no guest: the drill ends red, and must leave nothing all the same."""
CLEAN_UP = ("test-failover-cleanup", "web-1")
"""Asked in this process: it is over before a command has returned."""
DESCRIBE = ("drill", "create", "web-1", "--boot", "1s")
ROUND = (
    (("protect", "east/web-1", "--to", "west"), {"east": 1, "west": 0}),
    (("test-failover", "web-1"), {"east": 1, "west": 1}),
    (CLEAN_UP, {"east": 1, "west": 0}),
    (DRILL, {"east": 1, "west": 0}),
    (("failover", "web-1", "--planned", "--power-off-seconds", "1"), {"east": 0, "west": 1}),
    (("commit", "web-1"), {"east": 0, "west": 1}),
    (("reprotect", "web-1"), {"east": 0, "west": 1}),
    (("failover", "web-1"), {"east": 1, "west": 0}),
    (("commit", "web-1"), {"east": 1, "west": 0}),
    (("unprotect", "web-1", "--delete-replica"), {"east": 1, "west": 0}),
)
"""What is asked, and how many VMs run where when it has succeeded."""


def run() -> Result:
    """Return what the round showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("a VM in east"):
        subnets = ("--address-space", "10.10.0.0/16", "--subnet", "front=10.10.1.0/24")
        rig.run("resource-group", "create", "web-rg", "--region", "east")
        rig.run("network", "create", "corp", *PLACE, *subnets)
        rig.run("storage-account", "create", "sys", *PLACE)
        vm = ("vm", "create", "web-1", *PLACE, "--memory", "64M", "--nic", "front=corp/front")
        rig.run(*vm, "--disk", "system=sys,size=16M")
    kills = 0
    for shift in range(len(VICTIMS)):  # in as many rounds everybody has died at every step
        in_turn = VICTIMS[shift:] + VICTIMS[:shift]
        for verb, wanted in ROUND:
            if verb == DRILL:
                rig.wait("the service", lambda: rig.try_run(*DESCRIBE).code == 0)
            with findings.part(f"round {shift + 1}: {' '.join(verb)}"):
                kills += carry_through(rig, findings, verb, itertools.cycle(in_turn), wanted)
        with findings.part(f"round {shift + 1}: what the failback left in west goes"):
            rig.run("vm", "delete", "west/web-1")
    findings.figures["kills"] = float(kills)


def carry_through(
    rig: Rig,
    findings: Findings,
    verb: tuple[str, ...],
    victims: Iterator[Victim],
    wanted: dict[str, int],
) -> int:
    """The verb has succeeded, asked again where a kill made it fail and undo itself; return how
    many were killed meanwhile."""
    kills = 0
    for attempt in range(3):
        job_id = rig.wait("the job to begin", lambda: _begin(rig, verb), seconds=90)
        job, more = kill_at_every_step(rig, job_id, victims if attempt == 0 else iter(()))
        kills += more
        findings.check(
            "ended, well or undone", job.state in (JobState.SUCCEEDED, JobState.FAILED), job.error
        )
        if job.state is JobState.SUCCEEDED or verb == DRILL:
            break
    if verb != DRILL:
        findings.check("succeeded in the end", job.state is JobState.SUCCEEDED, job.error)
    running = _settled(rig, wanted)
    findings.check("one VM, where it should run", running == wanted, f"{running}, {kills} kills")
    if wanted["west"] == 0 and wanted["east"] == 1:
        left = rig.wait("nothing of a test VM", lambda: _no_trace(rig))
        findings.check("nothing of a test VM is left", left)
    return kills


def _settled(rig: Rig, wanted: dict[str, int]) -> dict[str, int]:
    """Return how many VMs run where, once that is as wanted or has had time to be: an agent that
    was killed stops a VM that has failed over only when it is back."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        running = {region: _machines(rig, region) for region in wanted}
        if running == wanted or time.monotonic() > deadline:
            return running
        time.sleep(0.5)


def _begin(rig: Rig, verb: tuple[str, ...]) -> str | None:
    """Return the job's id, None while it is refused because somebody is away or hydrating."""
    try:
        if verb == CLEAN_UP:
            job = rig.client.clean_up_test_failover(rig.item())
            return job.id if job else None
        return rig.job(*verb)
    except (AssertionError, LeewardError) as error:
        if any(words in str(error) for words in _NOT_YET):
            return None
        raise


def kill_at_every_step(rig: Rig, job_id: str, victims: Iterator[Victim]) -> tuple[Job, int]:
    """Return the job when it has ended, and how many were killed: one at each step it began."""
    seen, kills, deadline = 0, 0, time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        try:
            job = rig.client.job(job_id)
        except LeewardError:
            time.sleep(0.1)
            continue
        if job.state in ENDED:
            return job, kills
        if len(job.steps) > seen:
            seen = len(job.steps)
            victim = next(victims, None)
            if victim is not None:
                rig.kill(*victim)
                kills += 1
        time.sleep(0.02)
    raise AssertionError(f"{job_id} has not ended within {JOB_SECONDS:.0f} s")


def _no_trace(rig: Rig) -> bool:
    west = rig.data / "regions" / "west" / "hosts"
    return not [*west.glob("*/vms/*-test-*"), *west.glob("*/networks/t*")]


def _machines(rig: Rig, region: str) -> int:
    count = 0
    for pid in processes_of(rig.data, region):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                count += file.read().startswith(b"qemu-system-x86_64\0")
        except OSError:
            continue
    return count
