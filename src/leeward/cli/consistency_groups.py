"""Commands about consistency groups.

Owns: `leeward consistency-group`.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.session import NoWaitOption, Session, command
from leeward.cli.vaults import DEFAULT_VAULT
from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name
from leeward.core.units import format_seconds
from leeward.model.groups import GroupStanding, SharedPoint

app = typer.Typer(help="Consistency groups: VMs whose recovery points are one moment of all.")

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
SharedPointOption = Annotated[
    str, typer.Option("--recovery-point", help="latest-shared, or a shared point's id.")
]
GroupVaultOption = Annotated[str, typer.Option("--vault", help="Vault the group belongs to.")]


@command(app, "list")
def list_groups(session: Session, vault: GroupVaultOption = DEFAULT_VAULT) -> None:
    """List a vault's consistency groups."""
    found = session.client.groups.listed(vault)
    rows = [
        [
            each.group.name,
            ", ".join(each.group.items),
            str(each.points),
            _age(each.newest),
            each.problem,
        ]
        for each in found
    ]
    headings = ["GROUP", "ITEMS", "SHARED POINTS#", "NEWEST#", "PROBLEM"]
    session.show(found, lambda: output.print_table(headings, rows))


@command(app, "show")
def show_group(
    session: Session, name: GroupArgument, vault: GroupVaultOption = DEFAULT_VAULT
) -> None:
    """Show a consistency group and how it does."""
    found = session.client.groups.get(vault, name)
    session.show(found, lambda: _print_group(found))


@command(app, "create")
def create_group(
    session: Session,
    name: GroupArgument,
    item: Annotated[
        list[str], typer.Option("--item", help="A replicated item. Give it two times or more.")
    ],
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Create a consistency group: its items share a recovery point every so often.

    leeward consistency-group create shop --item db-1 --item web-1
    """
    if any(each.group.name == name for each in session.client.groups.listed(vault)):
        raise InvalidRequest(
            f"there is a consistency group {name} already",
            field="name",
            hint=f"`leeward consistency-group update {name}` changes it",
        )
    job = session.client.groups.put(vault, check_name(name), tuple(item))
    session.finish(job, f"consistency group {vault}/{name} is set", no_wait=no_wait)


@command(app, "update")
def update_group(
    session: Session,
    name: GroupArgument,
    add: Annotated[
        list[str] | None, typer.Option("--add", help="An item that joins. May be repeated.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="An item that leaves. May be repeated.")
    ] = None,
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Change which items are in a consistency group.

    leeward consistency-group update shop --add queue-1 --remove web-1
    """
    items = set(session.client.groups.get(vault, name).group.items)
    strangers = sorted(set(remove or ()) - items)
    if strangers:
        raise InvalidRequest(f"{strangers[0]} is not in {name}", field="--remove")
    wanted = (items | set(add or ())) - set(remove or ())
    job = session.client.groups.put(vault, name, tuple(sorted(wanted)))
    session.finish(job, f"consistency group {vault}/{name} is changed", no_wait=no_wait)


@command(app, "delete")
def delete_group(
    session: Session,
    name: GroupArgument,
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Delete a consistency group; its items stay protected, each by itself."""
    job = session.client.groups.delete(vault, name)
    session.finish(job, f"consistency group {vault}/{name} is gone", no_wait=no_wait)


@command(app, "points")
def list_points(
    session: Session,
    name: GroupArgument,
    vault: GroupVaultOption = DEFAULT_VAULT,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many, newest first.")] = 20,
) -> None:
    """List the recovery points that all items of the group share, newest first."""
    points = session.client.groups.points(vault, name)
    shown = points[:limit]
    rows = [
        [point.id, output.format_time(point.time_ns), _age(point), str(len(point.points))]
        for point in shown
    ]

    def table() -> None:
        output.print_table(["SHARED POINT", "TIME", "AGE#", "ITEMS#"], rows)
        if len(shown) < len(points):
            output.say(f"{len(shown)} of {len(points)}")

    session.show(shown, table)


@command(app, "failover")
def fail_over(
    session: Session,
    name: GroupArgument,
    recovery_point: SharedPointOption = "latest-shared",
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Start all the group's VMs in their target region, at one moment of all of them.

    leeward consistency-group failover shop --recovery-point latest-shared
    """
    job = session.client.groups.failover(vault, name, recovery_point)
    session.finish(job, f"all items of {name} have failed over", no_wait=no_wait)


@command(app, "change-recovery-point")
def change_point(
    session: Session,
    name: GroupArgument,
    recovery_point: Annotated[
        str, typer.Argument(metavar="POINT", help="latest-shared, or a shared point's id.")
    ],
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Start all VMs of a failed-over group again from another shared point, until they are
    committed.

    leeward consistency-group change-recovery-point shop sp-0123456789ab
    """
    job = session.client.groups.change_point(vault, name, recovery_point)
    session.finish(job, f"all items of {name} run from {recovery_point}", no_wait=no_wait)


@command(app, "test-failover")
def start_test(
    session: Session,
    name: GroupArgument,
    recovery_point: SharedPointOption = "latest-shared",
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Boot test VMs of all the group's items at one moment of all; replication goes on.

    They share isolated copies of their networks, on one host.

    leeward consistency-group test-failover shop
    """
    job = session.client.groups.test_failover(vault, name, recovery_point)

    def done() -> str:
        result = session.client.job(job.id).result
        return (
            f"test VMs of {name} run on host {result.get('host')} of {result.get('region')}, "
            f"isolated, from {result.get('recovery_point')}\n"
            f"next: `leeward consistency-group test-failover-cleanup {name}`"
        )

    session.finish(job, done, no_wait=no_wait)


@command(app, "test-failover-cleanup")
def clean_up_test(
    session: Session,
    name: GroupArgument,
    vault: GroupVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Remove every trace of a group's test: VMs, disks, networks."""
    job = session.client.groups.clean_up_test(vault, name)
    session.finish(job, f"nothing of the test of group {name} is left", no_wait=no_wait)


def _print_group(found: GroupStanding) -> None:
    output.print_fields(
        [
            ("consistency group", f"{found.group.vault}/{found.group.name}"),
            ("items", ", ".join(found.group.items)),
            ("shares a point every", format_seconds(found.interval_seconds)),
            ("shared points", str(found.points)),
            ("newest", f"{found.newest.id}, {_age(found.newest)} old" if found.newest else "none"),
            ("attempts since the service started", f"{found.attempts}, {found.voided} void"),
            ("problem", found.problem or "none"),
        ]
    )


def _age(point: SharedPoint | None) -> str:
    return format_seconds((time.time_ns() - point.time_ns) / 1e9) if point else ""
