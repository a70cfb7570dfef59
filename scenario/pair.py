"""Two VMs in one network, web-1 and db-1: made, counted, and their copies in isolation judged.

Owns: what must be true of both together, whatever moved or tested them. Must not know: plans,
consistency groups.
"""

from __future__ import annotations

from typing import Any

from demo.fire import processes_of
from demo.poller import ask

from leeward.fabric.namespaces import inside
from leeward.fabric.networks import namespace_of
from leeward.model.recovery import ItemState
from scenario.common import Findings, command_of
from scenario.rig import GUEST_PORT, PLACE, Rig, guest_images

NAMES = ("db-1", "web-1")
PEER = "10.10.1.9"


def create_peer(rig: Rig) -> None:
    """VM db-1 runs in east beside web-1, with a guest of its own."""
    with guest_images(rig) as guest:
        rig.run(
            *("vm", "create", "db-1", *PLACE, "--memory", "192M"),
            *("--disk", f"system=websystem,image={guest / 'system.raw'}"),
            *("--disk", f"data=webdata,image={guest / 'data.raw'}"),
            *("--nic", f"front=corp/front,address={PEER}"),
        )


def check_machines(rig: Rig, findings: Findings, wanted: dict[str, int]) -> None:
    """So many QEMUs with a guest run in each region."""
    running = {region: _count(rig, region) for region in wanted}
    findings.check("every VM runs once, where it should", running == wanted, f"{running}")


def _count(rig: Rig, region: str) -> int:
    return sum(
        command_of(pid).startswith("qemu-system-x86_64 ") for pid in processes_of(rig.data, region)
    )


def check_together(rig: Rig, findings: Findings) -> None:
    """Both have test VMs, in one network of west, and web-1's copy reaches db-1's there."""
    found = [rig.item(name).rehearsal for name in NAMES]
    tests = [test for test in found if test is not None]
    findings.check("both have a test VM", len(tests) == len(NAMES), f"{found}")
    places = {test.networks["corp-asr"] for test in tests}
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


def check_nothing_left(rig: Rig, findings: Findings) -> None:
    """Nothing of a test is left in west, and both items are protected as before."""
    check_machines(rig, findings, {"east": 2, "west": 0})
    west = rig.data / "regions" / "west"
    left = [str(path) for path in (*west.rglob("*-test-*"), *west.glob("hosts/*/networks/t*"))]
    findings.check("nothing of the test is left", not left, ", ".join(left))
    states = {rig.item(name).state for name in NAMES}
    findings.check("both are protected", states == {ItemState.PROTECTED}, f"{states}")
