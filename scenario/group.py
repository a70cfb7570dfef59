"""A consistency group moved and tested as one: test failover, a plan's drill by the clock, the plan
to a shared point, then another point for all.

Owns: what must be true of a group as a whole. Must not know: how points come to be shared (scenario
consistency-group judges whether they are one moment).
"""

from __future__ import annotations

import json
import time

from demo.poller import ask

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.model.drills import ReadinessState
from leeward.model.groups import SharedPoint
from leeward.model.recovery import Job, JobState
from scenario.common import Findings, Result
from scenario.pair import (
    NAMES,
    check_machines,
    check_nothing_left,
    check_together,
    create_peer,
)
from scenario.rig import GUEST_PORT, Part, Rig, create_vm
from scenario.stage import play

GROUPS = [word for name in NAMES for word in ("--group", f"{name[:-2]}={name}")]
PROBE = f'http:{GUEST_PORT}/check,text="ok": true,timeout=2m'
DRILL = "recovery-plan.drill"
POINTS = 3
POINTS_SECONDS = 180.0


def run() -> Result:
    """Return what the group showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("two VMs in east, protected in west, one consistency group"):
        create_vm(rig)
        create_peer(rig)
        rig.wait_guest("east")
        rig.run("policy", "create", "default", "--shared-interval", "1")
        rig.run("protect", "east/web-1", "east/db-1", "--to", "west", seconds=300)
        rig.wait_protected(since=time.time())
        items = [word for name in NAMES for word in ("--item", name)]
        rig.run("consistency-group", "create", "shop", *items)
        rig.wait(f"{POINTS} shared points", lambda: len(_points(rig)) >= POINTS, POINTS_SECONDS)
    with findings.part("a test failover of the group"):
        _tested(rig, findings)
    with findings.part("a plan of both is drilled by the clock, the service killed meanwhile"):
        _drilled(rig, findings)
    with findings.part("its drill is red when an action fails"):
        _red(rig, findings)
    with findings.part("a plan takes both to one shared point"):
        _planned(rig, findings)
    with findings.part("both start anew from an earlier one"):
        _changed(rig, findings)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _tested(rig: Rig, findings: Findings) -> None:
    """Both test VMs are from one moment and see each other; nothing is left of them."""
    rig.run("consistency-group", "test-failover", "shop", seconds=300)
    check_together(rig, findings)
    found = {name: rig.item(name).rehearsal for name in NAMES}
    chosen = {name: test.recovery_point for name, test in found.items() if test is not None}
    _check_one_moment(rig, findings, chosen)
    rig.run("consistency-group", "test-failover-cleanup", "shop")
    check_nothing_left(rig, findings)


def _drilled(rig: Rig, findings: Findings) -> None:
    """A drill that nobody asked for goes through, and proves the plan and both VMs."""
    rig.run("recovery-plan", "create", "site", *GROUPS)
    for name in NAMES:
        rig.run("drill", "create", name, "--probe", PROBE)
    schedule = ("--every", "60s", "--recovery-point", "latest-shared")
    rig.run("recovery-plan", "drill", "create", "site", *schedule)

    def under_way() -> Job | None:
        return next((j for j in rig.client.jobs() if j.verb == DRILL and not j.ended_ns), None)

    begun = rig.wait("a drill that nobody asked for", under_way, seconds=180)
    rig.wait("its test VMs", lambda: rig.item("web-1").rehearsal)
    rig.kill(Part.SERVICE)
    ended = rig.wait_job(begun.id, seconds=300)
    findings.check("it goes through", ended.state is JobState.SUCCEEDED, ended.error)
    rig.run("recovery-plan", "drill", "delete", "site")
    result = next(
        each
        for each in rig.client.plan_drills.results(DEFAULT_VAULT, "site")
        if each.verdict.job_id == begun.id
    )
    seen = {finding.name for finding in result.findings}
    wanted = {f"{name} {what}" for name in NAMES for what in ("boot", "http:8080/check", "read")}
    findings.check("it looked at all of both", seen == wanted, f"{seen}")
    findings.figures["plan_drill_s"] = (result.verdict.ended_ns - result.verdict.began_ns) / 1e9
    ready = {rig.item(name).readiness.state for name in NAMES}
    findings.check("both are proven", ready == {ReadinessState.PROVEN}, f"{ready}")
    _check_one_moment(rig, findings, {n: rig.item(n).readiness.recovery_point for n in NAMES})
    _wait_rest(rig)
    check_nothing_left(rig, findings)


def _red(rig: Rig, findings: Findings) -> None:
    """The script that is not there is named, and all of it is cleaned up."""
    script = {"name": "gone", "kind": "script", "script": "gone"}
    groups: list[dict[str, object]] = [
        {"name": "db", "items": ["db-1"], "post": [script]},
        {"name": "web", "items": ["web-1"]},
    ]
    file = rig.directory / "red.json"
    file.write_text(json.dumps({"groups": groups}))
    rig.run("recovery-plan", "update", "site", "--file", str(file))
    ended = rig.try_run("recovery-plan", "drill", "run", "site", seconds=300)
    is_named = ended.code != 0 and "db post gone" in ended.said
    findings.check("it is red and says where", is_named, ended.said)
    (shown,) = json.loads(rig.run("recovery-plan", "drill", "list", "-o", "json"))
    findings.check("the list says so", shown["readiness"]["state"] == "failed", f"{shown}")
    check_nothing_left(rig, findings)


def _planned(rig: Rig, findings: Findings) -> None:
    """The plan moves one after the other, and both to one moment."""
    rig.run("recovery-plan", "update", "site", *GROUPS)
    rig.run("recovery-plan", "run", "site", "--recovery-point", "latest-shared", seconds=300)
    _check_one_moment(rig, findings, _running_from(rig))
    check_machines(rig, findings, {"west": 2, "east": 0})


def _changed(rig: Rig, findings: Findings) -> None:
    """Both run from the other point, and both guests come up."""
    before = _running_from(rig)
    other = next(point for point in _points(rig) if before.items() != _parts(rig, point).items())
    rig.run("consistency-group", "change-recovery-point", "shop", other.id, seconds=300)
    now = _running_from(rig)
    findings.check("from their parts of it", now == _parts(rig, other), f"{now}, {other}")
    check_machines(rig, findings, {"west": 2, "east": 0})
    address = rig.wait_guest("west")
    report = ask(address, "/check", timeout_seconds=60) or {}
    findings.check("whole and gapless", bool(report.get("ok")), f"{report}")


def _wait_rest(rig: Rig) -> None:
    """No drill is under way."""
    rig.wait(
        "the end of drills",
        lambda: not any(j.verb == DRILL and not j.ended_ns for j in rig.client.jobs()) or None,
        seconds=300,
    )


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


def _points(rig: Rig) -> tuple[SharedPoint, ...]:
    return rig.client.groups.points(DEFAULT_VAULT, "shop")


def _parts(rig: Rig, point: SharedPoint) -> dict[str, str]:
    return {name: point.points[rig.item(name).id] for name in NAMES}


def _running_from(rig: Rig) -> dict[str, str]:
    return {name: rig.item(name).recovery_point for name in NAMES}


def _check_one_moment(rig: Rig, findings: Findings, chosen: dict[str, str]) -> None:
    fitting = [point.id for point in _points(rig) if _parts(rig, point) == chosen]
    shown = json.dumps(chosen)
    findings.check("from one shared point", len(fitting) == 1, f"{shown} in {len(_points(rig))}")
