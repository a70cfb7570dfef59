"""Commands about recovery points: `leeward recovery-point`.

Owns: how points are listed, also on the day on which only the target's stores are left.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from leeward.cli import output, session
from leeward.cli.items import ItemArgument, frozen
from leeward.cli.output import Format
from leeward.cli.session import (
    DataDirOption,
    NoWaitOption,
    OutputOption,
    Session,
    VaultOption,
    command,
)
from leeward.core.codec import from_plain
from leeward.core.errors import NotFound, Unavailable
from leeward.core.units import format_seconds
from leeward.model.recovery import FreezeReport, FrozenTime, Job, RecoveryPoint

app = typer.Typer(help="Recovery points of a replicated item.")

StoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Target storage account to read from; may be given several times. With it nothing "
        "but these stores is needed: no service, no vault; ITEM is its id then.",
    ),
]


@app.command("list")
def list_points(
    item: ItemArgument,
    vault: VaultOption = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Newest so many; 0 is all of them.")
    ] = 0,
    store: StoreOption = None,
    chosen: OutputOption = Format.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List an item's recovery points, newest first.

    leeward recovery-point list web-1 --limit 10
    leeward recovery-point list item-94f584dd5277 --store file:///srv/west/storage/websystemasr/objects
    """
    points = _in_stores(store, item) if store else _in_service(data_dir, item, vault)
    shown = points[:limit] if limit else points
    if chosen is Format.JSON:
        output.print_json(shown)
        return
    _print(shown)
    if len(shown) < len(points):
        output.say(f"{len(shown)} of {len(points)}")


@command(app, "show")
def show_point(
    asked: Session,
    item: ItemArgument,
    point: Annotated[str, typer.Argument(metavar="POINT", help="The recovery point's id.")],
    vault: VaultOption = None,
) -> None:
    """Show one recovery point."""
    points = asked.client.recovery_points(asked.client.find_item(item, vault))
    found = next((each for each in points if each.id == point), None)
    if found is None:
        raise NotFound(
            f"{item} has no recovery point {point}", hint=f"`leeward recovery-point list {item}`"
        )
    fields = [
        ("recovery point", found.id),
        ("time", output.format_time(found.time_ns)),
        ("consistency", found.consistency.value),
        ("epoch", str(found.epoch)),
        ("cut", str(found.sequence)),
        *([("shared point", found.shared.id)] if found.shared else []),
        *([("guest frozen for", _stood_still(found.frozen))] if found.frozen else []),
    ]
    asked.show(found, lambda: output.print_fields(fields))


@command(app, "create")
def create_point(
    asked: Session, item: ItemArgument, vault: VaultOption = None, no_wait: NoWaitOption = False
) -> None:
    """Make an application-consistent recovery point now.

    The guest's agent freezes its file systems for a moment, with its hook scripts. Where it cannot,
    the point is crash-consistent, and it is said why.

    leeward recovery-point create web-1
    """
    found = asked.client.find_item(item, vault)
    job = asked.client.create_recovery_point(found)
    asked.finish(job, lambda: _made(asked, job), no_wait=no_wait)


def _made(asked: Session, job: Job | None) -> str:
    result = asked.client.job(job.id).result if job is not None else {}
    point = result.get("recovery_point", "the point")
    if result.get("problem"):
        return f"{point} is crash-consistent only: {result['problem']}"
    return f"{point} is application-consistent; {frozen(from_plain(result, FreezeReport))}"


def _stood_still(time: FrozenTime) -> str:
    return f"{time.total_ns / 1e6:.0f} ms, {time.ours_ns / 1e6:.1f} ms of it by us"


def _in_stores(stores: list[str], item: str) -> tuple[RecoveryPoint, ...]:
    from leeward.export.offline import list_points as points_in_stores

    return points_in_stores(stores, item)[::-1]


def _in_service(data_dir: Path | None, item: str, vault: str | None) -> tuple[RecoveryPoint, ...]:
    try:
        with session.connect(data_dir) as client:
            return tuple(client.recovery_points(client.find_item(item, vault)))
    except Unavailable as error:
        raise Unavailable(
            error.message,
            hint=f"{error.hint or 'start it again'}; or name the target's stores with --store",
        ) from error


def _print(points: tuple[RecoveryPoint, ...]) -> None:
    now_ns = time.time_ns()
    rows = [
        [
            point.id,
            output.format_time(point.time_ns),
            format_seconds((now_ns - point.time_ns) / 1e9),
            point.consistency.value
            + (", shared" if point.shared else "")
            + (", quarantined" if point.is_quarantined else ""),
        ]
        for point in points
    ]
    output.print_table(["RECOVERY POINT", "TIME", "AGE#", "CONSISTENCY"], rows)
