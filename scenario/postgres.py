"""A full Debian guest with PostgreSQL under load, east → west → east → west.

Owns: the legs: from an application-consistent point, from the newest crash-consistent one, planned.
Must not know: how a database is judged. Nothing acknowledged before a point is missing, nothing is
invented, and the guest stands still for a point no longer than our share allows.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from leeward.core.codec import from_plain
from leeward.model.recovery import Consistency, FreezeReport, ItemState, JobState
from scenario.common import Findings, Result
from scenario.postgres_client import Database, DatabaseError
from scenario.postgres_load import Load, Survived, judge, look, set_up
from scenario.rig import PLACE, ROOT, Rig
from scenario.stage import play

PORT = 5432
FREEZES = 10
FREEZES_MIN = 7
"""An emulated guest on a crowded machine may now and then take more than its 10 s to freeze."""
OURS_MS_MAX = 50.0
BOOT_SECONDS = 420.0
LOAD_SECONDS = 8.0
BEYOND_ALL_TIME_NS = 1 << 62


@dataclass(slots=True)
class Bank:
    """The database as it goes from region to region. survived: what the last boot held."""

    address: str
    load: Load
    survived: Survived | None = None

    def begin(self) -> None:
        """Clients commit against where the database runs now."""
        self.load = Load(self.address, self.load.run + 1)
        self.load.start()


def run() -> Result:
    """Return what three failovers of a database showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    findings.figures |= {"commits_acknowledged": 0, "commits_lost_before_point": 0}
    with findings.part("PostgreSQL on Debian in east, under load, protected in west"):
        create_vm(rig)
        address = wait_database(rig, "east")
        set_up(address)
        bank = Bank(address, Load(address, 0))
        bank.begin()
        rig.run("protect", "east/web-1", "--to", "west", seconds=400)
        rig.wait_protected(since=time.time(), seconds=300)
    with findings.part(f"{FREEZES} application-consistent points under load"):
        make_points(rig, findings, bank)
    with findings.part("leg 1: east is lost; to west from the newest application-consistent point"):
        unplanned_leg(rig, findings, bank, ("east", "west"), "latest-app-consistent")
        reprotect(rig, bank)
    with findings.part("leg 2: west is lost; back to east from the newest point there is"):
        time.sleep(LOAD_SECONDS)
        unplanned_leg(rig, findings, bank, ("west", "east"), "latest")
        reprotect(rig, bank)
    with findings.part("leg 3: planned, to west once more"):
        time.sleep(LOAD_SECONDS)
        planned_leg(rig, findings, bank)


def create_vm(rig: Rig) -> None:
    """VM web-1 runs in east: the database on one disk, its log on the other."""
    guest = rig.directory / "guest"
    subprocess.run(
        [sys.executable, str(ROOT / "guest" / "debian.py"), "--out", str(guest)], check=True
    )
    subnets = ("--address-space", "10.10.0.0/16", "--subnet", "front=10.10.1.0/24")
    rig.run("resource-group", "create", "web-rg", "--region", "east")
    rig.run("network", "create", "corp", *PLACE, *subnets)
    for account in ("websystem", "webdata", "cache"):
        rig.run("storage-account", "create", account, *PLACE)
    rig.run(
        *("vm", "create", "web-1", *PLACE, "--vcpus", "2", "--memory", "512M"),
        *("--disk", f"system=websystem,image={guest / 'system.raw'}"),
        *("--disk", f"data=webdata,image={guest / 'data.raw'}"),
        *("--nic", "front=corp/front", "--forward", str(PORT)),
    )
    shutil.rmtree(guest)


def wait_database(rig: Rig, region: str) -> str:
    """Return where the database answers, once it does."""
    address = rig.address(region)

    def answers() -> bool:
        with suppress(OSError, DatabaseError):
            database = Database(address, seconds=20)
            is_there = database.ask("SELECT 1") == [("1",)]
            database.close()
            return is_there
        return False

    rig.wait(f"the database at {address}", answers, BOOT_SECONDS)
    return address


def make_points(rig: Rig, findings: Findings, bank: Bank) -> None:
    """Freeze the guest again and again; measure for how long."""
    by_policy(rig, findings)
    reports = []
    for _ in range(FREEZES):
        job = rig.client.create_recovery_point(rig.item())
        ended = rig.wait_job(job.id if job is not None else "", seconds=180)
        if ended.state is not JobState.SUCCEEDED:
            findings.check("a point is made", False, ended.error)
            continue
        report = from_plain(ended.result, FreezeReport)
        if report.problem:
            findings.check("it falls back with a reason", True, report.problem)
        reports.append(report)
    good = [report for report in reports if report.consistency is Consistency.APPLICATION]
    findings.check("application-consistent", len(good) >= FREEZES_MIN, f"{len(good)} of {FREEZES}")
    listed = {point.id: point.consistency for point in rig.points()}
    findings.check(
        "listed as what they are",
        all(listed.get(r.point_id, r.consistency) is r.consistency for r in reports),
    )
    findings.figures["frozen_p99_ms"] = p99([report.frozen_ms for report in good])
    findings.figures["frozen_ours_p99_ms"] = ours = p99([report.ours_ms for report in good])
    findings.check("our share of it is small", ours <= OURS_MS_MAX, f"p99 {ours:.2f} ms")
    database = Database(bank.address, seconds=60)
    ((hooks,),) = database.ask("SELECT pg_read_file('/run/freezes')")
    database.close()
    calls = hooks.split()
    frozen, thawed = calls.count("freeze"), calls.count("thaw")
    findings.check(
        "its hook was called; whatever froze was thawed",
        len(good) <= frozen <= thawed and calls[-1] == "thaw",
        f"{frozen} and {thawed}",
    )
    before = bank.load.acknowledged
    rig.wait("the guest commits on", lambda: bank.load.acknowledged > before + 5)


def by_policy(rig: Rig, findings: Findings) -> None:
    """Have the policy freeze the guest, and no more."""
    rig.run("policy", "create", "default", "--app-consistent-every", "1h")
    report = rig.wait("a point by policy", lambda: rig.item().freeze, 120)
    findings.check("the policy froze the guest", report.sequence > 0, report.problem)
    rig.run("policy", "create", "default")


def p99(values: Sequence[float]) -> float:
    """Return the value that at most one in a hundred is above."""
    ordered = sorted(values)
    return ordered[max(0, -(-99 * len(ordered) // 100) - 1)] if ordered else 0.0


# ── legs ─────────────────────────────────────────────────────────────────────────────────────────


def unplanned_leg(
    rig: Rig, findings: Findings, bank: Bank, way: tuple[str, str], wanted: str
) -> None:
    """The database runs in the other region from that point, and its clients commit there."""
    source, target = way
    status = rig.machine(source).status
    os.kill(status.pid if status is not None else 0, signal.SIGKILL)
    bank.load.stop()
    rig.run("failover", "web-1", "--recovery-point", wanted, seconds=180)
    chosen = next(point for point in rig.points() if point.id == rig.item().recovery_point)
    if wanted == "latest-app-consistent":
        is_application = chosen.consistency is Consistency.APPLICATION
        findings.check("the point is application-consistent", is_application, chosen.id)
    arrive(rig, findings, bank, target, chosen.time_ns)


def planned_leg(rig: Rig, findings: Findings, bank: Bank) -> None:
    """The database runs in west with all it ever committed."""
    rig.run("failover", "web-1", "--planned", "--power-off-seconds", "120", seconds=400)
    bank.load.stop()
    arrive(rig, findings, bank, "west", BEYOND_ALL_TIME_NS)
    bank.load.stop()


def arrive(rig: Rig, findings: Findings, bank: Bank, region: str, point_ns: int) -> None:
    """What survived is judged, and clients commit again."""
    bank.address = wait_database(rig, region)
    survived = look(bank.address)
    verdict = judge(bank.load, survived, bank.survived, point_ns)
    figures = findings.figures
    figures["commits_acknowledged"] += bank.load.acknowledged
    figures["commits_lost_before_point"] += verdict.lost
    findings.check(
        "nothing acknowledged before the point is missing, nothing is invented, all is whole",
        not verdict.problems,
        "; ".join(verdict.problems)
        or f"{bank.load.acknowledged} acknowledged, {sum(v[0] for v in survived.lines.values())} "
        f"lines there, longest wait {bank.load.longest_wait_s():.1f} s",
    )
    bank.survived = survived
    bank.begin()


def reprotect(rig: Rig, bank: Bank) -> None:
    """The database is protected in the other direction, and its clients commit meanwhile."""
    rig.run("commit", "web-1")
    rig.wait_hydrated(seconds=300)
    rig.run("reprotect", "web-1", seconds=400)
    rig.wait("protected", lambda: rig.item().state is ItemState.PROTECTED, 120)
    rig.wait_protected(since=time.time(), seconds=120)
