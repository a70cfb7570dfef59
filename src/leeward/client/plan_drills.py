"""Drills of recovery plans as typed calls.

Owns: their paths. Must not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from leeward.core.codec import to_plain
from leeward.model.drills import PlanDrill, PlanDrillResult, PlanReadiness
from leeward.model.recovery import Job

if TYPE_CHECKING:
    from leeward.client.rest import Rest


@dataclass(frozen=True, slots=True)
class _Standings:
    items: tuple[PlanReadiness, ...]


@dataclass(frozen=True, slots=True)
class _Results:
    items: tuple[PlanDrillResult, ...]


class PlanDrills:
    """The drills of one service's plans. Every call raises as the service refuses."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def listed(self, vault: str) -> tuple[PlanReadiness, ...]:
        """Return how the vault's plans are drilled, and what that proved."""
        return self._rest.get(_path(vault, "plan-drills")).parse(_Standings).items

    def put(self, drill: PlanDrill) -> PlanDrill:
        """Return the drill, which is as given."""
        wanted = to_plain(drill)
        for kept_by_service in ("name", "vault", "since_ns", "begun_ns"):
            del wanted[kept_by_service]
        path = _path(drill.vault, "plan-drills", drill.name)
        return self._rest.put(path, wanted).parse(PlanDrill)

    def delete(self, vault: str, name: str) -> None:
        """The plan is drilled no more by itself. Raises: NotFound."""
        self._rest.delete(_path(vault, "plan-drills", name))

    def run(self, vault: str, name: str, recovery_point: str = "") -> Job:
        """Return the job that drills the plan now; recovery_point "": as its drill says."""
        body = {"recovery_point": recovery_point}
        return self._rest.post(_path(vault, "recovery-plans", name, "drill"), body).parse(Job)

    def results(self, vault: str, name: str) -> tuple[PlanDrillResult, ...]:
        """Return the evidence of the plan's drills, newest first."""
        path = _path(vault, "recovery-plans", name, "drills")
        return self._rest.get(path).parse(_Results).items


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in ("vaults", *parts))
