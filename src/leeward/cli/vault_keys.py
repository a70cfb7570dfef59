"""Commands about a vault's encryption keys, and making a vault anew.

Owns: `leeward vault key …`, `leeward vault rebuild`. Must not know: ciphers. Keys are made and kept
in files; the service hears of ids only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.output import Format
from leeward.cli.session import NoWaitOption, OutputOption, Session, command

key_app = typer.Typer(
    help="Encryption keys: made into a file, given to agents and workers, used by id."
)

VaultArgument = Annotated[str, typer.Argument(metavar="VAULT", help="The vault's name.")]


@key_app.command("new")
def new_key(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Key file; made, or added to if it exists."),
    ],
    format_: OutputOption = Format.TABLE,
) -> None:
    """Add a new key to a key file and print its id.

    Give the file to every agent and worker: LEEWARD_KEY_FILE names it there. Keep a copy somewhere
    else: without the key nobody can read what was encrypted with it.

    Example: leeward vault key new /etc/leeward/keys
    """
    from leeward.replica.host_keys import add_new_key

    key_id = add_new_key(file.absolute(), "made by `leeward vault key new`")
    if format_ is Format.JSON:
        output.print_json({"key_id": key_id, "file": str(file.absolute())})
    else:
        output.say(key_id)


@command(key_app, "list")
def list_keys(session: Session, vault: VaultArgument) -> None:
    """List the keys that nodes have, and which one the vault uses."""
    keys = session.client.vault_keys(vault)
    rows = [
        [
            key.key_id,
            "yes" if key.is_current else "",
            ", ".join(key.nodes),
            ", ".join(key.missing) if key.is_current else "",
        ]
        for key in keys
    ]
    session.show(keys, lambda: output.print_table(["KEY", "IN USE", "ON", "MISSING ON"], rows))


@command(key_app, "use")
def use_key(
    session: Session,
    vault: VaultArgument,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    no_wait: NoWaitOption = False,
) -> None:
    """Encrypt everything new in the vault with another key.

    What is stored stays as it is, and readable as long as its key stays in the key files.

    Example: leeward vault key use default 1f0c9d3a52b7e846
    """
    job = session.client.use_vault_key(vault, key_id)
    session.finish(job, f"vault {vault} encrypts with {key_id}", no_wait=no_wait)


def rebuild(
    session: Session,
    stores: Annotated[
        list[str],
        typer.Option("--from", metavar="URL", help="A target storage account's object store."),
    ],
    region: Annotated[
        str, typer.Option("--region", help="Region whose worker reads them. Default: any.")
    ] = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Make vaults anew from what target storage accounts hold.

    For the day on which the service's database is lost: items, policies, target networks and
    recovery points are read from the stores. Each item is shown as degraded, ready to fail over.

    Example: leeward vault rebuild --from file:///srv/west/objects
    """
    job = session.client.rebuild_vaults(stores, region=region)
    session.finish(job, "the vaults are there: `leeward item list`", no_wait=no_wait)
