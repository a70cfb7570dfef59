"""Drills as typed calls.

Owns: their paths. Must not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from leeward.client.views import ItemView
from leeward.core.codec import to_plain
from leeward.model.drills import Drill, DrillResult
from leeward.model.recovery import Job

if TYPE_CHECKING:
    from leeward.client.rest import Rest


@dataclass(frozen=True, slots=True)
class _Drills:
    items: tuple[Drill, ...]


@dataclass(frozen=True, slots=True)
class _Results:
    items: tuple[DrillResult, ...]


class Drills:
    """The drills of one service. Every call raises as the service refuses."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def listed(self, vault: str) -> tuple[Drill, ...]:
        """Return how the vault's items are drilled."""
        return self._rest.get(f"/vaults/{quote(vault, safe='')}/drills").parse(_Drills).items

    def put(self, drill: Drill) -> Drill:
        """Return the drill, which is as given."""
        wanted = to_plain(drill)
        for kept_by_service in ("name", "vault", "since_ns", "begun_ns"):
            del wanted[kept_by_service]
        return self._rest.put(_drill_path(drill.vault, drill.name), wanted).parse(Drill)

    def delete(self, item: ItemView) -> None:
        """The item is drilled no more by itself. Raises: NotFound."""
        self._rest.delete(_drill_path(item.vault, item.name))

    def run(self, item: ItemView, recovery_point: str = "") -> Job:
        """Return the job that drills the item now; recovery_point "": as its drill says."""
        body = {"recovery_point": recovery_point}
        return self._rest.post(_item_path(item, "drill"), body).parse(Job)

    def results(self, item: ItemView) -> tuple[DrillResult, ...]:
        """Return the evidence of the item's drills, newest first."""
        return self._rest.get(_item_path(item, "drills")).parse(_Results).items

    def screen(self, item: ItemView, job_id: str) -> bytes:
        """Return the picture of the test VM's display (PNG). Raises: NotFound."""
        return self._rest.get(_item_path(item, "drills", job_id, "screen")).body


def _drill_path(vault: str, name: str) -> str:
    return f"/vaults/{quote(vault, safe='')}/drills/{quote(name, safe='')}"


def _item_path(item: ItemView, *parts: str) -> str:
    path = ("vaults", item.vault, "replicated-items", item.name, *parts)
    return "/" + "/".join(quote(part, safe="") for part in path)
