"""Network mappings as typed calls.

Owns: their paths. Must not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from leeward.model.recovery import NetworkMapping

if TYPE_CHECKING:
    from leeward.client.rest import Rest


@dataclass(frozen=True, slots=True)
class _Page:
    items: tuple[NetworkMapping, ...]


class Mappings:
    """The network mappings of one service. Every call raises as the service refuses."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def listed(self) -> tuple[NetworkMapping, ...]:
        """Return every mapping, each direction by itself."""
        return self._rest.get("/network-mappings").parse(_Page).items

    def put(self, mapping: NetworkMapping, *, is_one_way: bool = False) -> NetworkMapping:
        """Return the mapping, which is as given from now on; and its reverse, unless one way."""
        path = _path(mapping.source_region, mapping.source_network, mapping.target_region)
        body = {"target_network": mapping.target_network, "one_way": is_one_way}
        return self._rest.put(path, body).parse(NetworkMapping)

    def delete(self, source_region: str, source_network: str, target_region: str) -> None:
        """That direction of the mapping is gone. Raises: NotFound."""
        self._rest.delete(_path(source_region, source_network, target_region))


def _path(*parts: str) -> str:
    return "/network-mappings/" + "/".join(quote(part, safe="") for part in parts)
