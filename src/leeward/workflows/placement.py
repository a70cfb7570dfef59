"""Which host a VM runs on.

Owns: the rules. Must not know: hosts' health; it is given those that answer. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from leeward.core.errors import Conflict, Unavailable
from leeward.model.resources import VirtualMachine
from leeward.vault.nodes import NodeRecord


def choose_host(
    vm: VirtualMachine,
    agents: Sequence[NodeRecord],
    others: Sequence[VirtualMachine],
    memory_available_mib: Callable[[NodeRecord], int | None],
) -> NodeRecord:
    """Return the agent that gets the VM: of those with memory for it and with the fewest members of
    its availability set the one with the fewest VMs.

    others: VMs of the region. memory_available_mib: what the agent said, None if nothing; its host
    looks again before it starts the VM. Raises: Unavailable when there is no agent; Conflict when
    none has the memory.
    """
    if not agents:
        raise Unavailable(f"no agent of region {vm.region} answers: nothing can run there now")
    available = {agent.name: memory_available_mib(agent) for agent in agents}

    def has_room(agent: NodeRecord) -> bool:
        mib = available[agent.name]
        return mib is None or mib >= vm.memory_mib

    def load(agent: NodeRecord) -> tuple[int, int, str]:
        here = [other for other in others if other.host == agent.name and other.name != vm.name]
        siblings = [
            other
            for other in here
            if vm.availability_set and other.availability_set == vm.availability_set
        ]
        return len(siblings), len(here), agent.name

    fitting = [agent for agent in agents if has_room(agent)]
    if not fitting:
        each = ", ".join(f"{name} has {mib}" for name, mib in sorted(available.items()))
        raise Conflict(
            f"{vm.name} needs {vm.memory_mib} MiB of memory, and no host of region {vm.region} has "
            f"as much available ({each})",
            field="memory_mib",
            hint="stop another VM there, add a host, or give it less: `leeward item update ITEM "
            "--memory` for a protected one",
        )
    return min(fitting, key=load)


def check_memory(vm: VirtualMachine, totals_mib: Mapping[str, int | None]) -> None:
    """Return if one of the hosts could run the VM with nothing else on it.

    totals_mib: host → what it could give, None where it has not told. Raises: Conflict.
    """
    told = {name: mib for name, mib in totals_mib.items() if mib is not None}
    if not told or len(told) < len(totals_mib) or max(told.values()) >= vm.memory_mib:
        return
    each = ", ".join(f"{name} has {mib}" for name, mib in sorted(told.items()))
    raise Conflict(
        f"{vm.name} would need {vm.memory_mib} MiB of memory, and no host of region {vm.region} "
        f"has as much, even with nothing else on it ({each})",
        field="memory_mib",
        hint=f"give it less with --memory, at most {max(told.values())}M, or add a host",
    )
