"""A verb killed at any of its steps, before or after the step's action: the end is the same, and no
node is asked for anything twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site, state_of

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.model.recovery import ItemState, Job, JobState, ReplicationState
from leeward.protocol.messages import (
    NodeStatus,
    ProcessingStatus,
    ReplicationStatus,
    Superseded,
    Verb,
)


def _protected(made: Site) -> None:
    assert made.run(made.protect()).state is JobState.SUCCEEDED


def _failover(made: Site) -> Job:
    return made.service.failovers.failover("main", "web-1", "latest")


def committed(made: Site) -> None:
    """web-1 has failed over to west, for good."""
    assert made.run(_failover(made)).state is JobState.SUCCEEDED
    made.say()
    assert made.run(made.service.failovers.commit("main", "web-1")).state is JobState.SUCCEEDED


def _submit(made: Site, verb: str) -> Job:
    if verb == "protect-refused":
        made.refuse[Verb.REPLICATION_START] = HypervisorRefused("no")
    if verb.startswith("protect"):
        return made.protect()
    _protected(made)
    if verb == "disable":
        return made.service.disabling.disable("main", "web-1", delete_replica=True)
    if "reprotect" in verb:
        committed(made)
        if verb == "reprotect-refused":
            made.refuse[Verb.REPLICATION_START] = HypervisorRefused("no")
        return made.service.reprotection.reprotect("main", "web-1")
    if verb == "planned-failover-refused":
        made.refuse[Verb.REPLICATION_DRAIN] = Unavailable("the cache is away")
    if verb.startswith("planned"):
        return made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)
    if verb == "failover-refused":
        made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no")
    return _failover(made)


VERBS = {
    "protect": JobState.SUCCEEDED,
    "protect-refused": JobState.FAILED,
    "failover": JobState.SUCCEEDED,
    "failover-refused": JobState.FAILED,
    "planned-failover": JobState.SUCCEEDED,
    "planned-failover-refused": JobState.FAILED,
    "reprotect": JobState.SUCCEEDED,
    "reprotect-refused": JobState.FAILED,
    "disable": JobState.SUCCEEDED,
}


@pytest.mark.parametrize("after_action", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_step(tmp_path: Path, verb: str, after_action: bool) -> None:
    with site(tmp_path / "whole") as made:
        job = _submit(made, verb)
        assert made.run(job).state is VERBS[verb]
        expected, steps = state_of(made), len(made.engine.records[job.id])
    assert steps >= 3
    if verb in ("protect-refused", "disable"):
        assert expected["items"] == []
        assert not any("asr" in name or "cache" in name for name in _names(expected))
    with site(tmp_path / "killed") as made:
        job = _submit(made, verb)
        for index in range(steps):
            assert not made.engine.run(job.id, kill_at=index, after_action=after_action)
        assert made.run(job).state is VERBS[verb]
        assert state_of(made) == expected


def _names(state: dict[str, object]) -> list[str]:
    resources = state["resources"]
    assert isinstance(resources, list)
    return [name for _, _, name, _ in resources]


def test_what_protection_makes_and_asks(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        _protected(made)
        state = state_of(made)
        with made.service.bench.vault.read() as records:
            record = records.items.get("main", "web-1")
        assert record.item.state is ItemState.PROTECTED
        assert made.asked[Verb.PROCESSING_START] == made.asked[Verb.REPLICATION_START] == 1
        resources = state["resources"]
        assert isinstance(resources, list)
        made_for_it = {
            ("ResourceGroup", "west", "rg-asr", "ready"),
            ("VirtualNetwork", "west", "corp-asr", "ready"),
            ("AvailabilitySet", "west", "set-asr", "ready"),
            ("StorageAccount", "east", "main-east-cache", "ready"),
            ("StorageAccount", "west", "sysasr", "ready"),
            ("StorageAccount", "west", "dataasr", "ready"),
        }
        assert made_for_it <= set(resources)


def test_the_epoch_is_raised_before_anything_is_asked(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        _protected(made)
        _failover(made)
        with made.service.bench.vault.read() as records:
            item = records.items.get("main", "web-1").item
        assert item.epoch == 2
        assert item.state is ItemState.FAILING_OVER
        assert made.asked[Verb.PROCESSING_SEAL] == 0


def test_a_job_submitted_but_never_started_is_started_at_launch(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        job = made.protect()
        made.engine.started.clear()  # killed between recording the job and starting it
        made.service.jobs.launch()
        assert made.engine.started == [job.id]


def test_a_workers_first_report_replaces_the_points_listed(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        _protected(made)
        item_id = next(iter(made.items))
        reported = ProcessingStatus(
            item_id=item_id,
            epoch=1,
            applied_sequence=9,
            newest_point_time_ns=9,
            points_added=(replace(made.points[0], id="rp-0001-00000009", sequence=9),),
        )
        for complete, count in ((False, len(made.points) + 1), (True, 1)):
            report = replace(reported, points_complete=complete)
            made.service.monitor.take_status(made.worker, NodeStatus(processings=(report,)))
            with made.vault.read() as records:
                assert len(records.points.listed(item_id)) == count


def test_a_source_replicating_an_old_epoch_is_told(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        _protected(made)
        made.run(_failover(made))
        item_id = next(iter(made.items))
        status = ReplicationStatus(
            item_id=item_id, epoch=1, state=ReplicationState.STREAMING, initial_done=True
        )
        told = made.service.monitor.take_status(made.source, NodeStatus(replications=(status,)))
        assert told.supersede == (Superseded(item_id=item_id, epoch=2),)
