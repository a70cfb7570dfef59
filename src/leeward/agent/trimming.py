"""Giving back space that guests have discarded while their disks were mirrored.

Owns: the order: mirrors off, the guest discards once more, mirrors on again. Must not know: how a
guest is asked, how replication makes up for the gap.

QEMU drops discards while a mirror is attached, and tells nobody. The guest's file systems know best
what is free at any moment; asked to trim, they never discard what has since been written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from leeward.agent.replication import Replications
from leeward.fabric.driver import FabricDriver
from leeward.observability.log import get_logger
from leeward.protocol.fabric import TrimResult, TrimSpec

log = get_logger()


class Trimming:
    """Trims VMs of one host."""

    def __init__(
        self,
        driver: FabricDriver,
        replications: Replications,
        trim_guest: Callable[[Path], None],
    ) -> None:
        """trim_guest: has the guest whose agent is behind that socket discard all its file systems
        do not use; raises HypervisorRefused or Unavailable."""
        self._driver = driver
        self._replications = replications
        self._trim_guest = trim_guest

    def trim(self, spec: TrimSpec) -> TrimResult:
        """Return how much less space the VM's images take. Its writes are only tracked meanwhile;
        afterwards replication goes on, whatever came of it.

        Raises: Conflict when the VM does not run; HypervisorRefused when the guest's agent cannot;
        Unavailable when it does not answer.
        """
        agent_socket = self._driver.agent_socket(spec.vm_id)
        before = self._driver.allocated_bytes(spec.vm_id)
        with self._replications.letting_go(spec.item_id):
            self._trim_guest(agent_socket)
        freed = max(0, before - self._driver.allocated_bytes(spec.vm_id))
        log.info("vm_trimmed", vm=spec.vm_id, freed=freed)
        return TrimResult(freed_bytes=freed)
