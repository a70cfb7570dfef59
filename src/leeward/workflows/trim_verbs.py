"""Giving back what a protected VM's guest has discarded.

Owns: that it is asked for once and recorded. Must not know: how a host does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.core.units import format_bytes
from leeward.model.recovery import Job
from leeward.model.resources import VirtualMachine
from leeward.protocol.fabric import TrimResult, TrimSpec
from leeward.protocol.messages import Verb
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.machine_verbs import machine_target
from leeward.workflows.specs import vm_id

VM_TRIM = "vm.trim"
TRIM_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimArguments:
    region: str
    name: str


class TrimVerbs:
    """Submits and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def trim(self, region: str, name: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that has the VM's guest discard what it does not use, so that its disks
        take no more space than they need. Raises: NotFound, Conflict."""

        def prepare(records: Records) -> TrimArguments:
            stored = records.resources.get(VirtualMachine, region, name)
            if stored.state is not ResourceState.READY:
                raise Conflict(f"{name} is still {stored.state.value}")
            return TrimArguments(region=region, name=name)

        return self._jobs().submit(VM_TRIM, machine_target(region, name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The guest has trimmed, and the VM is replicated as before."""
        arguments = job.arguments(TrimArguments)
        result = job.order(
            "trim", lambda: self._order(arguments), TrimResult, timeout_seconds=TRIM_SECONDS
        )
        job.record_step("record", lambda: self._record(arguments, result), dict[str, object])
        return {"freed_bytes": result.freed_bytes}

    def _order(self, arguments: TrimArguments) -> Order:
        with self._bench.vault.read() as records:
            vm = records.resources.get(VirtualMachine, arguments.region, arguments.name).value
            agent = self._bench.agent_of(records, vm)
            item_id = next(
                (
                    record.item.id
                    for record in records.items.listed(region=arguments.region)
                    if (record.item.source_region, record.item.source_vm)
                    == (arguments.region, arguments.name)
                ),
                "",
            )
        spec = TrimSpec(vm_id=vm_id(vm.name), item_id=item_id)
        return Order(node=agent, verb=Verb.VM_TRIM, arguments=to_plain(spec))

    def _record(self, arguments: TrimArguments, result: TrimResult) -> Json:
        with self._bench.vault.write() as records:
            self._bench.record_event(
                records,
                machine_target(arguments.region, arguments.name),
                "vm_trimmed",
                f"the disks of {arguments.name} take {format_bytes(result.freed_bytes)} less",
            )
        return {}
