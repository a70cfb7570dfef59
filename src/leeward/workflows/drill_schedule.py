"""Drills by the clock: which is due, and what keeps it from beginning.

Owns: when a drill begins by itself. Must not know: what one does. A drill that was missed while the
service was away is made up for once, not as often as it was missed; one that cannot begin waits and
says why; none begins while a failover is under way.
"""

from __future__ import annotations

from leeward.core.errors import LeewardError
from leeward.core.units import format_seconds
from leeward.model.drills import Drill
from leeward.observability.log import get_logger
from leeward.protocol.messages import Role
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.consistency import GROUP_MOVES
from leeward.workflows.drill_records import drills_in
from leeward.workflows.drill_verbs import DrillVerbs
from leeward.workflows.monitor import item_target

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


class DrillSchedule:
    """`tick` now and then, from one thread."""

    def __init__(self, bench: Bench, drills: DrillVerbs) -> None:
        self._bench = bench
        self._drills = drills
        self._waits: dict[tuple[str, str], str] = {}

    def tick(self) -> None:
        """Every drill that is due has begun, or waits for a reason that is in its item's events."""
        now_ns = self._bench.clock.now_ns()
        with self._bench.vault.read() as records:
            drills = [stored.value for stored in records.resources.listed(Drill)]
            if any(records.jobs.open_ids(verb=verb) for verb in _FAILOVERS):
                return
        due = [drill for drill in drills if drill.every_seconds and due_ns(drill) <= now_ns]
        for drill in sorted(due, key=due_ns):
            self._begin(drill, (now_ns - due_ns(drill)) / 1e9)

    def _begin(self, drill: Drill, late_seconds: float) -> None:
        place = (drill.vault, drill.name)
        try:
            with self._bench.vault.read() as records:
                if self._is_busy(records, drill):
                    return
            self._drills.begin(drill.vault, drill.name)
        except LeewardError as error:
            self._wait(drill, str(error))
            return
        missed = int(late_seconds // drill.every_seconds)
        reason = self._waits.pop(place, "")
        if missed:
            self._tell(
                drill,
                "drill_missed",
                f"{drill.name}: its drill begins {format_seconds(late_seconds)} late, "
                f"{missed} left out" + (f": {reason}" if reason else ""),
            )

    def _is_busy(self, records: Records, drill: Drill) -> bool:
        """Say whether the item's target region has as many drills as it takes."""
        region = records.items.get(drill.vault, drill.name).item.target_region
        hosts = len(self._bench.answering(records, Role.AGENT, region))
        return len(drills_in(records, region)) >= DRILLS_PER_HOST * max(1, hosts)

    def _wait(self, drill: Drill, reason: str) -> None:
        place = (drill.vault, drill.name)
        if self._waits.get(place) != reason:
            self._waits[place] = reason
            self._tell(drill, "drill_waits", f"{drill.name}: its drill is due and waits: {reason}")

    def _tell(self, drill: Drill, kind: str, sentence: str) -> None:
        log.info(kind, item=drill.name, what=sentence)
        with self._bench.vault.write() as records:
            self._bench.record_event(records, item_target(drill.name), kind, sentence)


def due_ns(drill: Drill) -> int:
    """Return when the drill is due next."""
    return max(drill.since_ns, drill.begun_ns) + drill.every_seconds * 10**9
