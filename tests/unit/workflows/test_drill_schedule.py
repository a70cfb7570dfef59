"""Drills by the clock: due once, made up for once, never in a failover's way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict
from leeward.model.drills import Drill
from leeward.model.recovery import ItemState, Job, JobState
from leeward.protocol.messages import NodeStatus, Verb
from leeward.workflows.drill_records import cut_drills_short
from leeward.workflows.drill_schedule import DrillSchedule

HOUR = 3600


class Hours:
    """The service's clock, put forward by hand."""

    def __init__(self) -> None:
        self.hours = 1000.0

    def now_ns(self) -> int:
        return int(self.hours * HOUR * 1e9)

    def monotonic(self) -> float:
        return self.hours * HOUR


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected."""
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


@pytest.fixture
def hours(made: Site, monkeypatch: pytest.MonkeyPatch) -> Hours:
    """Give the clock; web-1 is to be drilled every hour from its present time on."""
    hours = Hours()
    clock = made.service.bench.clock
    monkeypatch.setattr(type(clock), "now_ns", lambda self: hours.now_ns())
    made.service.drills.put(Drill(name="web-1", vault="main", every_seconds=HOUR))
    return hours


def tick(made: Site) -> list[Job]:
    """Return the drills under way after a tick of a service that has just been started."""
    schedule = DrillSchedule(made.service.bench, made.service.drills, made.service.plan_drills)
    schedule.tick()
    return drills(made)


def drills(made: Site) -> list[Job]:
    with made.vault.read() as records:
        return [records.jobs.get(job_id) for job_id in records.jobs.open_ids(verb="item.drill")]


def events(made: Site, kind: str) -> list[str]:
    with made.vault.read() as records:
        return [e.message for e in records.events.listed(limit=50) if e.kind == kind]


def test_it_is_due_once_in_its_time(made: Site, hours: Hours) -> None:
    assert tick(made) == []
    hours.hours += 1
    (job,) = tick(made)
    assert tick(made) == [job], "while it runs there is no second one"
    assert made.run(job).state is JobState.SUCCEEDED
    assert tick(made) == []
    hours.hours += 0.9
    assert tick(made) == []
    hours.hours += 0.1
    assert len(tick(made)) == 1
    assert events(made, "drill_missed") == []


def test_what_was_missed_is_made_up_for_once(made: Site, hours: Hours) -> None:
    hours.hours += 4.5
    (job,) = tick(made)
    assert made.run(job).state is JobState.SUCCEEDED
    assert tick(made) == []
    (told,) = events(made, "drill_missed")
    assert "3 left out" in told


def test_one_that_cannot_begin_says_why_once_and_begins_later(made: Site, hours: Hours) -> None:
    test_vm = made.run(made.service.rehearsals.start("main", "web-1"))
    assert test_vm.state is JobState.SUCCEEDED
    hours.hours += 1
    schedule = DrillSchedule(made.service.bench, made.service.drills, made.service.plan_drills)
    schedule.tick()
    schedule.tick()
    (told,) = events(made, "drill_waits")
    assert "has a test VM already" in told
    made.run(made.service.rehearsals.clean_up("main", "web-1"))
    schedule.tick()
    assert len(drills(made)) == 1


def test_a_reason_that_differs_by_its_figures_only_is_told_once(
    made: Site, hours: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours.hours += 1
    schedule = DrillSchedule(made.service.bench, made.service.drills, made.service.plan_drills)
    for available in (3, 5, 4):
        monkeypatch.setattr(
            made.service.bench.live, "memory_available_mib", lambda _, mib=available: mib
        )
        schedule.tick()
    (told,) = events(made, "drill_waits")
    assert "of memory" in told


def test_without_a_schedule_nothing_begins(made: Site, hours: Hours) -> None:
    made.service.drills.put(Drill(name="web-1", vault="main"))
    hours.hours += 100
    assert tick(made) == []


def test_none_begins_while_a_failover_is_under_way(made: Site, hours: Hours) -> None:
    made.service.failovers.failover("main", "web-1", "latest")
    hours.hours += 2
    assert tick(made) == []


def test_a_failover_cuts_a_drill_short_and_waits_for_its_end(made: Site) -> None:
    drill = made.service.drills.begin("main", "web-1")
    failover = made.service.failovers.failover("main", "web-1", "latest")
    order: list[Verb] = []
    for verb in (Verb.RECOVERY_DISCARD, Verb.RECOVERY_BOOT):
        made.before_answer[verb] = lambda verb=verb: order.append(verb)  # type: ignore[misc]
    before = made.engine.before_step

    def let_the_drill_end(name: str) -> None:
        before(name)
        if name == "end drills":
            assert made.run(drill).state is JobState.CANCELLED

    made.engine.before_step = let_the_drill_end
    assert made.run(failover).state is JobState.SUCCEEDED
    assert order == [Verb.RECOVERY_DISCARD, Verb.RECOVERY_BOOT]
    with made.vault.read() as records:
        item = records.items.get("main", "web-1").item
    assert (item.state, item.rehearsal, item.last_drill) == (ItemState.FAILED_OVER, None, None)


def test_a_failover_does_not_wait_for_a_drill_that_does_not_end(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leeward.workflows.drill_records.GIVE_WAY_SECONDS", 0.1)
    made.service.drills.begin("main", "web-1")
    job = made.run(made.service.failovers.failover("main", "web-1", "latest"))
    assert job.state is JobState.SUCCEEDED


def test_drills_elsewhere_go_on(made: Site) -> None:
    drill = made.service.drills.begin("main", "web-1")
    with made.vault.write() as records:
        assert cut_drills_short(records, region="west", host="another") == ()
        assert cut_drills_short(records, region="east", host="n-1") == ()
    assert made.run(drill).state is JobState.SUCCEEDED


def test_memory_that_a_drill_holds_does_not_stop_a_failover(made: Site) -> None:
    told = NodeStatus(storage_root="/somewhere", memory_available_mib=100)
    made.service.monitor.take_status(made.target, told)
    with pytest.raises(Conflict, match="MiB of memory"):
        made.service.failovers.failover("main", "web-1", "latest")
    made.service.monitor.take_status(made.target, replace(told, memory_available_mib=None))
    made.service.drills.begin("main", "web-1")
    made.service.monitor.take_status(made.target, told)
    made.service.failovers.failover("main", "web-1", "latest")
