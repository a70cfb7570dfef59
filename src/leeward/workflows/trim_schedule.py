"""Trims by the clock: whose guest is asked next to give back what it does not use.

Owns: when a trim begins by itself. Must not know: what one does. A trim interrupts a VM's recovery
points for a moment, so only a VM that streams is trimmed, and one of a region at a time. A trim
that fails says so as any job does and is not tried again before the next is due.
"""

from __future__ import annotations

from leeward.core.errors import LeewardError
from leeward.model.recovery import ItemState, Policy, ReplicationState
from leeward.observability.log import get_logger
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.machine_verbs import machine_target
from leeward.workflows.monitor import source_agent
from leeward.workflows.trim_verbs import VM_TRIM, TrimVerbs

log = get_logger()


class TrimSchedule:
    """`tick` now and then, from one thread."""

    def __init__(self, bench: Bench, trims: TrimVerbs) -> None:
        self._bench = bench
        self._trims = trims

    def tick(self) -> None:
        """In every region where no trim runs, the one that has been due for longest has begun."""
        with self._bench.vault.read() as records:
            open_trims = [records.jobs.record(each) for each in records.jobs.open_ids(verb=VM_TRIM)]
            busy = {job.target.split("/")[1] for job in open_trims}
            due = sorted(
                (begun_ns, record.item.source_region, record.item.source_vm)
                for record in records.items.listed()
                if (begun_ns := self._due_since(records, record)) is not None
            )
        for _, region, name in due:
            if region not in busy:
                busy.add(region)
                self._begin(region, name)

    def _due_since(self, records: Records, record: ItemRecord) -> int | None:
        """Return when the VM's last trim began, 0 if none is known; None if none is due now."""
        item = record.item
        every = records.resources.get(Policy, item.vault, item.policy).value.trim_seconds
        if not every or item.state is not ItemState.PROTECTED:
            return None
        last = records.jobs.newest(VM_TRIM, machine_target(item.source_region, item.source_vm))
        begun_ns = last.created_ns if last else 0
        if self._bench.clock.now_ns() - begun_ns < every * 10**9:
            return None
        agent = source_agent(records, record)
        said = self._bench.live.replication(agent.id, item.id) if agent else None
        return begun_ns if said and said.state is ReplicationState.STREAMING else None

    def _begin(self, region: str, name: str) -> None:
        try:
            self._trims.trim(region, name)
        except LeewardError as error:
            log.info("trim_not_begun", vm=f"{region}/{name}", reason=str(error))
