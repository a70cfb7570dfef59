"""What an agent is asked about a test VM, and what it answers.

Owns: the shape of these commands. Must not know: how a guest is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from leeward.model.drills import DiskDigest, Finding, Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbingSpec:
    """Wait until `address` answers in the network, then ask each probe, all from inside it.

    address: "" for a VM without one: then nothing can be asked.
    """

    run_id: str
    network_id: str
    address: str
    boot_seconds: float
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbingReport:
    """The boot first, then a finding for each probe, in order."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpec:
    """Read all disks of the recovery point that the VM reads from, through its export."""

    run_id: str
    vm_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """Every byte was read and verified."""

    disks: tuple[DiskDigest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleView:
    """text: the last lines of the serial console. screen: a picture of the display (PNG, base64),
    "" for a VM without one."""

    text: str = ""
    screen: str = ""
