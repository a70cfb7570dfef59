"""Commands about what is stored of replicated items.

Owns: `leeward storage …`. Must not know: stores; the items' workers read them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.replicas import app as replicas_app
from leeward.cli.session import Session, VaultOption, command
from leeward.client.views import ItemView
from leeward.core.errors import NotFound
from leeward.core.units import format_bytes
from leeward.model.recovery import Job, JobState

app = typer.Typer(help="What is stored of replicated items.")
app.add_typer(replicas_app, name="replicas", no_args_is_help=True)

TargetArgument = Annotated[
    str,
    typer.Argument(metavar="ITEM|ACCOUNT", help="A replicated item, or a target storage account."),
]


@command(app, "scrub")
def scrub(
    session: Session,
    target: TargetArgument,
    vault: VaultOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is damaged; change nothing.")
    ] = False,
) -> None:
    """Read and verify everything stored; quarantine and heal what is damaged.

    Workers do it by themselves once a day. Recovery points that touch something damaged are
    quarantined: nothing fails over to them. If the newest state is damaged the source sends
    what was lost of it anew.

    Example: leeward storage scrub web-1 --dry-run
    """
    items = items_of(session, target, vault)
    jobs = [session.client.scrub(item, dry_run=dry_run) for item in items]
    ended = [job for job in jobs if job is not None]
    for index, job in enumerate(ended):
        ended[index] = _watched(session, job)
    session.show([job.result for job in ended], lambda: _print(items, ended))
    for job in ended:
        if job.state is not JobState.SUCCEEDED:
            session.finish(job, "")


@command(app, "usage")
def usage(session: Session, target: TargetArgument, vault: VaultOption = None) -> None:
    """Show what is stored, how much of it is live, and how much can be reclaimed.

    STORED is what lies in the target's stores: data and maps. CATALOG, the list of cuts and
    recovery points, comes on top; its old records are deleted as new ones come. LIVE and DEAD count
    data before compression, in stretches between recovery points that hold more than one cut; "-"
    while there is none.
    FREEABLE is what a compaction would free of DEAD; GARBAGE is deleted once nobody can be reading
    it.

    Example: leeward storage usage web-1
    """
    _compact(session, items_of(session, target, vault), dry_run=True)


@command(app, "compact")
def compact(
    session: Session,
    target: TargetArgument,
    vault: VaultOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what could be reclaimed; change nothing.")
    ] = False,
) -> None:
    """Reclaim the space of dropped recovery points now, all that can be.

    Workers do it by themselves as soon as it is worth it. What was needed until now is deleted ten
    minutes later, by the worker or by the next compaction, and not while a reader holds it.

    Example: leeward storage compact web-1
    """
    _compact(session, items_of(session, target, vault), dry_run=dry_run)


def _compact(session: Session, items: list[ItemView], *, dry_run: bool) -> None:
    jobs = [session.client.compact(item, dry_run=dry_run) for item in items]
    ended = [_watched(session, job) for job in jobs if job is not None]
    session.show([job.result for job in ended], lambda: _print_space(items, ended))
    for job in ended:
        if job.state is not JobState.SUCCEEDED:
            session.finish(job, "")


def items_of(session: Session, target: str, vault: str | None) -> list[ItemView]:
    """Return the item of that name, else the items with replicas in the account of that name.

    Raises: NotFound.
    """
    try:
        return [session.client.find_item(target, vault)]
    except NotFound:
        region, _, name = target.rpartition("/")
        found = [
            item
            for each in session.client.vaults()
            for item in session.client.items(each.name)
            if region in ("", item.target_region)
            and any(mapping.target_account == name for mapping in item.all_disks)
        ]
        if not found:
            raise NotFound(
                f"there is no replicated item and no target storage account {target}",
                hint="`leeward item list`, `leeward storage-account list`",
            ) from None
        return found


def _watched(session: Session, job: Job) -> Job:
    from leeward.cli.progress import watch

    return watch(session.client, job, quiet=session.is_json)


def _print(items: list[ItemView], jobs: list[Job]) -> None:
    rows = [
        [
            item.name,
            str(job.result.get("objects", "")),
            format_bytes(int(str(job.result.get("bytes", 0)))),
            str(len(_texts(job, "damaged"))),
            str(len(_texts(job, "quarantined"))),
            "yes" if job.result.get("heals") else "",
        ]
        for item, job in zip(items, jobs, strict=True)
    ]
    columns = ["ITEM", "OBJECTS#", "READ#", "DAMAGED#", "QUARANTINED#", "HEALS"]
    output.print_table(columns, rows)
    for job in jobs:
        for sentence in _texts(job, "damaged"):
            output.say(f"damaged: {sentence}")
        if points := _texts(job, "quarantined"):
            output.say(f"quarantined: {points[0]} to {points[-1]}")


_SPACE = {
    "STORED": "stored_bytes",
    "CATALOG": "catalog_bytes",
    "LIVE": "live_bytes",
    "DEAD": "dead_bytes",
    "FREEABLE": "reclaimable_bytes",
    "GARBAGE": "garbage_bytes",
    "REWRITTEN": "rewritten_bytes",
    "FREED": "freed_bytes",
}


_COUNTED = ("LIVE", "DEAD", "FREEABLE")
"""Counted by reading tables, and only where something may be dead."""


def _print_space(items: list[ItemView], jobs: list[Job]) -> None:
    """Print a line for each item and, if there are several, one for all of them."""
    rows = [
        (item.name, [_bytes(job, key) for key in _SPACE.values()])
        for item, job in zip(items, jobs, strict=True)
    ]
    if len(rows) > 1:
        rows.append(
            ("all", [sum(column) for column in zip(*(row for _, row in rows), strict=True)])
        )
    output.print_table(
        ["ITEM", *(f"{name}#" for name in _SPACE)],
        [[name, *_amounts(row)] for name, row in rows],
    )
    if any(job.result.get("pins") for job in jobs):
        output.say("readers hold some of the garbage: exports, test failovers, VMs not yet local")


def _amounts(row: list[int]) -> list[str]:
    """Return the row for people; what has not been counted at all yet is no amount."""
    found = dict(zip(_SPACE, row, strict=True))
    is_counted = any(found[name] for name in _COUNTED)
    return [
        "" if name in _COUNTED and not is_counted else format_bytes(found[name]) for name in found
    ]


def _bytes(job: Job, key: str) -> int:
    return int(str(job.result.get(key, 0)))


def _texts(job: Job, key: str) -> list[str]:
    value = job.result.get(key, [])
    return [str(each) for each in value] if isinstance(value, list | tuple) else []
