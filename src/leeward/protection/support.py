"""What can be protected and what cannot, and why: one table for the refusals and for the page.

Owns: every check of the source that comes before a plan is made. Must not know: what the plan will
be. docs/support-matrix.md is printed from ASPECTS (`python -m leeward.protection.support`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, Unavailable
from leeward.model.resources import MEMORY_MIB_MIN, VCPUS_MAX, PowerState, VirtualMachine
from leeward.protection.inventory import Inventory
from leeward.protection.options import ProtectOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCondition:
    """What is known of the source VM at this moment. host: its host, for people; power: None while
    its host has not told."""

    host: str
    is_host_answering: bool
    is_made: bool = True
    power: PowerState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """All that the checks look at."""

    vault: str
    vm: VirtualMachine
    condition: SourceCondition
    inventory: Inventory
    options: ProtectOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspect:
    """One row of the matrix. check: yields why the candidate cannot be protected; None: nothing of
    the kind is ever refused."""

    part: str
    title: str
    supported: str
    refused: str = ""
    check: Callable[[Candidate], Iterator[LeewardError]] | None = None


def check_support(candidate: Candidate) -> None:
    """Return if the VM can be protected. Raises: the first refusal, its message naming them all."""
    refusals = [
        refusal
        for aspect in ASPECTS
        if aspect.check is not None
        for refusal in aspect.check(candidate)
    ]
    if not refusals:
        return
    first, *others = refusals
    said = dict.fromkeys(refusal.message for refusal in others)
    message = "; also: ".join([first.message, *said])
    raise type(first)(message, field=first.field, hint=first.hint)


def _same_region(candidate: Candidate) -> Iterator[LeewardError]:
    vm = candidate.vm
    if candidate.options.target_region == vm.region:
        yield InvalidRequest(
            f"{vm.name} is already in region {vm.region}: the target must be another region",
            field="target_region",
        )


def _target_nodes(candidate: Candidate) -> Iterator[LeewardError]:
    target, inventory = candidate.options.target_region, candidate.inventory
    for kind, regions in (
        ("agent", inventory.regions_with_agents),
        ("worker", inventory.regions_with_workers),
    ):
        if target not in regions:
            yield Conflict(
                f"region {target} has no {kind} enrolled: nothing could run there",
                field="target_region",
                hint=f"enrol one: `leeward region token {target}`, then `leeward {kind}`",
            )


def _protected_once(candidate: Candidate) -> Iterator[LeewardError]:
    vm = candidate.vm
    for protected in candidate.inventory.protected:
        item = protected.item
        if (item.source_region, item.source_vm) == (vm.region, vm.name):
            yield Conflict(
                f"{vm.name} is already protected, to region {item.target_region} "
                f"(vault {item.vault}, {item.state.value.replace('_', ' ')})",
                field="vm",
                hint=f"to change how: `leeward item update {item.name}`; to begin anew: `leeward "
                f"unprotect {item.name}`",
            )
        elif (item.target_region, item.target_vm) == (vm.region, vm.name):
            yield Conflict(
                f"{vm.name} in {vm.region} is where item {item.name} has failed over to",
                field="vm",
                hint=f"to protect it in the other direction: `leeward reprotect {item.name}`",
            )
        elif (item.vault, item.name) == (candidate.vault, vm.name):
            yield Conflict(
                f"vault {candidate.vault} already has an item {vm.name} "
                f"(from region {item.source_region})",
                field="vm",
                hint="use another vault: --vault",
            )


def _host(candidate: Candidate) -> Iterator[LeewardError]:
    if not candidate.condition.is_host_answering:
        yield Unavailable(f"{candidate.condition.host} does not answer", field="vm")


def _power(candidate: Candidate) -> Iterator[LeewardError]:
    vm, condition = candidate.vm, candidate.condition
    if not condition.is_made:
        yield Conflict(f"{vm.name} is still being made or deleted", field="vm")
    elif condition.power is PowerState.STOPPED:
        yield Conflict(
            f"{vm.name} is stopped",
            field="vm",
            hint=f"start it first: `leeward vm start {vm.region}/{vm.name}`",
        )


def _disk_choices(candidate: Candidate) -> Iterator[LeewardError]:
    vm, options = candidate.vm, candidate.options
    known = {disk.name for disk in vm.disks}
    for field, names in (
        ("exclude_disks", options.exclude_disks),
        ("target_accounts", tuple(options.target_accounts)),
    ):
        for name in names:
            if name not in known:
                yield InvalidRequest(
                    f"{vm.name} has no disk {name} (it has {', '.join(sorted(known))})",
                    field=field,
                )


def _system_disk(candidate: Candidate) -> Iterator[LeewardError]:
    vm = candidate.vm
    if not vm.disks:
        yield Conflict(f"{vm.name} has no disk to protect", field="vm")
    elif vm.disks[0].name in candidate.options.exclude_disks:
        yield InvalidRequest(
            f"{vm.disks[0].name} is the system disk of {vm.name} and cannot be excluded",
            field="exclude_disks",
        )


def _disk_accounts(candidate: Candidate) -> Iterator[LeewardError]:
    vm = candidate.vm
    for disk in vm.disks:
        if disk.name in candidate.options.exclude_disks:
            continue
        if candidate.inventory.account(vm.region, disk.storage_account) is None:
            yield Conflict(
                f"disk {disk.name} of {vm.name} is missing: region {vm.region} has no storage "
                f"account {disk.storage_account}",
                field="vm",
            )


def _networks(candidate: Candidate) -> Iterator[LeewardError]:
    vm = candidate.vm
    for name in dict.fromkeys(nic.network for nic in vm.nics):
        if candidate.inventory.network(vm.region, name) is None:
            yield Conflict(f"region {vm.region} has no network {name} any more", field="vm")


def _network_choices(candidate: Candidate) -> Iterator[LeewardError]:
    vm, options = candidate.vm, candidate.options
    for field, kind, chosen, known in (
        ("target_networks", "interface in network", options.target_networks, "network"),
        ("addresses", "interface", options.addresses, "name"),
    ):
        has = sorted({getattr(nic, known) for nic in vm.nics})
        for name in chosen:
            if name not in has:
                yield InvalidRequest(
                    f"{vm.name} has no {kind} {name} (it has {', '.join(has) or 'none'})",
                    field=field,
                )


ASPECTS: tuple[Aspect, ...] = (
    Aspect(
        part="Regions",
        title="Target region",
        supported="Any other region of the same service.",
        refused="The VM's own region: a replica there would be lost with it.",
        check=_same_region,
    ),
    Aspect(
        part="Regions",
        title="Nodes of the target region",
        supported="At least one worker and one agent enrolled.",
        refused="A target region without either: nothing could keep the replica, or run the VM.",
        check=_target_nodes,
    ),
    Aspect(
        part="Virtual machine",
        title="Number of protections",
        supported="One protection of a VM at a time.",
        refused="A VM that is protected already, that is where another item has failed over to, or "
        "whose name the vault has an item of already.",
        check=_protected_once,
    ),
    Aspect(
        part="Virtual machine",
        title="Host",
        supported="Any host whose agent answers.",
        refused="A VM on a host that does not answer: its writes could not be seen.",
        check=_host,
    ),
    Aspect(
        part="Virtual machine",
        title="Power",
        supported="Running or paused. A protected VM may be stopped, started, reset and rebooted.",
        refused="A VM that is stopped or still being made: no QEMU runs that could tell of writes.",
        check=_power,
    ),
    Aspect(
        part="Virtual machine",
        title="Guest operating system",
        supported="Any; nothing is installed in the guest.",
    ),
    Aspect(
        part="Virtual machine",
        title="Firmware",
        supported="BIOS.",
        refused="UEFI, already when the VM is created: nothing keeps its variables yet.",
    ),
    Aspect(
        part="Virtual machine",
        title="Display",
        supported="None, or VGA (`leeward vm create --display vga`): drills take a picture of it.",
    ),
    Aspect(
        part="Virtual machine",
        title="Size after failover",
        supported=f"As the source's, or --memory (at least {MEMORY_MIB_MIN} MiB) and --vcpus (at "
        f"most {VCPUS_MAX}).",
        refused="More memory than any host of the target region has at all, once the plan is made.",
    ),
    Aspect(
        part="Virtual machine",
        title="Memory and processor state",
        supported="Not replicated: a failed-over VM boots.",
    ),
    Aspect(
        part="Disks",
        title="Choice of disks",
        supported="All, or all but those named by --exclude-disk.",
        refused="A name that the VM has no disk of.",
        check=_disk_choices,
    ),
    Aspect(
        part="Disks",
        title="System disk",
        supported="The first disk; always replicated.",
        refused="A VM without disks; excluding the system disk: nothing could boot.",
        check=_system_disk,
    ),
    Aspect(
        part="Disks",
        title="Storage accounts of the source's disks",
        supported="Any, each disk its own.",
        refused="A disk whose storage account is gone.",
        check=_disk_accounts,
    ),
    Aspect(
        part="Disks",
        title="Format",
        supported="raw and qcow2. After a failover every disk is a qcow2 image. Only with qcow2 do "
        "the records of what changed survive a clean shutdown; a raw disk is compared by digests "
        "then.",
    ),
    Aspect(
        part="Disks",
        title="Content",
        supported="Any: file systems, LVM, RAID, encryption by the guest. The order of writes is "
        "kept across all disks of the VM.",
    ),
    Aspect(
        part="Networks",
        title="Interfaces",
        supported="None to many, with static or dynamic addresses; the MAC is kept.",
        refused="An interface in a network that is gone.",
        check=_networks,
    ),
    Aspect(
        part="Networks",
        title="Choice of networks and addresses",
        supported="Any network of the target region for each of the VM's (--target-network), any "
        "free address for each interface (--address).",
        refused="A network that the VM is not in, or an interface that it has not.",
        check=_network_choices,
    ),
)


def matrix_page() -> str:
    """Return docs/support-matrix.md."""
    lines = [
        "# What can be protected",
        "",
        "`leeward protect` checks all of this first and refuses in one sentence that names every",
        "reason; nothing is made then. This page is printed from those checks:",
        "`.venv/bin/python -m leeward.protection.support > docs/support-matrix.md`",
    ]
    for part in dict.fromkeys(aspect.part for aspect in ASPECTS):
        lines += ["", f"## {part}", "", "| | supported | refused |", "|---|---|---|"]
        lines += [
            f"| {aspect.title} | {aspect.supported} | {aspect.refused or '–'} |"
            for aspect in ASPECTS
            if aspect.part == part
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(matrix_page(), end="")
