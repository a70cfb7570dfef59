"""What happened, for people who look later: `leeward event list`.

Owns: how events are printed. Must not know: who records them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.session import Session, command

app = typer.Typer(help="Events: what happened, one sentence each.")


@command(app, "list")
def list_events(
    session: Session,
    target: Annotated[
        str, typer.Option("--target", metavar="KIND/NAME", help="Only to this, like item/web-1.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Newest so many.")] = 20,
) -> None:
    """List what happened, newest first.

    leeward event list --target item/web-1
    """
    events = session.client.events(limit=limit, target=target)
    rows = [
        [output.format_time(event.time_ns), event.target, event.kind, event.message]
        for event in events
    ]
    columns = ["TIME", "TARGET", "KIND", "WHAT"]
    session.show(events, lambda: output.print_table(columns, rows))
