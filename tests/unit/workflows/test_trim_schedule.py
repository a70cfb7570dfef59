"""Trims by the clock: one at a time, of VMs that stream, no sooner than the policy says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.model.recovery import Job, JobState, Policy, ReplicationState
from leeward.protocol.messages import NodeStatus, ReplicationStatus
from leeward.workflows.trim_schedule import TrimSchedule

HOUR = 3600


class Hours:
    """The service's clock, put forward by hand."""

    def __init__(self) -> None:
        self.hours = 1000.0

    def now_ns(self) -> int:
        return int(self.hours * HOUR * 1e9)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected and streams, under a policy that trims hourly."""
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        set_trim(made, HOUR)
        yield made


@pytest.fixture
def hours(made: Site, monkeypatch: pytest.MonkeyPatch) -> Hours:
    hours = Hours()
    monkeypatch.setattr(type(made.service.bench.clock), "now_ns", lambda self: hours.now_ns())
    return hours


def set_trim(made: Site, seconds: int) -> None:
    with made.vault.write() as records:
        name = records.items.get("main", "web-1").item.policy
        stored = records.resources.get(Policy, "main", name)
        records.resources.update(stored, value=replace(stored.value, trim_seconds=seconds))


def tick(made: Site) -> list[Job]:
    """Return the trims under way after a tick of a service that has just been started."""
    TrimSchedule(made.service.bench, made.service.trims).tick()
    with made.vault.read() as records:
        return [records.jobs.get(each) for each in records.jobs.open_ids(verb="vm.trim")]


def test_a_vm_is_trimmed_once_in_its_time(made: Site, hours: Hours) -> None:
    (job,) = tick(made)
    assert job.target == "vm/east/web-1"
    assert tick(made) == [job], "while it runs there is no second one"
    assert made.run(job).state is JobState.SUCCEEDED
    hours.hours += 0.9
    assert tick(made) == []
    hours.hours += 0.1
    assert len(tick(made)) == 1


def test_one_that_is_trimmed_by_hand_is_not_due_for_as_long(made: Site, hours: Hours) -> None:
    assert made.run(made.service.trims.trim("east", "web-1")).state is JobState.SUCCEEDED
    assert tick(made) == []
    hours.hours += 1
    assert len(tick(made)) == 1


def test_none_begins_while_it_does_not_stream(made: Site, hours: Hours) -> None:
    with made.vault.read() as records:
        item = records.items.get("main", "web-1").item
    said = ReplicationStatus(
        item_id=item.id, epoch=item.epoch, state=ReplicationState.TRACKING, initial_done=True
    )
    made.service.bench.live.put(made.source.id, NodeStatus(replications=(said,)))
    assert tick(made) == []


def test_without_a_schedule_nothing_begins(made: Site, hours: Hours) -> None:
    set_trim(made, 0)
    hours.hours += 100
    assert tick(made) == []
