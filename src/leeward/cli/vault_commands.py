"""Commands about vaults: `leeward vault`.

Owns: making, showing and deleting them. Must not know: their keys (vault_keys.py), what is in them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.session import Session, command
from leeward.cli.vault_keys import key_app, rebuild
from leeward.core.ids import check_name

app = typer.Typer(help="Vaults: what is protected, and how.")
app.add_typer(key_app, name="key")
command(app, "rebuild")(rebuild)

VaultArgument = Annotated[str, typer.Argument(metavar="VAULT", help="The vault's name.")]


@command(app, "list")
def list_vaults(session: Session) -> None:
    """List the vaults."""
    vaults = session.client.vaults()
    session.show(vaults, lambda: output.print_table(["VAULT"], [[v.name] for v in vaults]))


@command(app, "show")
def show_vault(session: Session, name: VaultArgument) -> None:
    """Show a vault: its policies and items."""
    vault = session.client.vault(name)
    policies, items = session.client.policies(name), session.client.items(name)
    fields = [
        ("vault", vault.name),
        ("encryption key", vault.key_id or "none"),
        ("policies", ", ".join(policy.name for policy in policies)),
        ("items", ", ".join(item.name for item in items)),
    ]
    shown = {"name": vault.name, "key_id": vault.key_id, "policies": policies, "items": items}
    session.show(shown, lambda: output.print_fields(fields))


@command(app, "create")
def create_vault(session: Session, name: VaultArgument) -> None:
    """Create a vault."""
    session.client.create_vault(check_name(name))
    session.show({"name": name}, lambda: output.say(f"vault {name} exists"))


@command(app, "delete")
def delete_vault(session: Session, name: VaultArgument) -> None:
    """Delete an empty vault."""
    session.finish(session.client.delete_vault(name), f"vault {name} is gone")
