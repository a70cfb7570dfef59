"""Which recovery points the items of a plan go to when it asks for shared ones.

Owns: that items of one consistency group go to one shared point, in whichever groups of the plan
they are. Must not know: how a plan is run. Items of no consistency group have no part in it: they
go to their newest point.
"""

from __future__ import annotations

from leeward.core.errors import InvalidRequest
from leeward.failover.shared import LATEST_SHARED
from leeward.model.groups import ConsistencyGroup
from leeward.model.plans import RecoveryPlan
from leeward.recovery_plans.check import DONE, plan_items
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import members_of
from leeward.workflows.shared_choice import SharedChoice


class PlanPoints:
    """Chooses them."""

    def __init__(self, bench: Bench, choice: SharedChoice) -> None:
        self._bench = bench
        self._choice = choice

    def wait_chosen(self, plan: RecoveryPlan, wanted: str, *, is_test: bool) -> dict[str, str]:
        """As `choose`, once what the groups' members have told of is listed."""
        with self._bench.vault.read() as records:
            groups = _groups(records, plan) if wanted == LATEST_SHARED else []
        for group in groups:
            self._choice.wait_newest(group, wanted)
        with self._bench.vault.read() as records:
            return self.choose(records, plan, wanted, is_test=is_test)

    def choose(
        self, records: Records, plan: RecoveryPlan, wanted: str, *, is_test: bool
    ) -> dict[str, str]:
        """Return the points of the plan's items that are in consistency groups, by name; {} unless
        shared points are wanted. is_test: what has a test VM of the plan decides for its group,
        else what has failed over does.

        Raises: InvalidRequest when none of them is in a group; NotFound, Conflict when a group has
        no shared point that fits.
        """
        found: dict[str, str] = {}
        if wanted != LATEST_SHARED:
            return found
        groups = _groups(records, plan)
        if not groups:
            raise InvalidRequest(
                f"recovery_point: no item of plan {plan.name} is in a consistency group",
                field="recovery_point",
                hint="choose another one, or `leeward consistency-group create` makes one",
            )
        names = set(plan_items(plan))
        for group in groups:
            members = members_of(records, group)
            mine = [record.item for record in members if record.item.name in names]
            if not is_test and all(item.state in DONE for item in mine):
                continue
            begun = {
                item.id: item.rehearsal.recovery_point
                for item in mine
                if is_test and item.rehearsal is not None and item.rehearsal.plan == plan.name
            }
            point = self._choice.choose(records, group, wanted, begun=begun)
            found.update({item.name: point.points[item.id] for item in mine})
        return found


def _groups(records: Records, plan: RecoveryPlan) -> list[ConsistencyGroup]:
    """Return the consistency groups that items of the plan are in."""
    names = set(plan_items(plan))
    stored = records.resources.listed(ConsistencyGroup, plan.vault)
    return [each.value for each in stored if names.intersection(each.value.items)]
