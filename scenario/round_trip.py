"""East → west → east → west under a running workload.

Nothing is lost that should not be, the VM that comes home is the one that left, and only what
differs travels.

Owns: the legs and what must be true after each. Must not know: how any of it is done.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any

from demo.fire import processes_of
from demo.poller import ask

from leeward.client.views import MachineView
from leeward.core.units import MIB
from leeward.model.recovery import ItemState
from scenario.common import Findings, Result
from scenario.rig import Rig, Witness, create_vm
from scenario.stage import play

FILL_MIB = 24
"""Of data that nobody changes: it must not travel again and again."""
TRAVELS_MIB_MAX = 8
"""What a reprotection may send, the workload's own writes meanwhile included."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same when the VM is home again."""

    name: str
    resource_group: str
    nics: tuple[tuple[str, str, str, str, str], ...]
    accounts: tuple[tuple[str, str], ...]


def run() -> Result:
    """Return what three legs showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("a VM in east under its workload, protected in west"):
        create_vm(rig)
        witness = Witness(rig.wait_guest("east"))
        ask(witness.address, f"/write?mb={FILL_MIB}", timeout_seconds=120)
        origin = identity(rig.machine("east"))
        rig.run("protect", "east/web-1", "--to", "west")
        rig.wait_protected(since=time.time())
    with findings.part("leg 1: planned, to west; the commit taken back once"):
        witness = planned_leg(rig, findings, "east", "west", witness)
        rig.run("commit", "web-1")
        rig.run("undo-commit", "web-1")
        findings.check("undone", rig.item().state is ItemState.FAILED_OVER)
        away = identity(rig.machine("west"))
        reprotect(rig, findings, "west")
    with findings.part("leg 2: back to east, the source killed without warning"):
        witness = unplanned_leg(rig, findings, "west", "east", witness)
        home = identity(rig.machine("east"))
        findings.check("the VM that is home is the one that left", home == origin, f"{home}")
        reprotect(rig, findings, "east")
    with findings.part("leg 3: planned, to west once more"):
        witness = planned_leg(rig, findings, "east", "west", witness)
        again = identity(rig.machine("west"))
        findings.check("the same there as the first time", again == away, f"{again}")
        witness.stop()


# ── legs ─────────────────────────────────────────────────────────────────────────────────────────


def planned_leg(
    rig: Rig, findings: Findings, source: str, target: str, witness: Witness
) -> Witness:
    """The VM has moved with all it wrote; return a witness of it there."""
    rig.run("failover", "web-1", "--planned", seconds=180)
    acknowledged = witness.poller.readings[-1].acknowledged
    witness.stop()
    address = rig.wait_guest(target)
    surviving = check_guest(findings, address)
    findings.check(
        "nothing acknowledged is lost",
        surviving >= acknowledged,
        f"{acknowledged} acknowledged, {surviving} there",
    )
    check_one_runs(rig, findings, source, target)
    return Witness(address)


def unplanned_leg(
    rig: Rig, findings: Findings, source: str, target: str, witness: Witness
) -> Witness:
    """The VM has moved from its newest recovery point; return a witness of it there."""
    status = rig.machine(source).status
    newest = rig.points()[0].time_ns / 1e9
    known = [each for each in witness.poller.readings if each.answered < newest]
    subprocess.run(["kill", "-KILL", str(status.pid if status else 0)], check=True)
    witness.stop()
    rig.run("failover", "web-1", seconds=120)
    address = rig.wait_guest(target)
    surviving = check_guest(findings, address)
    least = known[-1].acknowledged if known else 0
    findings.check(
        "nothing older than the newest recovery point is lost",
        surviving >= least,
        f"{least} acknowledged by then, {surviving} there",
    )
    check_one_runs(rig, findings, source, target)
    return Witness(address)


def reprotect(rig: Rig, findings: Findings, source: str) -> None:
    """The VM is protected in the other direction, and little has travelled for it."""
    rig.run("commit", "web-1")
    rig.wait_hydrated()
    rig.run("reprotect", "web-1", seconds=180)
    item = rig.item()
    findings.check(
        f"protected, with {source} as its source",
        item.state is ItemState.PROTECTED and item.source_region == source,
        item.problem or item.state.value,
    )
    replication = item.health.replication
    shipped = replication.bytes_shipped / MIB if replication else -1.0
    findings.check(
        "only what differs has travelled",
        0 <= shipped <= TRAVELS_MIB_MAX,
        f"{shipped:.1f} MiB of more than {FILL_MIB}",
    )
    findings.figures["shipped_mib_max"] = max(findings.figures.get("shipped_mib_max", 0.0), shipped)
    rig.wait_protected(since=time.time())


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def check_guest(findings: Findings, address: str) -> int:
    """Return the last record that was there when the guest booted, having checked its disks."""
    report: dict[str, Any] | None = ask(address, "/check", timeout_seconds=60)
    if not findings.check("the guest answers", report is not None) or report is None:
        return -1
    findings.check(
        "its disks are whole: clean, no gap, in order",
        bool(report["filesystems_clean"] and report["no_gap"] and report["data_never_ahead"]),
        str(report),
    )
    return int(report["last_system_at_boot"])


def check_one_runs(rig: Rig, findings: Findings, source: str, target: str) -> None:
    """There is one QEMU with a guest in it, in `target`."""
    running = {region: _machines(rig, region) for region in (source, target)}
    findings.check(
        "one VM runs, in the target", running == {source: 0, target: 1}, f"QEMU by region {running}"
    )


def _machines(rig: Rig, region: str) -> int:
    count = 0
    for pid in processes_of(rig.data, region):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                count += file.read().startswith(b"qemu-system-x86_64\0")
        except OSError:
            continue
    return count


def identity(machine: MachineView) -> Identity:
    """Return what people and the guest know the VM by."""
    return Identity(
        machine.name,
        machine.resource_group,
        tuple((n.name, n.network, n.subnet, n.address, n.mac) for n in machine.nics),
        tuple((disk.name, disk.storage_account) for disk in machine.disks),
    )
