"""What protections share while one of them ends, and whose word counts about their points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict
from leeward.model.recovery import ItemState, Job, JobState, Policy, Rehearsal
from leeward.model.resources import StorageAccount, VirtualMachine
from leeward.protocol.messages import NodeStatus, ProcessingStatus, Verb
from leeward.vault.resources import ResourceState
from leeward.workflows.monitor import Monitor


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def disable(made: Site) -> Job:
    return made.service.disabling.disable("main", "web-1", delete_replica=True)


def test_nothing_begins_to_use_what_is_being_removed(made: Site) -> None:
    job = disable(made)
    refused = []

    def try_to_protect(name: str) -> None:
        if name == "remove records":  # its storage has just been removed from the hosts
            with pytest.raises(Conflict, match="just being deleted") as error:
                made.protect()
            refused.append(error.value)

    made.engine.before_step = try_to_protect
    assert made.run(job).state is JobState.SUCCEEDED
    assert refused
    made.protect()


def test_a_vm_is_not_made_on_storage_that_is_being_deleted(made: Site) -> None:
    with made.vault.write() as records:
        records.resources.set_state(StorageAccount, "east", "sys", ResourceState.DELETING)
        vm = records.resources.get(VirtualMachine, "east", "web-1").value
    nics = tuple(replace(nic, address="", mac="") for nic in vm.nics)
    with pytest.raises(Conflict, match="storage account sys in east is just being deleted"):
        made.service.machines.create(replace(vm, name="web-2", nics=nics))


def test_a_region_that_is_gone_keeps_nothing_in_the_other(made: Site) -> None:
    made.silence(made.source)
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    assert made.asked[Verb.ACCOUNT_DELETE] == 2  # both of the target's; the cache went with east


def test_storage_is_not_removed_late(made: Site) -> None:
    made.mute(made.target)
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        left = {command.verb for command in records.commands.open_for(made.target.id)}
    assert Verb.ACCOUNT_DELETE not in left


def test_a_worker_that_was_away_is_told_which_stores_of_the_item_are_gone(made: Site) -> None:
    """It would ask them to forget the item at each start, for good."""
    with made.vault.read() as records:
        record = records.items.get("main", "web-1")
        account = record.item.disks[0].target_account
        url = records.resources.get(StorageAccount, "west", account).value.url
    made.mute(made.worker)
    made.silence(made.worker)
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        orders = [command.arguments for command in records.commands.open_for(made.worker.id)]
    assert [order.get("delete") for order in orders] == [True, True]
    assert url in str(orders[1]["removed"])


def test_a_worker_that_has_erased_the_item_is_told_no_more(made: Site) -> None:
    before = made.asked[Verb.PROCESSING_STOP]
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    assert made.asked[Verb.PROCESSING_STOP] == before + 1


def test_nobody_is_told_to_go_on_with_an_item_whose_protection_is_being_undone(
    tmp_path: Path,
) -> None:
    """What the worker erases would be processed again, and nobody would ever stop it."""
    with site(tmp_path) as made:
        job, told = made.protect(), list[Verb]()
        step = made.engine.before_step

        def disturb(name: str) -> None:
            if name == "initial replication":
                made.service.jobs.cancel(job.id)
                return
            if name == "forget":  # replication and processing have just been stopped
                told.extend([Verb.PROCESSING_START, Verb.REPLICATION_START])
                made.service.policies.put("main", Policy(name="default", compression="lz4"))
                with made.vault.read() as records:
                    others = records.jobs.open_ids(verb="policy.apply")
                made.engine.before_step = lambda _: None
                for other in others:
                    made.engine.run(other)
                made.engine.before_step = disturb
            step(name)

        made.engine.before_step = disturb
        assert made.run(job).state is JobState.CANCELLED
        assert told
        assert [made.asked[verb] for verb in told] == [1, 1]


def test_only_the_items_worker_speaks_for_its_points(made: Site) -> None:
    with made.vault.read() as records:
        record = records.items.get("main", "web-1")
        before = records.points.listed(record.item.id)
    said = ProcessingStatus(
        item_id=record.item.id,
        epoch=1,
        applied_sequence=1,
        newest_point_time_ns=1,
        points_removed=tuple(point.id for point in before),
    )
    for node in (made.source, made.target):
        made.service.monitor.take_status(node, NodeStatus(processings=(said,)))
        with made.vault.read() as records:
            assert records.points.listed(record.item.id) == before
    made.service.monitor.take_status(made.worker, NodeStatus(processings=(said,)))
    with made.vault.read() as records:
        assert records.points.listed(record.item.id) == []


def test_a_service_just_started_judges_nothing_before_the_source_has_spoken(made: Site) -> None:
    made.service.bench.live._heard.clear()
    made.service.monitor = Monitor(made.service.bench)
    item_id = next(iter(made.items))
    said = ProcessingStatus(item_id=item_id, epoch=1, applied_sequence=1, newest_point_time_ns=1)
    made.service.monitor.take_status(made.worker, NodeStatus(processings=(said,)))
    with made.vault.read() as records:
        assert records.items.by_id(item_id).item.state is ItemState.PROTECTED


def test_a_host_that_is_gone_for_good_takes_its_vms_with_it_when_told_to(made: Site) -> None:
    nodes = made.service.nodes
    made.silence(made.source)
    with pytest.raises(Conflict, match="still has virtual machines: web-1"):
        nodes.forget(made.source.id)
    with pytest.raises(Conflict, match="web-1 in east belongs to item web-1"):
        nodes.forget(made.source.id, with_vms=True)
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    nodes.forget(made.source.id, with_vms=True)
    with made.vault.read() as records:
        assert records.resources.listed(VirtualMachine, "east") == []
        assert made.source.id not in [node.id for node in records.nodes.listed()]


def test_a_host_that_answers_keeps_its_vms(made: Site) -> None:
    assert made.run(disable(made)).state is JobState.SUCCEEDED
    with pytest.raises(Conflict, match="still answers"):
        made.service.nodes.forget(made.source.id, with_vms=True)


@pytest.mark.parametrize("has", ["failover", "test VM"])
def test_cancelling_a_protection_takes_nothing_from_what_came_after_it(
    tmp_path: Path, has: str
) -> None:
    with site(tmp_path / "other") as made:
        job = made.protect()
        begin = made.engine.before_step

        def and_then(name: str) -> None:
            begin(name)
            if name == "initial replication":
                made.engine.before_step = begin
                if has == "failover":
                    made.service.failovers.failover("main", "web-1", "latest")
                else:
                    with made.vault.write() as records:
                        record = records.items.get("main", "web-1")
                        test_vm = Rehearsal(recovery_point="", region="", host="", vm_id="")
                        tested = replace(record.item, rehearsal=test_vm)
                        records.items.update(replace(record, item=tested))
                made.service.jobs.cancel(job.id)

        made.engine.before_step = and_then
        assert made.run(job).state is JobState.CANCELLED
        with made.vault.read() as records:
            item = records.items.get("main", "web-1").item
        assert item.state is (ItemState.FAILING_OVER if has == "failover" else ItemState.PROTECTED)
        assert made.asked[Verb.PROCESSING_STOP] == made.asked[Verb.ACCOUNT_DELETE] == 0
