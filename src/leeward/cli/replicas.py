"""Commands about replicas, whoever's they are: `leeward storage replicas …`.

Owns: how they are shown, and asking before one is deleted. Must not know: stores; a worker reads
and erases them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.session import NoWaitOption, Session, command
from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.core.units import format_bytes
from leeward.model.recovery import JobState
from leeward.protocol.replicas import Replica, Replicas

app = typer.Typer(help="Replicas in storage accounts, also those that nothing protects any more.")


@command(app, "list")
def list_replicas(
    session: Session,
    account: Annotated[
        str, typer.Argument(metavar="[ACCOUNT]", help="REGION/NAME or NAME. Default: all.")
    ] = "",
) -> None:
    """List what storage accounts have of which item, and what of it is left over.

    A leftover is of an item that this service does not know: `leeward unprotect` without
    --delete-replica leaves its replica, and what it had in the cache account.

    Example: leeward storage replicas list west/websystemasr
    """
    found = read_replicas(session, account)
    session.show(found, lambda: _print(found))


@command(app, "delete")
def delete_replica(
    session: Session,
    item: Annotated[
        str, typer.Argument(metavar="ID|NAME", help="Of a leftover, as `list` has it.")
    ],
    even_if_held: Annotated[
        bool,
        typer.Option(
            "--even-if-held", help="Though readers have pinned it: their hosts are lost for good."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    no_wait: NoWaitOption = False,
) -> None:
    """Delete a replica that nothing protects any more, in all storage accounts.

    Its recovery points are gone then, and what it left in cache accounts. Refused for items that
    are protected, and while something reads it. A replica of another Leeward's item, in an account
    that both use, looks like a leftover, too.

    Example: leeward storage replicas delete item-94f584dd5277
    """
    if session.is_json and not yes:
        raise InvalidRequest("-o json asks nobody", hint="add --yes", field="yes")
    mine = _leftover(read_replicas(session, ""), item)
    held = sum(each.stored.held for each in mine)
    if held and not even_if_held:
        raise Conflict(
            f"{held} readers have pinned {item} or hold a recovery point of it",
            field="even_if_held",
            hint="end exports and test VMs; if their hosts are lost: --even-if-held",
        )
    if not yes:
        _ask(mine)
    item_id = mine[0].stored.item_id
    job = session.client.delete_replica(item_id, even_if_held=even_if_held)
    session.finish(job, f"nothing is stored of {item_id} any more", no_wait=no_wait)


def read_replicas(session: Session, account: str) -> Replicas:
    """Return what the storage accounts have. Raises: NotFound."""
    from leeward.cli.progress import watch

    region, _, name = account.rpartition("/")
    job = session.client.read_replicas(region, name)
    if job is None:
        return Replicas()
    job = watch(session.client, job, quiet=True)
    if job.state is not JobState.SUCCEEDED:
        session.finish(job, "")
    return from_plain(job.result, Replicas)


def _leftover(found: Replicas, item: str) -> list[Replica]:
    """Return what there is of the leftover of that id, else of that name. Raises: NotFound;
    Conflict when it is in use, or there are several."""
    ids = {each.stored.item_id for each in found.replicas if each.stored.item_id == item}
    ids = ids or {each.stored.item_id for each in found.replicas if each.stored.name == item}
    mine = [each for each in found.replicas if each.stored.item_id in ids]
    users = sorted({each.used_by for each in mine if each.used_by})
    left = sorted({each.stored.item_id for each in mine if not each.used_by})
    if not mine:
        unread = f"; not read: {'; '.join(found.problems)}" if found.problems else ""
        raise NotFound(
            f"no storage account has anything of {item}{unread}",
            hint="`leeward storage replicas list`",
        )
    if not left:
        name = users[0].rpartition("/")[2]
        raise Conflict(
            f"{item} is in use: it is the replica of {', '.join(users)}",
            hint=f"`leeward unprotect {name} --delete-replica` ends its protection and deletes it",
        )
    if len(left) > 1:
        raise Conflict(f"there are several of {item}: {', '.join(left)}", hint="name one by its id")
    return [each for each in mine if each.stored.item_id == left[0]]


def _ask(mine: list[Replica]) -> None:
    """Return if the operator wants it gone. Raises: Conflict when it is to stay."""
    output.say(f"of {mine[0].stored.item_id} go:")
    for each in mine:
        points = f", {each.stored.point_count} recovery points" if each.stored.has_catalog else ""
        size = format_bytes(each.stored.bytes)
        output.say(f"  {size} in {each.region}/{each.account}{points}")
    if not typer.confirm("delete all of it?"):
        raise Conflict("nothing was deleted")


def _print(found: Replicas) -> None:
    rows = [
        [
            each.stored.item_id,
            each.stored.name or each.used_by.rpartition("/")[2],
            f"{each.region}/{each.account}",
            "replica" if each.stored.has_catalog or each.stored.has_disks else "cache",
            format_bytes(each.stored.bytes),
            str(each.stored.point_count) if each.stored.has_catalog else "",
            output.format_time(each.stored.newest_time_ns),
            str(each.stored.held or ""),
            each.used_by or "left over",
        ]
        for each in found.replicas
    ]
    columns = ["ID", "ITEM", "ACCOUNT", "WHAT", "SIZE#", "POINTS#", "NEWEST", "HELD#", "USED BY"]
    output.print_table(columns, rows)
    for each in found.replicas:
        if each.stored.problem:
            output.say(
                f"{each.stored.item_id} in {each.region}/{each.account}: {each.stored.problem}"
            )
    for problem in found.problems:
        output.say(f"not read: {problem}")
