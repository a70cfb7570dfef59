"""Which vault is meant when none is named.

Owns: that rule. Must not know: what is asked of the vault.
"""

from __future__ import annotations

from leeward.client.client import Client
from leeward.core.errors import InvalidRequest

DEFAULT_VAULT = "default"


def vault_to_protect_in(client: Client, named: str | None, *, may_create: bool) -> str:
    """Return the vault named, else the only one, else the one called "default".

    Where there is none at all, "default" is made if `may_create`. Raises: InvalidRequest when it
    cannot be told.
    """
    if named:
        return named
    vaults = [vault.name for vault in client.vaults()]
    if len(vaults) == 1:
        return vaults[0]
    if DEFAULT_VAULT in vaults or not may_create:
        return DEFAULT_VAULT
    if vaults:
        raise InvalidRequest(
            f"there are several vaults: {', '.join(vaults)}", field="--vault", hint="name one"
        )
    client.create_vault(DEFAULT_VAULT)
    return DEFAULT_VAULT
