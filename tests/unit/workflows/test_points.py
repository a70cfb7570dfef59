"""Application-consistent points on demand and by policy, as the service sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, Unavailable
from leeward.model.recovery import JobState
from leeward.protocol.messages import Verb


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        made.say()
        yield made


def events(made: Site) -> list[str]:
    with made.vault.read() as records:
        listed = records.events.listed(limit=100)
    return [each.message for each in listed if each.kind.startswith("app_consistent")]


def test_the_result_says_which_point_it_is_and_how_long_the_guest_stood(made: Site) -> None:
    job = made.run(made.service.points.create("main", "web-1"))
    assert job.result["recovery_point"] == made.points[-1].id
    assert (job.result["consistency"], job.result["ours_ms"]) == ("application", 0.5)
    asked = made.last[Verb.REPLICATION_FREEZE]
    assert asked["run_id"] == job.id  # a lane of its own: a fence does not wait behind it


def test_what_is_not_replicated_gives_no_point(made: Site) -> None:
    assert (
        made.run(made.service.failovers.failover("main", "web-1", "latest")).state
        is JobState.SUCCEEDED
    )
    with pytest.raises(Conflict, match="failed over: nothing is replicated"):
        made.service.points.create("main", "web-1")


def test_a_source_that_is_silent_is_named(made: Site) -> None:
    made.silence(made.source)
    with pytest.raises(Unavailable, match="does not answer"):
        made.service.points.create("main", "web-1")


def test_a_fall_back_is_an_event_each_time_and_the_first_success_after_it_once(made: Site) -> None:
    first = made.frozen(made.points[-1], "no guest agent runs in the VM")
    reports = [first, first, replace(first, number=2), made.frozen(made.points[-1])]
    for report in [*reports, replace(reports[-1], number=5)]:
        made.freeze = report
        made.say()
    with made.vault.read() as records:
        assert records.items.get("main", "web-1").item.freeze == made.freeze
    point = made.points[-1].id
    failed = (
        f"recovery point {point} of web-1 is crash-consistent only: no guest agent runs in the VM"
    )
    good = f"recovery point {point} of web-1 is application-consistent, the guest frozen for 120 ms"
    assert sorted(events(made)) == sorted([failed, failed, good])


def test_an_older_epochs_attempt_is_not_this_directions(made: Site) -> None:
    made.freeze = replace(made.frozen(made.points[-1]), epoch=0)
    made.say()
    with made.vault.read() as records:
        assert records.items.get("main", "web-1").item.freeze is None
