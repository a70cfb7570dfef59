"""What `leeward up` asks of the service it has just started, over REST like everything else.

Owns: writing the client's configuration once the service's token is known. The daemons' room lies
below the client's, so that the command line hands it over (daemons.up.Administration).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.client.client import Client
from leeward.client.config import ClientConfig, save_config
from leeward.client.rest import Rest
from leeward.core.errors import NotAllowed, Unavailable


def administer(data: Path) -> Callable[[str], RestAdministration]:
    """Return what makes the administration of the service at a URL, its state under `data`."""
    return lambda url: RestAdministration(url, data)


class RestAdministration:
    """daemons.up.Administration over the REST client."""

    def __init__(self, url: str, data: Path) -> None:
        self._url = url
        self._data = data
        self._token_file = data / "service" / "api-token"
        self._client: Client | None = None

    def is_answering(self) -> bool:
        """Say whether the service answers; once it does, the client's configuration is written."""
        try:
            config = ClientConfig(url=self._url, token=self._token_file.read_text().strip())
        except FileNotFoundError:
            return False
        client = Client(Rest(config, timeout_seconds=2.0, attempts=1))
        try:
            client.regions()
        except (Unavailable, NotAllowed):
            client.close()
            return False
        save_config(self._data, config)
        self._client = client
        return True

    def ensure_region(self, region: str) -> None:
        """The region exists."""
        if region not in {each.name for each in self._asked.regions()}:
            self._asked.create_region(region)

    def ensure_vault(self) -> None:
        """There is a vault to protect VMs in."""
        if not self._asked.vaults():
            self._asked.create_vault(DEFAULT_VAULT)

    def enrolment_token(self, region: str) -> str:
        """Return a one-time token for a node of that region."""
        return self._asked.enrolment_token(region).token

    def online_nodes(self) -> frozenset[tuple[str, str, str]]:
        """Return (role, region, name) of every node the service hears of."""
        return frozenset(
            (node.role, node.region, node.name) for node in self._asked.nodes() if node.is_online
        )

    def close(self) -> None:
        """Release the connections."""
        if self._client is not None:
            self._client.close()

    @property
    def _asked(self) -> Client:
        if self._client is None:
            raise Unavailable(f"the service at {self._url} does not answer yet")
        return self._client
