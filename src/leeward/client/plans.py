"""Recovery plans as typed calls.

Owns: their paths. Must not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from leeward.model.plans import PlanApproval, PlanReport, RecoveryPlan
from leeward.model.recovery import Job

if TYPE_CHECKING:
    from leeward.client.rest import Rest


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunView:
    """What a run would do now, and what is against it."""

    plan: str
    target_region: str
    steps: tuple[str, ...]
    obstacles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Page:
    items: tuple[RecoveryPlan, ...]


class Plans:
    """The recovery plans of one service. Every call raises as the service refuses."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def listed(self, vault: str) -> tuple[RecoveryPlan, ...]:
        """Return the vault's plans."""
        return self._rest.get(f"/vaults/{quote(vault, safe='')}/recovery-plans").parse(_Page).items

    def get(self, vault: str, name: str) -> RecoveryPlan:
        """Return a plan. Raises: NotFound."""
        return self._rest.get(_path(vault, name)).parse(RecoveryPlan)

    def put(self, vault: str, name: str, described: dict[str, object]) -> RecoveryPlan:
        """Return the plan, which is as described from now on."""
        return self._rest.put(_path(vault, name), described).parse(RecoveryPlan)

    def delete(self, vault: str, name: str) -> None:
        """The plan is gone."""
        self._rest.delete(_path(vault, name))

    def dry_run(self, vault: str, name: str) -> DryRunView:
        """Return what a run would do now."""
        return self._rest.get(_path(vault, name, "dry-run")).parse(DryRunView)

    def run(self, vault: str, name: str, *, planned: bool, recovery_point: str) -> Job:
        """Return the job that runs the plan."""
        body: dict[str, object] = {"planned": planned, "recovery_point": recovery_point}
        return self._rest.post(_path(vault, name, "run"), body).parse(Job)

    def test(self, vault: str, name: str, *, recovery_point: str) -> Job:
        """Return the job that tests the plan."""
        body: dict[str, object] = {"recovery_point": recovery_point}
        return self._rest.post(_path(vault, name, "test"), body).parse(Job)

    def clean_up_test(self, vault: str, name: str) -> Job:
        """Return the job that removes every trace of the plan's test."""
        return self._rest.post(_path(vault, name, "test-cleanup"), {}).parse(Job)

    def resume(self, vault: str, name: str) -> Job:
        """Return the job in which the plan's failed run goes on."""
        return self._rest.post(_path(vault, name, "resume"), {}).parse(Job)

    def approve(self, vault: str, name: str, *, action: str, comment: str) -> PlanApproval:
        """Return the approval that the plan's run waited for."""
        body: dict[str, object] = {"action": action, "comment": comment}
        return self._rest.post(_path(vault, name, "approve"), body).parse(PlanApproval)

    def report(self, vault: str, name: str) -> PlanReport:
        """Return how the plan's newest run goes or went."""
        return self._rest.get(_path(vault, name, "report")).parse(PlanReport)


def _path(vault: str, name: str, *parts: str) -> str:
    return "/" + "/".join(
        quote(part, safe="") for part in ("vaults", vault, "recovery-plans", name, *parts)
    )
