"""What the vault keeps of drills: how each is drilled, its results, newest first, with pictures.

Owns: how many are kept, and that they go with their item; which drills are under way, and that they
give way to failovers. Must not know: how a drill is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from leeward.core.codec import from_plain
from leeward.model.drills import (
    RESULTS_KEPT,
    Drill,
    DrillResult,
    DrillScreen,
    PlanDrill,
    PlanDrillResult,
)
from leeward.model.recovery import Rehearsal
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.engine import Json

DRILL = "item.drill"
PLAN_DRILL = "recovery-plan.drill"
CUT_SHORT = "it was cut short"
CLEAN_UP_SECONDS = 60.0
GIVE_WAY_SECONDS = 5.0
_LOOK_SECONDS = 0.1
D = TypeVar("D", Drill, PlanDrill)


def keep_drill(records: Records, drill: D, now_ns: int) -> D:
    """Return the drill as it is kept from now on: its schedule counts anew."""
    found = records.resources.find(type(drill), drill.vault, drill.name)
    kept = replace(drill, since_ns=now_ns, begun_ns=found.value.begun_ns if found else 0)
    if found is None:
        records.resources.insert(kept, scope=drill.vault, name=drill.name)
    else:
        records.resources.update(found, value=kept)
    return kept


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


def forget_test_vm(records: Records, item_id: str, rehearsal: Rehearsal) -> None:
    """The item has that test VM no more."""
    record = records.items.find(item_id)
    if record is not None and record.item.rehearsal == rehearsal:
        records.items.update(replace(record, item=replace(record.item, rehearsal=None)))


def plan_results_of(records: Records, target: str) -> list[PlanDrillResult]:
    """Return a plan's drills, newest first. target: the plan's."""
    found = [stored.value for stored in records.resources.listed(PlanDrillResult, target)]
    return sorted(found, key=lambda result: result.verdict.began_ns, reverse=True)


def keep_plan_result(records: Records, target: str, result: PlanDrillResult) -> None:
    """The result is kept, and none but the plan's newest."""
    records.resources.insert(result, scope=target, name=result.verdict.job_id)
    for old in plan_results_of(records, target)[RESULTS_KEPT:]:
        records.resources.delete(PlanDrillResult, target, old.verdict.job_id)


def forget_plan_drills(records: Records, target: str, vault: str, name: str) -> None:
    """Nothing is left of the plan's drills; what they found of its VMs stays with those."""
    records.resources.delete(PlanDrill, vault, name)
    for result in plan_results_of(records, target):
        records.resources.delete(PlanDrillResult, target, result.verdict.job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Of a drill's arguments: where its test VM is, and of which item."""

    item_id: str
    rehearsal: Rehearsal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Of the arguments of a plan's drill."""

    tests: tuple[_Place, ...]


def drills_in(records: Records, region: str) -> dict[str, str]:
    """Return the hosts of the region's drills under way, by job."""
    return {job_id: place.rehearsal.host for job_id, place in _places(records, region)}


def drill_memory(records: Records, region: str) -> dict[str, int]:
    """Return MiB of memory by host that the region's drills give back when they are cut short, at
    most: a test VM may not have touched all of its own."""
    found: Counter[str] = Counter()
    for _, place in _places(records, region):
        record = records.items.find(place.item_id)
        found[place.rehearsal.host] += record.target_vm.memory_mib if record else 0
    return found


def _places(records: Records, region: str) -> Iterator[tuple[str, _Place]]:
    """Yield every test VM of the region's drills under way, with its job."""
    for job_id in records.jobs.open_ids(verb=DRILL):
        place = from_plain(records.jobs.record(job_id).arguments, _Place)
        if place.rehearsal.region == region:
            yield job_id, place
    for job_id in records.jobs.open_ids(verb=PLAN_DRILL):
        for place in from_plain(records.jobs.record(job_id).arguments, _Places).tests:
            if place.rehearsal.region == region:
                yield job_id, place


def _open_drills(records: Records) -> list[str]:
    return [job for verb in (DRILL, PLAN_DRILL) for job in records.jobs.open_ids(verb=verb)]


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
                if not set(drills).intersection(_open_drills(records)):
                    break
            listener.wait(_LOOK_SECONDS)
    return {}
