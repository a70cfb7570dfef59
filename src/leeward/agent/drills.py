"""Verbs about test VMs: asked from inside their network, looked at, their point read whole.

Owns: which of them an agent has. Must not know: drills. One of the verb sets of an agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeward.agent.recovery import Recoveries
from leeward.core.codec import from_plain
from leeward.fabric.driver import FabricDriver
from leeward.model.drills import DiskDigest
from leeward.protocol.drills import (
    ConsoleView,
    ProbingReport,
    ProbingSpec,
    ReadReport,
    ReadSpec,
)
from leeward.protocol.messages import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    vm_id: str


class DrillVerbs:
    """The verbs of one host. Thread-safe."""

    def __init__(
        self,
        driver: FabricDriver,
        recoveries: Recoveries,
        *,
        probe: Callable[[ProbingSpec], ProbingReport],
        digest: Callable[[Path, Sequence[str]], tuple[DiskDigest, ...]],
    ) -> None:
        """probe: asks a guest from inside its network. digest: reads
        disks whole from the export at a socket."""
        self._driver = driver
        self._recoveries = recoveries
        self._probe = probe
        self._digest = digest

    @property
    def verbs(self) -> Mapping[Verb, Callable[[dict[str, Any]], object]]:
        """Return what carries out each verb's arguments."""
        return {
            Verb.PROBE_RUN: lambda a: self._probe(from_plain(a, ProbingSpec)),
            Verb.POINT_READ: lambda a: self.read(from_plain(a, ReadSpec)),
            Verb.CONSOLE_VIEW: lambda a: self.view(from_plain(a, _View).vm_id),
        }

    def read(self, spec: ReadSpec) -> ReadReport:
        """Return the digests of all disks of the point that the VM reads from. Raises: NotFound;
        Unavailable naming disk and offset that cannot be read."""
        socket, disks = self._recoveries.source_of(spec.vm_id)
        return ReadReport(disks=self._digest(socket, disks))

    def view(self, vm_id: str) -> ConsoleView:
        """Return what the VM shows now. Raises: NotFound; Conflict when it does not run."""
        return self._driver.view_console(vm_id)
