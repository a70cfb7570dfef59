"""A consistency group moved and tested as one: test failover, then a plan to a shared point, then
another point for all.

Owns: what must be true of a group as a whole. Must not know: how points come to be shared (scenario
consistency-group judges whether they are one moment).
"""

from __future__ import annotations

import json
import time
from typing import Any

from demo.poller import ask

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.fabric.namespaces import inside
from leeward.fabric.networks import namespace_of
from leeward.model.groups import SharedPoint
from leeward.model.recovery import ItemState
from scenario.common import Findings, Result
from scenario.plan import PEER, check_machines, create_peer
from scenario.rig import GUEST_PORT, Rig, create_vm
from scenario.stage import play

NAMES = ("db-1", "web-1")
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
    with findings.part("a plan takes both to one shared point"):
        _planned(rig, findings)
    with findings.part("both start anew from an earlier one"):
        _changed(rig, findings)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _tested(rig: Rig, findings: Findings) -> None:
    """Both test VMs are from one moment and see each other; nothing is left of them."""
    rig.run("consistency-group", "test-failover", "shop", seconds=300)
    found = {name: rig.item(name).rehearsal for name in NAMES}
    tests = {name: test for name, test in found.items() if test is not None}
    findings.check("both have a test VM", tests.keys() == set(NAMES), f"{found}")
    _check_one_moment(rig, findings, {name: test.recovery_point for name, test in tests.items()})
    places = {test.networks["corp-asr"] for test in tests.values()}
    findings.check("in one network", len(places) == 1, f"{places}")
    namespace = namespace_of(places.pop())
    address = next(nic.address for nic in rig.machine("east").nics)

    def look() -> dict[str, Any] | None:
        path, at = f"/call?to={PEER}:{GUEST_PORT}", f"{address}:{GUEST_PORT}"
        said = inside(namespace, lambda: ask(at, path, timeout_seconds=30))
        return said if said and said["connected"] else None

    seen = rig.wait("web-1's copy to reach db-1's", look, seconds=180)
    findings.check("they see each other", bool(seen["echoed"]), f"{seen}")
    check_machines(rig, findings, {"east": 2, "west": 2})
    rig.run("consistency-group", "test-failover-cleanup", "shop")
    check_machines(rig, findings, {"east": 2, "west": 0})
    west = rig.data / "regions" / "west"
    left = [str(path) for path in (*west.rglob("*-test-*"), *west.glob("hosts/*/networks/t*"))]
    findings.check("nothing of the test is left", not left, ", ".join(left))
    states = {rig.item(name).state for name in NAMES}
    findings.check("both are protected", states == {ItemState.PROTECTED}, f"{states}")


def _planned(rig: Rig, findings: Findings) -> None:
    """The plan moves one after the other, and both to one moment."""
    groups = [word for name in NAMES for word in ("--group", f"{name[:-2]}={name}")]
    rig.run("recovery-plan", "create", "site", *groups)
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
