"""What the vault keeps of drills: their results, newest first, and pictures beside them.

Owns: how many are kept, and that they go with their item; which drills are under way, and that they
give way to failovers. Must not know: how a drill is run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from leeward.core.codec import from_plain
from leeward.model.drills import RESULTS_KEPT, Drill, DrillResult, DrillScreen
from leeward.model.recovery import Rehearsal
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.engine import Json

DRILL = "item.drill"
GIVE_WAY_SECONDS = 5.0
_LOOK_SECONDS = 0.1


def keep_result(records: Records, item_id: str, result: DrillResult, screen: str) -> None:
    """The result is kept, its picture beside it, and none but the item's newest."""
    job_id = result.verdict.job_id
    records.resources.insert(result, scope=item_id, name=job_id)
    if screen:
        records.resources.insert(DrillScreen(png=screen), scope=item_id, name=job_id)
    for old in results_of(records, item_id)[RESULTS_KEPT:]:
        for kind in (DrillResult, DrillScreen):
            records.resources.delete(kind, item_id, old.verdict.job_id)


def results_of(records: Records, item_id: str) -> list[DrillResult]:
    """Return the item's drills, newest first."""
    found = [stored.value for stored in records.resources.listed(DrillResult, item_id)]
    return sorted(found, key=lambda result: result.verdict.began_ns, reverse=True)


def forget_drills(records: Records, item_id: str, vault: str, name: str) -> None:
    """Nothing is left of the item's drills: neither their schedule nor their evidence."""
    records.resources.delete(Drill, vault, name)
    for result in results_of(records, item_id):
        for kind in (DrillResult, DrillScreen):
            records.resources.delete(kind, item_id, result.verdict.job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Of a drill's arguments: where its test VM is, and of which item."""

    item_id: str
    rehearsal: Rehearsal


def drills_in(records: Records, region: str) -> dict[str, str]:
    """Return the hosts of the region's drills under way, by job."""
    return {job_id: place.rehearsal.host for job_id, place in _places(records, region).items()}


def drill_memory(records: Records, region: str) -> dict[str, int]:
    """Return MiB of memory by host that the region's drills give back when they are cut short, at
    most: a test VM may not have touched all of its own."""
    found: Counter[str] = Counter()
    for place in _places(records, region).values():
        record = records.items.find(place.item_id)
        found[place.rehearsal.host] += record.target_vm.memory_mib if record else 0
    return found


def _places(records: Records, region: str) -> dict[str, _Place]:
    found = {}
    for job_id in records.jobs.open_ids(verb=DRILL):
        place = from_plain(records.jobs.record(job_id).arguments, _Place)
        if place.rehearsal.region == region:
            found[job_id] = place
    return found


def cut_drills_short(records: Records, *, region: str, host: str) -> tuple[str, ...]:
    """Return the drills on that host, which end at their next step: a VM that fails over there may
    need the memory of their test VMs."""
    drills = tuple(job for job, at in drills_in(records, region).items() if at == host)
    for job_id in drills:
        records.jobs.request_cancel(job_id)
    return drills


def wait_drills(bench: Bench, drills: tuple[str, ...]) -> Json:
    """Return when those drills have ended, or after GIVE_WAY_SECONDS: nobody waits longer for a
    failover."""
    deadline = bench.clock.monotonic() + GIVE_WAY_SECONDS
    with bench.signals.listen(DRILL) as listener:
        while bench.clock.monotonic() < deadline:
            with bench.vault.read() as records:
                if not set(drills).intersection(records.jobs.open_ids(verb=DRILL)):
                    break
            listener.wait(_LOOK_SECONDS)
    return {}
