"""What the operator of the operations page waits for, and what they do with no command of the page.

Owns: those waits, the looks into the region, a host's end. Must not know: which part asks.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from demo.fire import kill_all, processes_of

from leeward.daemons.places import Places, run_directory
from leeward.model.recovery import ItemState, Job, JobState
from scenario.page import Reader
from scenario.rig import Rig

LOST_SECONDS = 180.0
"""How long anything that is waited for may take: a guard against hanging."""


def wait_protected(rig: Rig, name: str) -> None:
    """The item is protected, without a problem, and recovery points come."""
    since = time.time_ns()

    def look() -> bool:
        item = rig.item(name)
        points = rig.points(name)
        is_well = item.state is ItemState.PROTECTED and not item.problem
        return is_well and bool(points) and points[0].time_ns > since

    rig.wait(f"{name} protected", look, LOST_SECONDS)


def shared_points(rig: Rig) -> list[str]:
    """Return the ids of the group's shared points, newest first."""
    return re.findall(r"^sp-\S+", rig.run("consistency-group", "points", "shop"), re.MULTILINE)


def wait_trimmed(rig: Rig, name: str) -> None:
    """The VM's guest has given back what it does not use, by the clock."""
    target = f"vm/{rig.item(name).source_region}/{name}"
    rig.wait(
        f"{target} trimmed",
        lambda: any(job.verb == "vm.trim" and job.target == target for job in _done(rig)),
        LOST_SECONDS,
    )


def _done(rig: Rig) -> list[Job]:
    return [job for job in rig.client.jobs(limit=100) if job.state is JobState.SUCCEEDED]


def wait_hydrated(rig: Rig, name: str) -> None:
    """The VM's disks are local."""

    def look() -> bool:
        hydration = rig.item(name).health.hydration
        return hydration is not None and hydration.done

    rig.wait(f"{name} local", look, LOST_SECONDS)


def overlays(rig: Rig) -> set[Path]:
    """Return the images of web-1's disks in west that begin as a recovery point."""
    return set((rig.data / "regions" / "west").rglob("web-1-*.qcow2"))


def approve(rig: Rig, reader: Reader) -> None:
    """The plan's run has waited for a person, who approves."""
    rig.wait(
        "a wait for approval",
        lambda: rig.client.plans.report("default", "site").waits_for,
        LOST_SECONDS,
    )
    reader.run("leeward recovery-plan approve site", r"is approved")


def kill_host(rig: Rig, region: str, host: str) -> None:
    """Everything of one host of the region is dead: agent, VMs, taps, exports."""
    home = Places(rig.data).host(region, host)
    marks = (str(home), str(run_directory(home, host)), f"--name\0{host}\0")
    for _ in range(3):  # what is born between the look and the kill
        for pid in processes_of(rig.data, region):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if any(mark in words for mark in marks):
                kill_all([pid])
        time.sleep(0.2)
