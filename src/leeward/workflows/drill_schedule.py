"""Drills by the clock, of items and of recovery plans: which is due, and what keeps it from
beginning.

Owns: when a drill begins by itself. Must not know: what one does. A drill that was missed while the
service was away is made up for once, not as often as it was missed; one that cannot begin waits and
says why; none begins while a failover is under way.
"""

from __future__ import annotations

import re

from leeward.core.errors import LeewardError
from leeward.core.units import format_seconds
from leeward.model.drills import Drill, PlanDrill
from leeward.observability.log import get_logger
from leeward.protocol.messages import Role
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import GROUP_MOVES
from leeward.workflows.drill_records import drills_in
from leeward.workflows.drill_verbs import DrillVerbs
from leeward.workflows.monitor import item_target
from leeward.workflows.plan_drills import PlanDrills, region_of
from leeward.workflows.plan_jobs import plan_target

log = get_logger()

DRILLS_PER_HOST = 1
"""Begun by the clock at a time, of each host of a region that answers."""
_FAILOVERS = (
    "item.failover",
    "item.planned-failover",
    "item.change-recovery-point",
    "recovery-plan.run",
    *GROUP_MOVES,
)
AnyDrill = Drill | PlanDrill


class DrillSchedule:
    """`tick` now and then, from one thread."""

    def __init__(self, bench: Bench, drills: DrillVerbs, plan_drills: PlanDrills) -> None:
        self._bench = bench
        self._drills = drills
        self._plan_drills = plan_drills
        self._waits: dict[str, str] = {}

    def tick(self) -> None:
        """Every drill that is due has begun, or waits for a reason that is in the events of its
        item or plan."""
        now_ns = self._bench.clock.now_ns()
        with self._bench.vault.read() as records:
            drills: list[AnyDrill] = [s.value for s in records.resources.listed(Drill)]
            drills += [stored.value for stored in records.resources.listed(PlanDrill)]
            if any(records.jobs.open_ids(verb=verb) for verb in _FAILOVERS):
                return
        due = [drill for drill in drills if drill.every_seconds and due_ns(drill) <= now_ns]
        for drill in sorted(due, key=due_ns):
            self._begin(drill, (now_ns - due_ns(drill)) / 1e9)

    def _begin(self, drill: AnyDrill, late_seconds: float) -> None:
        try:
            with self._bench.vault.read() as records:
                if self._is_busy(records, drill):
                    return
            begin = self._plan_drills.begin if _is_of_plan(drill) else self._drills.begin
            begin(drill.vault, drill.name)
        except LeewardError as error:
            self._wait(drill, str(error))
            return
        missed = int(late_seconds // drill.every_seconds)
        reason = self._waits.pop(_key(drill), "")
        if missed:
            self._tell(
                drill,
                "drill_missed",
                f"{_name(drill)}: its drill begins {format_seconds(late_seconds)} late, "
                f"{missed} left out" + (f": {reason}" if reason else ""),
            )

    def _is_busy(self, records: Records, drill: AnyDrill) -> bool:
        """Say whether the region that it is drilled in has as many drills as it takes."""
        if isinstance(drill, PlanDrill):
            region = region_of(records, drill)
        else:
            region = records.items.get(drill.vault, drill.name).item.target_region
        hosts = len(self._bench.answering(records, Role.AGENT, region))
        return len(drills_in(records, region)) >= DRILLS_PER_HOST * max(1, hosts)

    def _wait(self, drill: AnyDrill, reason: str) -> None:
        if _sense(self._waits.get(_key(drill), "")) != _sense(reason):
            self._waits[_key(drill)] = reason
            sentence = f"{_name(drill)}: its drill is due and waits: {reason}"
            self._tell(drill, "drill_waits", sentence)

    def _tell(self, drill: AnyDrill, kind: str, sentence: str) -> None:
        log.info(kind, drilled=_name(drill), what=sentence)
        target = item_target(drill.name)
        if _is_of_plan(drill):
            target = plan_target(drill.vault, drill.name)
        with self._bench.vault.write() as records:
            self._bench.record_event(records, target, kind, sentence)


def due_ns(drill: AnyDrill) -> int:
    """Return when the drill is due next."""
    return max(drill.since_ns, drill.begun_ns) + drill.every_seconds * 10**9


def _sense(reason: str) -> str:
    """Return the reason without its figures: memory available differs at every look, and is no news
    each time."""
    return re.sub(r"\d+", "", reason)


def _is_of_plan(drill: AnyDrill) -> bool:
    return isinstance(drill, PlanDrill)


def _name(drill: AnyDrill) -> str:
    return f"plan {drill.name}" if _is_of_plan(drill) else drill.name


def _key(drill: AnyDrill) -> str:
    return f"{drill.vault}/{_name(drill)}"
