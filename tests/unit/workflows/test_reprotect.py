"""Reprotect and failback: the item turned round, back to the very VM it came from, and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site
from tests.unit.workflows.test_replay import committed

from leeward.core.errors import Conflict, HypervisorRefused, Unavailable
from leeward.model.recovery import ItemState, Job, JobState, ReplicatedItem, ReplicationState
from leeward.model.resources import StorageAccount, VirtualMachine
from leeward.protocol.messages import NodeStatus, ReplicationStatus, Verb


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def item(made: Site) -> ReplicatedItem:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item


def vms(made: Site) -> dict[str, VirtualMachine]:
    with made.vault.read() as records:
        found = records.resources.listed(VirtualMachine)
    return {stored.scope: stored.value for stored in found}


def reprotect(made: Site) -> Job:
    return made.service.reprotection.reprotect("main", "web-1")


def failback(made: Site) -> None:
    job = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(job).state is JobState.SUCCEEDED, made.job(job).error


def test_there_and_back_and_there_again(made: Site) -> None:
    origin = vms(made)["east"]
    committed(made)
    target = vms(made)["west"]
    assert made.run(reprotect(made)).state is JobState.SUCCEEDED
    turned = item(made)
    assert (turned.state, turned.epoch) == (ItemState.PROTECTED, 4)
    assert (turned.source_region, turned.target_region) == ("west", "east")
    assert list(vms(made)) == ["west"]
    failback(made)
    home = vms(made)["east"]
    assert (home.name, home.nics, home.resource_group) == (
        origin.name,
        origin.nics,
        origin.resource_group,
    )
    assert [d.storage_account for d in home.disks] == [d.storage_account for d in origin.disks]
    made.say()
    made.run(made.service.failovers.commit("main", "web-1"))
    assert made.run(reprotect(made)).state is JobState.SUCCEEDED
    again = item(made)
    assert (again.source_region, again.target_region, again.epoch) == ("east", "west", 7)
    assert again.cache_account == "main-east-cache"
    failback(made)
    assert vms(made)["west"].nics == target.nics


def test_a_silent_former_host_costs_the_seed_and_nothing_else(made: Site) -> None:
    committed(made)
    made.refuse[Verb.REPLICA_SEED] = Unavailable("the disk is gone")
    ended = made.run(reprotect(made))
    assert ended.state is JobState.SUCCEEDED
    assert ended.result["is_seeded"] is False
    assert made.last[Verb.REPLICATION_START]["is_based"] is False


def test_only_a_drained_source_tells_what_has_changed_since(made: Site) -> None:
    job = made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)
    assert made.run(job).state is JobState.SUCCEEDED
    made.say()
    made.run(made.service.failovers.commit("main", "web-1"))
    made.run(reprotect(made))
    assert made.last[Verb.REPLICATION_START]["is_based"] is True


def test_a_reprotection_that_fails_leaves_it_committed(made: Site) -> None:
    committed(made)
    before = item(made)
    made.refuse[Verb.REPLICATION_START] = HypervisorRefused("no room for a tap")
    assert made.run(reprotect(made)).state is JobState.FAILED
    after = item(made)
    assert (after.state, after.source_region) == (ItemState.COMMITTED, "east")
    assert after.epoch > before.epoch
    assert "no room for a tap; reprotect again" in after.problem
    assert set(vms(made)) == {"east", "west"}
    assert made.asked[Verb.RECOVERY_DISCARD] == 0
    made.refuse.clear()
    assert made.run(reprotect(made)).state is JobState.SUCCEEDED


def test_who_asks_out_of_turn_is_told_what_to_do(made: Site) -> None:
    with pytest.raises(Conflict, match="`leeward commit web-1` after a failover"):
        reprotect(made)
    with pytest.raises(Conflict, match="not committed"):
        made.service.reprotection.undo_commit("main", "web-1")
    committed(made)
    made.silence(made.source_worker)
    with pytest.raises(Unavailable, match="no worker of region east answers"):
        reprotect(made)
    assert item(made).state is ItemState.COMMITTED


def test_a_commit_can_be_taken_back_until_it_is_reprotected(made: Site) -> None:
    committed(made)
    job = made.service.reprotection.undo_commit("main", "web-1")
    assert made.run(job).state is JobState.SUCCEEDED
    assert item(made).state is ItemState.FAILED_OVER
    made.run(made.service.failovers.commit("main", "web-1"))
    made.run(reprotect(made))
    with pytest.raises(Conflict, match="not committed"):
        made.service.reprotection.undo_commit("main", "web-1")


def test_the_new_source_is_not_told_to_stop_while_it_replicates_an_older_epoch(made: Site) -> None:
    committed(made)
    reprotect(made)  # the epoch is raised, nobody has been told yet
    item_id = item(made).id
    made.items[item_id] = 2
    said = ReplicationStatus(
        item_id=item_id, epoch=2, state=ReplicationState.STREAMING, initial_done=True
    )
    status = NodeStatus(replications=(said,))
    assert made.service.monitor.take_status(made.target, status).supersede == ()
    (told,) = made.service.monitor.take_status(made.source, status).supersede
    assert told.epoch == 4


def test_disabling_a_turned_item_ends_both_directions(made: Site) -> None:
    committed(made)
    made.run(reprotect(made))
    made.run(made.service.disabling.disable("main", "web-1", delete_replica=True))
    with made.vault.read() as records:
        assert records.items.listed() == []
        accounts = {(s.scope, s.name) for s in records.resources.listed(StorageAccount)}
    assert made.asked[Verb.PROCESSING_STOP] == 2
    # the accounts the VM's disks lie in stay, caches go
    assert accounts == {("east", "sys"), ("east", "data"), ("west", "sysasr"), ("west", "dataasr")}
