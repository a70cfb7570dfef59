"""Jobs whose vault or engine fails them: none hangs, and no item stays where nothing leads out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, HypervisorRefused, Unavailable
from leeward.model.recovery import ItemState, Job, JobState
from leeward.model.resources import VirtualMachine, VirtualNetwork
from leeward.protocol.messages import Verb
from leeward.vault.records import Records
from leeward.workflows import jobs, patience


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(jobs, "_START_SECONDS", -1)
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def failover(made: Site) -> Job:
    return made.service.failovers.failover("main", "web-1", "latest")


def state(made: Site) -> ItemState:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item.state


class _FullDisk:
    """The vault cannot be written at its next `failures` turns once that step has begun."""

    def __init__(self, made: Site, step: str, failures: int = 3) -> None:
        self._write = made.vault.write
        self._left = 0
        made.vault.write = self._turn  # type: ignore[method-assign, assignment]
        before = made.engine.before_step

        def begin(name: str) -> None:
            before(name)
            self._left = failures if name == step else self._left

        made.engine.before_step = begin

    def _turn(self) -> AbstractContextManager[Records]:
        if self._left:
            self._left -= 1
            raise Unavailable("the vault database cannot be used: database or disk is full")
        return self._write()


def test_a_vm_that_booted_is_not_discarded_because_a_disk_is_full(made: Site) -> None:
    _FullDisk(made, "record")
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.asked[Verb.RECOVERY_DISCARD] == 0
    assert state(made) is ItemState.FAILED_OVER


@pytest.mark.parametrize("step", ["discard what booted", "record failure"])
def test_undoing_waits_for_the_vault(made: Site, step: str) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no")
    _FullDisk(made, step)
    assert made.run(failover(made)).state is JobState.FAILED
    assert made.asked[Verb.RECOVERY_DISCARD] == 1
    assert state(made) is ItemState.DEGRADED


def test_a_job_whose_engine_was_locked_is_started_later(made: Site) -> None:
    made.engine.is_away = True
    job = failover(made)
    assert job.id not in made.engine.started
    made.engine.is_away = False
    made.service.jobs.take_up()
    assert job.id in made.engine.started


@pytest.mark.parametrize("way_out", ["failover", "disable"])
def test_a_lost_job_ends_and_its_item_can_be_led_out(made: Site, way_out: str) -> None:
    job = failover(made)
    if way_out == "failover":
        with pytest.raises(Conflict, match="already"):
            failover(made)
    made.engine.lost.add(job.id)
    made.service.jobs.launch()
    assert made.job(job).state is JobState.FAILED
    assert state(made) is ItemState.FAILING_OVER
    if way_out == "failover":
        assert made.run(failover(made)).state is JobState.SUCCEEDED
        return
    done = made.run(made.service.disabling.disable("main", "web-1", delete_replica=False))
    assert done.state is JobState.SUCCEEDED


def test_failing_over_is_not_refused_for_other_jobs(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OPEN_JOBS_MAX", 0)
    with pytest.raises(Conflict, match="still running"):
        made.service.machines.start("east", "web-1")
    failover(made)


def test_disabling_in_one_vault_is_not_disabling_in_another(made: Site) -> None:
    with made.vault.write() as records:
        record = records.items.get("main", "web-1")
        other = replace(record.item, id="item-other", vault="other", source_region="north")
        records.items.insert(replace(record, item=other))
    first = made.service.disabling.disable("main", "web-1", delete_replica=False)
    assert made.service.disabling.disable("main", "web-1", delete_replica=False).id == first.id
    assert made.service.disabling.disable("other", "web-1", delete_replica=False).id != first.id


def test_what_is_gone_from_its_host_is_forgotten_because_a_disk_is_full(made: Site) -> None:
    """Else it would be known as being deleted for good."""
    made.run(made.service.disabling.disable("main", "web-1", delete_replica=False))
    _FullDisk(made, "forget")
    assert made.run(made.service.machines.delete("east", "web-1")).state is JobState.SUCCEEDED
    deleted = made.service.resources.delete_real(VirtualNetwork, "east", "corp")
    assert made.run(deleted).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        assert records.resources.find(VirtualMachine, "east", "web-1") is None
        assert records.resources.find(VirtualNetwork, "east", "corp") is None
