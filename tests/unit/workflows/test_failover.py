"""Failovers that do not go straight: tried again, late answers, silent hosts; never a second VM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, HypervisorRefused, NotFound, Unavailable
from leeward.model.recovery import ItemState, Job, JobState, ReplicatedItem
from leeward.model.resources import PowerState, VirtualMachine
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import NodeStatus, Verb


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def failover(made: Site) -> Job:
    return made.service.failovers.failover("main", "web-1", "latest")


def item(made: Site) -> ReplicatedItem:
    with made.service.bench.vault.read() as records:
        return records.items.get("main", "web-1").item


# --- the source stays stopped


def test_the_source_is_not_started_while_it_fails_over(made: Site) -> None:
    job = failover(made)
    with pytest.raises(Conflict, match="failing over to west or has"):
        made.service.machines.start("east", "web-1")
    made.run(job)
    with pytest.raises(Conflict, match="source stays stopped"):
        made.service.machines.start("east", "web-1")


def test_nor_after_a_failover_that_failed(made: Site) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no")
    made.run(failover(made))
    assert item(made).state is ItemState.DEGRADED
    with pytest.raises(Conflict, match="source stays stopped") as refused:
        made.service.machines.start("east", "web-1")
    assert "`leeward unprotect web-1` lets both run" in str(refused.value)
    made.run(made.service.disabling.disable("main", "web-1", delete_replica=False))
    made.service.machines.start("east", "web-1")


def test_what_a_failed_over_vm_still_reads_stays_protected(made: Site) -> None:
    made.run(failover(made))
    for delete_replica in (True, False):
        with pytest.raises(Conflict, match="still reads its recovery point"):
            made.service.disabling.disable("main", "web-1", delete_replica=delete_replica)
    assert item(made).state is ItemState.FAILED_OVER


def test_nor_by_a_start_that_was_asked_for_just_before(made: Site) -> None:
    start = made.service.machines.start("east", "web-1")
    failover(made)
    assert made.run(start).state is JobState.FAILED
    assert made.asked[Verb.VM_START] == 0


def test_nor_by_what_a_planned_failover_left_for_a_host_that_fell_silent(made: Site) -> None:
    made.mute(made.source)
    planned = made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)
    assert made.run(planned).state is JobState.FAILED
    with made.vault.read() as records:
        left = [command.verb for command in records.commands.open_for(made.source.id)]
    assert left == [Verb.VM_START]
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    made.unmute(made.source)
    assert (made.asked[Verb.REPLICATION_FENCE], made.asked[Verb.VM_START]) == (1, 0)


def test_a_degraded_source_can_still_be_started(made: Site) -> None:
    with made.service.bench.vault.write() as records:
        record = records.items.get("main", "web-1")
        records.items.update(replace(record, item=replace(record.item, state=ItemState.DEGRADED)))
    made.service.machines.start("east", "web-1")


# --- a host that was told to boot and fell silent


def test_no_second_boot_elsewhere_while_the_first_host_is_silent(made: Site) -> None:
    other = made.enrol_target("n-2")
    made.mute(made.target)
    made.refuse[Verb.RECOVERY_BOOT] = Unavailable("no answer")
    job = failover(made)
    assert made.run(job).state is JobState.FAILED
    del made.refuse[Verb.RECOVERY_BOOT]
    made.silence(made.target)
    with pytest.raises(Unavailable, match="could run twice"):
        failover(made)
    assert item(made).state is ItemState.DEGRADED
    assert made.booted_by(other) == 0

    made.unmute(made.target)  # it is back and takes what was left for it: the discard
    assert made.run(failover(made)).state is JobState.SUCCEEDED


def test_a_host_that_is_gone_for_good_is_forgotten_first(made: Site) -> None:
    other = made.enrol_target("n-2")
    made.mute(made.target)
    made.refuse[Verb.RECOVERY_BOOT] = Unavailable("no answer")
    made.run(failover(made))
    del made.refuse[Verb.RECOVERY_BOOT]
    made.silence(made.target)
    made.service.nodes.forget(made.target.id)
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.booted_by(other) == 1


def test_a_host_lost_after_the_failover_is_forgotten_and_the_vm_starts_on_another(
    made: Site,
) -> None:
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    other = made.enrol_target("n-2")
    made.silence(made.target)
    made.points.append(replace(made.points[0], id="rp-1-9", sequence=9))
    made.say()
    made.silence(made.target)
    with pytest.raises(Unavailable, match="could run twice") as refused:
        made.service.failovers.change("main", "web-1", "rp-1-9")
    assert "forget-node west n-1 --with-vms" in (refused.value.hint or "")
    with pytest.raises(Conflict, match="still has virtual machines"):
        made.service.nodes.forget(made.target.id)
    assert item(made).state is ItemState.FAILED_OVER
    made.service.nodes.forget(made.target.id, with_vms=True)
    assert item(made).state is ItemState.DEGRADED
    assert "is gone for good; fail over again" in item(made).problem
    made.service.monitor.tick()
    assert "is gone for good" in item(made).problem, "it is not followed as if it replicated"
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.booted_by(other) == 1
    assert item(made).state is ItemState.FAILED_OVER


# --- a VM that runs there already, though the vault does not know: it was made anew


def test_the_host_that_has_the_vm_gets_it_and_keeps_it_when_that_fails(made: Site) -> None:
    other = made.enrol_target("n-2")
    runs = VmStatus(vm_id="web-1", power=PowerState.RUNNING)
    made.service.monitor.take_status(made.target, NodeStatus(storage_root="/somewhere"))
    made.service.monitor.take_status(other, NodeStatus(storage_root="/somewhere", vms=(runs,)))
    made.refuse[Verb.PROCESSING_SEAL] = Unavailable("the store is away")
    assert made.run(failover(made)).state is JobState.FAILED
    assert made.asked[Verb.RECOVERY_DISCARD] == 0, "nothing of it had been begun"
    del made.refuse[Verb.PROCESSING_SEAL]
    made.refuse[Verb.RECOVERY_BOOT] = Conflict("it runs from another point")
    made.results[Verb.RECOVERY_DISCARD] = {"is_kept": True}
    refused = made.run(failover(made))
    assert refused.state is JobState.FAILED
    assert made.last[Verb.RECOVERY_DISCARD] == {"vm_id": "web-1", "made_for": refused.id}
    del made.refuse[Verb.RECOVERY_BOOT]
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.asked[Verb.RECOVERY_DISCARD] == 2, "it is asked for no more than that job's"
    assert made.last[Verb.RECOVERY_DISCARD] == {"vm_id": "web-1", "made_for": refused.id}
    assert (made.booted_by(other), made.booted_by(made.target)) == (1, 0)


def test_creating_a_vm_in_vain_deletes_none_that_was_there(made: Site) -> None:
    with made.service.bench.vault.read() as records:
        vm = records.resources.get(VirtualMachine, "east", "web-1").value
    made.refuse[Verb.VM_CREATE] = Conflict("VM web-2 exists already")
    nics = tuple(replace(nic, address="", mac="") for nic in vm.nics)
    job = made.service.machines.create(replace(vm, name="web-2", nics=nics))
    assert job is not None
    assert made.run(job).state is JobState.FAILED
    assert made.last[Verb.VM_DELETE] == {"vm_id": "web-2", "made_for": job.id}


def test_what_is_committed_is_not_lost_with_its_host_unasked(made: Site) -> None:
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.run(made.service.failovers.commit("main", "web-1")).state is JobState.SUCCEEDED
    made.silence(made.target)
    with pytest.raises(Conflict, match="belongs to item web-1"):
        made.service.nodes.forget(made.target.id, with_vms=True)


def test_a_host_that_said_it_is_clean_binds_nobody(made: Site) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory")
    made.run(failover(made))
    other = made.enrol_target("n-2")
    made.silence(made.target)
    del made.refuse[Verb.RECOVERY_BOOT]
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.booted_by(other) == 1


def test_what_a_host_could_not_discard_is_discarded_before_the_next_boot(made: Site) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no")
    made.refuse[Verb.RECOVERY_DISCARD] = Unavailable("disk is busy")
    made.run(failover(made))
    made.enrol_target("n-2")
    made.refuse.clear()
    done = made.run(failover(made))
    assert done.state is JobState.SUCCEEDED
    assert done.result["host"] == "n-1"
    assert [step.name for step in done.steps] == [
        "fence source",
        "seal",
        "discard",
        "boot",
        "record",
    ]


# --- a worker that does not know the item


def test_a_worker_that_lost_the_item_takes_it_over_before_it_seals(made: Site) -> None:
    made.refuse[Verb.PROCESSING_SEAL] = NotFound("this worker does not process it")
    made.before_answer[Verb.PROCESSING_START] = lambda: made.refuse.pop(Verb.PROCESSING_SEAL)
    done = made.run(failover(made))
    assert done.state is JobState.SUCCEEDED
    assert [step.name for step in done.steps][1:4] == ["seal", "take over", "seal again"]


def test_a_take_over_reads_the_cuts_of_the_epoch_they_were_made_in(made: Site) -> None:
    made.refuse[Verb.PROCESSING_SEAL] = Unavailable("the store is slow")
    for _ in range(2):  # the epoch rises with every try; what lies in the cache is still of epoch 1
        made.run(failover(made))
    made.refuse[Verb.PROCESSING_SEAL] = NotFound("this worker does not process it")
    made.before_answer[Verb.PROCESSING_START] = lambda: made.refuse.pop(Verb.PROCESSING_SEAL)
    assert made.run(failover(made)).state is JobState.SUCCEEDED
    assert made.last[Verb.PROCESSING_START]["epoch"] == 1


# --- planned


def test_a_planned_failover_that_cannot_drain_leaves_the_source_replicated(made: Site) -> None:
    made.refuse[Verb.REPLICATION_DRAIN] = Unavailable("the cache is away")
    job = made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)
    assert made.run(job).error == "agent n-1 in east: the cache is away"
    assert made.asked[Verb.VM_START] == 1
    assert made.asked[Verb.REPLICATION_FENCE] == made.asked[Verb.PROCESSING_SEAL] == 0
    assert (item(made).state, item(made).epoch) == (ItemState.DEGRADED, 1)
    made.say()
    assert item(made).state is ItemState.PROTECTED


def test_a_planned_failover_fences_only_what_has_been_drained(made: Site) -> None:
    job = made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)
    assert item(made).epoch == 1  # else the source would be stopped before it has sent everything
    seen: list[int] = []
    made.before_answer[Verb.REPLICATION_DRAIN] = lambda: seen.append(item(made).epoch)
    made.before_answer[Verb.PROCESSING_SEAL] = lambda: seen.append(item(made).epoch)
    assert made.run(job).state is JobState.SUCCEEDED
    assert seen == [1, 2]
    assert item(made).drained_point == made.points[-1].id
