"""Commands about replicated items: `leeward item`.

Owns: how an item is shown, and what its state asks of people. Must not know: verbs that move it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.arguments import (
    parse_memory,
    parse_pairs,
)
from leeward.cli.drills import ready
from leeward.cli.policies import rate
from leeward.cli.session import Session, VaultOption, command
from leeward.client.views import ItemView
from leeward.core.errors import InvalidRequest
from leeward.core.units import format_bytes, format_seconds
from leeward.model.recovery import (
    FreezeReport,
    ItemState,
)

app = typer.Typer(help="Replicated items: protected VMs.")

ItemArgument = Annotated[
    str, typer.Argument(metavar="ITEM", help="Name of the replicated item (its source VM's).")
]
_OLD_SECONDS = 10.0
"""What a source said longer ago is shown with its age: it may be otherwise now."""
_MOVED = frozenset(
    {
        ItemState.FAILING_OVER,
        ItemState.FAILED_OVER,
        ItemState.COMMITTED,
        ItemState.REPROTECTING,
    }
)


@command(app, "list")
def list_items(session: Session, vault: VaultOption = None) -> None:
    """List the replicated items."""
    vaults = [vault] if vault else [each.name for each in session.client.vaults()]
    found = tuple(item for name in vaults for item in session.client.items(name))
    session.show(found, lambda: print_items(found))


@command(app, "show")
def show_item(session: Session, name: ItemArgument, vault: VaultOption = None) -> None:
    """Show a replicated item: its target, its health, its RPO."""
    item = session.client.find_item(name, vault)
    health = item.health
    replication, processing, hydration = health.replication, health.processing, health.hydration
    networks = ", ".join(f"{a} → {b}" for a, b in item.target_network.items())
    fields = [
        ("item", f"{item.vault}/{item.name}"),
        ("id", item.id),
        ("state", item.state.value),
        ("problem", item.problem),
        ("RPO", rpo(item)),
        ("source", f"{item.source_region}/{item.source_vm}"),
        ("target", _target(item)),
        ("resource group", item.target_resource_group),
        ("networks", networks),
        *_interfaces(item),
        ("test networks", _tests(item)),
        ("availability set", item.target_availability_set),
        ("disks", ", ".join(_disks(item))),
        ("excluded disks", ", ".join(item.excluded_disks)),
        ("cache account", _cache(item)),
        ("policy", item.policy),
        ("replication", _replication(item)),
        ("replication's problem", _source_problem(item)),
        ("sweep", _amount(replication.sweep_bytes_done, replication.sweep_bytes_total))
        if replication and not replication.initial_done and item.state not in _MOVED
        else ("", ""),
        *_traffic(item),
        ("bandwidth limit", rate(limit) if (limit := _limit_now(item)) else ""),
        ("processing's problem", _unsaid(item, processing.problem if processing else "")),
        ("application-consistent", _freeze(item)),
        ("recovery point", item.recovery_point),
        ("hydrated", _amount(hydration.bytes_done, hydration.bytes_total) if hydration else ""),
        ("hydration's problem", hydration.problem if hydration else ""),
        ("test VM", _rehearsal(item)),
        ("readiness", _readiness(item)),
        ("last drill", item.readiness.problem),
        ("next", _next(item)),
    ]
    session.show(item, lambda: output.print_fields(fields))


def _tests(item: ItemView) -> str:
    """Return where its test VMs' interfaces are; "" for isolated copies, all of them."""
    nics = item.target.nics if item.test_networks and item.target else ()
    places = {nic.name: item.test_networks.get(nic.name, "isolated") for nic in nics}
    addresses = item.test_addresses
    return ", ".join(
        f"{n} → {place} {addresses.get(n, '')}".rstrip() for n, place in places.items()
    )


def _cache(item: ItemView) -> str:
    following = item.next_cache_account
    return f"{item.cache_account}, going over to {following}" if following else item.cache_account


def _target(item: ItemView) -> str:
    name = f"{item.target_region}/{item.target_vm or item.source_vm}"
    vm = item.target
    return f"{name}, {vm.vcpus} vCPU, {vm.memory_mib} MiB" if vm else name


def _interfaces(item: ItemView) -> list[tuple[str, str]]:
    """Return where each of the target's interfaces is and what the host forwards to the first."""
    vm = item.target
    if vm is None:
        return []
    places = [
        (f"interface {nic.name}", f"{nic.network}/{nic.subnet} {nic.address} {nic.mac}")
        for nic in vm.nics
    ]
    return [*places, ("forwarded ports", ", ".join(map(str, vm.forwards)))]


def _disks(item: ItemView) -> list[str]:
    sizes = {disk.name: disk.size_bytes for disk in item.target.disks} if item.target else {}
    return [
        f"{each.disk}: {each.source_account} → {each.target_account}"
        + (f" ({format_bytes(sizes[each.disk])})" if sizes.get(each.disk) else "")
        for each in item.disks
    ]


def _freeze(item: ItemView) -> str:
    report = item.freeze
    if report is None:
        return ""
    when = output.format_time(report.time_ns)
    if report.problem:
        return f"not at {when}: {report.problem}; {report.point_id} is crash-consistent"
    return f"{report.point_id} at {when}; {frozen(report)}"


def frozen(report: FreezeReport) -> str:
    """Return how long the guest stood still for the point."""
    return f"guest frozen for {report.frozen_ms:.0f} ms, {report.ours_ms:.1f} ms of it by us"


def _readiness(item: ItemView) -> str:
    point = item.readiness.recovery_point
    how = f"by {point}" if point else f"`leeward drill run {item.name}` proves it, or not"
    return f"{ready(item.readiness)}, {how}"


def _rehearsal(item: ItemView) -> str:
    if item.rehearsal is None:
        return ""
    test = item.rehearsal
    where = f", in network {test.test_network}" if test.nics else ""
    whose = f", of plan {test.plan}" if test.plan else ""
    whose += f", of group {test.group}" if test.group else ""
    return f"from {test.recovery_point}, on host {test.host}{where}{whose}"


@command(app, "update")
def update_item(
    session: Session,
    name: ItemArgument,
    policy: Annotated[
        str, typer.Option("--policy", help="Replication policy to follow, at once.")
    ] = "",
    target_vm: Annotated[
        str, typer.Option("--target-vm", help="Name of the VM after failover.")
    ] = "",
    resource_group: Annotated[
        str, typer.Option("--target-resource-group", help="An existing one.")
    ] = "",
    vcpus: Annotated[int, typer.Option("--vcpus", min=0, help="After failover.")] = 0,
    memory: Annotated[str, typer.Option("--memory", help="After failover, like 2G.")] = "",
    availability_set: Annotated[
        str, typer.Option("--target-availability-set", help="An existing one, or none.")
    ] = "",
    network: Annotated[
        list[str] | None,
        typer.Option("--target-network", metavar="NIC=NETWORK[/SUBNET]", help="After failover."),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="NIC=IP", help="Address after failover."),
    ] = None,
    test_network: Annotated[
        list[str] | None,
        typer.Option(
            "--test-network",
            metavar="NIC=NETWORK[/SUBNET]",
            help="In its tests and drills: a network set aside for tests, or isolated.",
        ),
    ] = None,
    test_address: Annotated[
        list[str] | None,
        typer.Option("--test-address", metavar="NIC=IP", help="Address there."),
    ] = None,
    cache_account: Annotated[
        str,
        typer.Option(
            "--cache-account",
            help="Storage account of the source's region to send through; alone, nothing is lost.",
        ),
    ] = "",
    vault: VaultOption = None,
) -> None:
    """Change what a protected VM becomes when it fails over, the policy it follows, or its cache.

    leeward item update web-1 --memory 512M --address front=10.10.1.20
    """
    changes: dict[str, object] = {
        "policy": policy,
        "target_resource_group": resource_group,
        "target_vm": target_vm,
        "vcpus": vcpus,
        "memory_mib": parse_memory(memory) if memory else 0,
        "target_availability_set": availability_set,
        "target_networks": parse_pairs("--target-network", network or []),
        "addresses": parse_pairs("--address", address or []),
        "test_networks": parse_pairs("--test-network", test_network or []),
        "test_addresses": parse_pairs("--test-address", test_address or []),
        "cache_account": cache_account,
    }
    if not any(changes.values()):
        raise InvalidRequest(
            "nothing is named that is to change", hint="`leeward item update --help` has what can"
        )
    job = session.client.update_item(session.client.find_item(name, vault), changes)
    session.finish(job, f"{name} is changed")


def _limit_now(item: ItemView) -> int:
    """Return the bytes a second that its policy lets the VM send just now, 0 for any amount."""
    replication = item.health.replication
    return replication.bandwidth_bytes_per_second if replication is not None else 0


def _traffic(item: ItemView) -> list[tuple[str, str]]:
    """Return what its guest has written and what of that has travelled; nothing of a source that
    has been left."""
    replication = item.health.replication
    if replication is None or item.state in _MOVED:
        return []
    return [
        ("written by guest", format_bytes(replication.bytes_written)),
        ("shipped", format_bytes(replication.bytes_shipped)),
    ]


def _source_problem(item: ItemView) -> str:
    """Return what the source says is wrong; "" once the VM has moved: it is history then."""
    replication = item.health.replication
    return "" if replication is None or item.state in _MOVED else _unsaid(item, replication.problem)


def _unsaid(item: ItemView, problem: str) -> str:
    """Return `problem` unless the item's own says it already."""
    return "" if problem in item.problem else problem


def _next(item: ItemView) -> str:
    """Return what a person may do about a failover that is not final yet."""
    if item.state is ItemState.COMMITTED:
        return (
            f"`leeward reprotect {item.name}` replicates it back to {item.source_region}, "
            f"`leeward undo-commit {item.name}` takes the commit back"
        )
    if item.state is not ItemState.FAILED_OVER:
        return ""
    return (
        f"look at the VM, then `leeward commit {item.name}`, or "
        f"`leeward change-recovery-point {item.name} POINT`"
    )


def print_items(items: tuple[ItemView, ...]) -> None:
    """Print items, one a line, then their problems, a sentence each."""
    rows = [
        [
            item.name,
            f"{item.source_region} → {item.target_region}",
            item.state.value,
            _replication(item),
            rpo(item),
            ready(item.readiness),
            item.policy,
        ]
        for item in items
    ]
    columns = ["ITEM", "DIRECTION", "STATE", "REPLICATION", "RPO#", "READINESS", "POLICY"]
    output.print_table(columns, rows)
    troubled = [item for item in items if item.problem]
    if troubled:
        output.say("")
    for item in troubled:
        output.say(f"problem of {item.name}: {item.problem}")


def _replication(item: ItemView) -> str:
    """Return the replication's state, and how old that word is if it is old; "" once the VM has
    moved: what the source said is history."""
    health = item.health
    if health.replication is None or item.state in _MOVED:
        return ""
    age = health.replication_age_seconds or 0.0
    state = health.replication.state.value
    return f"{state}, {format_seconds(age)} ago" if age > _OLD_SECONDS else state


def rpo(item: ItemView) -> str:
    """Return the item's live recovery point objective for people; "" before its first point."""
    seconds = item.health.rpo_seconds
    return "" if seconds is None or seconds < 0 else format_seconds(seconds)


def _amount(done: int, total: int) -> str:
    share = f" ({done / total:.0%})" if total else ""
    return f"{format_bytes(done)} of {format_bytes(total)}{share}"
