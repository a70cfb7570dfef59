"""An item whose worker is gone goes to another one, once, and only while it is replicated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict
from leeward.model.recovery import Job, JobState
from leeward.protocol.messages import NodeStatus, Verb
from leeward.vault.items import ItemRecord
from leeward.workflows.worker_verbs import WORKER_CHANGE


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected."""
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def item(made: Site) -> ItemRecord:
    with made.vault.read() as records:
        (record,) = records.items.listed()
        return record


def tick(made: Site) -> list[Job]:
    """Return the changes under way after a tick."""
    made.service.workers.tick()
    with made.vault.read() as records:
        return [records.jobs.get(each) for each in records.jobs.open_ids(verb=WORKER_CHANGE)]


def test_a_silent_worker_loses_its_items_to_the_one_with_the_fewest(made: Site) -> None:
    first = item(made).worker_id
    other = made.enrol_worker("n-2")
    assert tick(made) == [], "it is heard"
    made.silence(made.worker)
    starts = made.asked[Verb.PROCESSING_START]
    (job,) = tick(made)
    assert tick(made) == [job], "while it is on its way there is no second one"
    assert made.run(job).state is JobState.SUCCEEDED
    assert item(made).worker_id == other.id != first
    assert made.asked[Verb.PROCESSING_START] == starts + 1
    with made.vault.read() as records:
        (event,) = (e for e in records.events.listed(limit=50) if e.kind == "worker_changed")
        left = [command.verb for command in records.commands.open_for(made.worker.id)]
    assert (
        "processed by worker n-2 in west from now on: worker n-1 in west has been" in event.message
    )
    assert left in ([], [Verb.PROCESSING_STOP])
    assert made.asked[Verb.PROCESSING_STOP] + len(left) == 1, "it learns that it is not its own"
    assert tick(made) == []


def test_a_worker_that_a_failover_has_chosen_meanwhile_is_not_told_to_let_go(made: Site) -> None:
    other = made.enrol_worker("n-2")
    made.silence(made.worker)
    (job,) = tick(made)

    def fail_over(name: str) -> None:
        if name == "let go":
            made.silence(other)
            made.service.monitor.take_status(made.worker, NodeStatus())
            made.service.failovers.failover("main", "web-1", "latest")

    made.engine.before_step = fail_over
    assert made.run(job).state is JobState.SUCCEEDED
    assert item(made).worker_id == made.worker.id
    assert made.asked[Verb.PROCESSING_STOP] == 0


def test_without_another_worker_nothing_changes(made: Site) -> None:
    made.silence(made.worker)
    assert tick(made) == []
    other = made.enrol_worker("n-2")
    made.silence(other)
    assert tick(made) == []
    made.service.monitor.take_status(other, NodeStatus())
    assert len(tick(made)) == 1


def test_a_worker_that_speaks_again_in_time_keeps_its_items(made: Site) -> None:
    made.enrol_worker("n-2")
    made.silence(made.worker)
    made.service.monitor.take_status(made.worker, NodeStatus())
    assert tick(made) == []


def test_what_has_moved_is_left_to_the_verbs(made: Site) -> None:
    job = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(job).state is JobState.SUCCEEDED
    made.enrol_worker("n-2")
    made.silence(made.worker)
    assert tick(made) == []
    with pytest.raises(Conflict) as refused:
        made.service.nodes.forget(made.worker.id)
    assert "stays with it until `leeward reprotect`" in (refused.value.hint or "")


def test_a_worker_with_items_is_forgotten_once_they_are_with_another(made: Site) -> None:
    made.silence(made.worker)
    with pytest.raises(Conflict) as refused:
        made.service.nodes.forget(made.worker.id)
    assert refused.value.message == "worker n-1 in west still has items: web-1"
    assert "`leeward worker` starts one" in (refused.value.hint or "")
    made.enrol_worker("n-2")
    (job,) = tick(made)
    made.run(job)
    made.silence(made.worker)
    made.service.nodes.forget(made.worker.id)
