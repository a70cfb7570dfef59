"""A policy that is changed reaches the worker and the source of every item that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, NotFound
from leeward.model.recovery import AES_256_GCM, JobState, Policy, RetentionTier
from leeward.model.resources import ResourceGroup, VirtualMachine
from leeward.protection.update import ItemChanges
from leeward.protocol.messages import NodeStatus, Verb
from leeward.workflows.dispatch import Order
from leeward.workflows.policy_verbs import POLICY_APPLY

CHANGED = Policy(
    name="default",
    cut_interval_seconds=2.5,
    tiers=(RetentionTier(every_seconds=0, for_seconds=60),),
    compression="lz4",
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def jobs(made: Site) -> list[str]:
    with made.vault.read() as records:
        return records.jobs.open_ids(verb=POLICY_APPLY)


def test_a_change_is_told_to_worker_and_source_at_once(made: Site) -> None:
    made.service.policies.put("main", CHANGED)
    (job_id,) = jobs(made)
    made.engine.run(job_id)
    assert made.last[Verb.REPLICATION_START]["cut_interval_seconds"] == 2.5
    assert made.last[Verb.REPLICATION_START]["compression"] == "lz4"
    assert made.last[Verb.PROCESSING_START]["tiers"] == [{"every_seconds": 0, "for_seconds": 60}]
    assert made.last[Verb.PROCESSING_START]["compression"] == "lz4"


@pytest.mark.parametrize("step", ["workers", "sources"])
def test_an_item_that_ends_while_its_nodes_are_being_told_does_not_go_on(
    made: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The order to go on, made before the item ended, would follow the order to stop."""
    send, before = made.service.bench.dispatch.send, dict(made.asked)

    def slow(orders: list[Order], *, job_id: str, step: str) -> list[str]:
        monkeypatch.undo()
        assert [order.verb for order in orders] == [verb]
        made.run(made.service.disabling.disable("main", "web-1", delete_replica=True))
        return send(orders, job_id=job_id, step=step)

    verb = Verb.PROCESSING_START if step == "workers" else Verb.REPLICATION_START
    made.service.policies.put("main", CHANGED)
    (job_id,) = jobs(made)
    made.engine.before_step = lambda name: (
        monkeypatch.setattr(made.service.bench.dispatch, "send", slow) if name == step else None
    )
    assert made.engine.run(job_id)
    assert made.asked[Verb.PROCESSING_STOP] > before.get(Verb.PROCESSING_STOP, 0)
    assert made.asked[verb] == before[verb]


def test_what_a_policy_says_last_is_what_nodes_are_told_last(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, last = made.service.bench.dispatch.send, replace(CHANGED, compression="none")

    def slow(orders: list[Order], *, job_id: str, step: str) -> list[str]:
        monkeypatch.undo()
        made.service.policies.put("main", last)
        (newer,) = [each for each in jobs(made) if each != job_id]
        made.engine.run(newer)
        return send(orders, job_id=job_id, step=step)

    made.service.policies.put("main", CHANGED)
    (job_id,) = jobs(made)
    monkeypatch.setattr(made.service.bench.dispatch, "send", slow)
    assert made.engine.run(job_id)
    assert made.last[Verb.PROCESSING_START]["compression"] == "none"
    assert made.last[Verb.REPLICATION_START]["compression"] == "none"


def test_nobody_is_told_what_does_not_concern_them(made: Site) -> None:
    made.service.policies.put("main", Policy(name="default"))
    made.service.policies.put("main", replace(CHANGED, name="gold"))
    made.service.policies.put("main", replace(CHANGED, name="gold", compression="none"))
    assert jobs(made) == []


def test_a_policy_that_encrypts_without_a_key_changes_nothing(made: Site) -> None:
    with pytest.raises(Conflict, match="vault main has no key"):
        made.service.policies.put("main", replace(CHANGED, encryption=AES_256_GCM))
    with made.vault.read() as records:
        assert records.resources.get(Policy, "main", "default").value == Policy(name="default")
    assert jobs(made) == []


def test_a_silent_source_is_told_when_it_comes_back(made: Site) -> None:
    made.mute(made.source)
    made.silence(made.source)
    made.service.policies.put("main", CHANGED)
    (job_id,) = jobs(made)
    made.engine.run(job_id)
    assert made.last[Verb.REPLICATION_START]["cut_interval_seconds"] == 1.0
    made.unmute(made.source)
    assert made.last[Verb.REPLICATION_START]["cut_interval_seconds"] == 2.5


def test_what_a_vm_becomes_is_changed_in_vault_and_catalog(made: Site) -> None:
    changes = ItemChanges(memory_mib=640, target_vm="web-dr")
    job = made.service.updates.update("main", "web-1", changes)
    assert made.run(job).state is JobState.SUCCEEDED
    about = made.last[Verb.PROCESSING_START]["about"]
    assert isinstance(about, dict)
    assert (about["target_vm"]["memory_mib"], about["item"]["target_vm"]) == (640, "web-dr")
    made.run(made.service.failovers.failover("main", "web-1", "latest"))
    with made.vault.read() as records:
        assert records.resources.get(VirtualMachine, "west", "web-dr").value.memory_mib == 640


def test_more_memory_than_a_host_of_the_target_has_is_refused_when_it_is_chosen(
    made: Site,
) -> None:
    told = NodeStatus(storage_root="/somewhere", memory_available_mib=100, memory_total_mib=2000)
    made.service.monitor.take_status(made.target, told)
    with pytest.raises(Conflict, match="n-1 has 2000") as refused:
        made.service.updates.update("main", "web-1", ItemChanges(memory_mib=2001))
    assert refused.value.field == "memory_mib"
    with made.vault.read() as records:
        assert records.items.get("main", "web-1").target_vm.memory_mib == 256
    made.service.updates.update("main", "web-1", ItemChanges(memory_mib=2000))


def test_an_item_follows_another_policy_at_once(made: Site) -> None:
    made.service.policies.put("main", replace(CHANGED, name="gold"))
    job = made.service.updates.update("main", "web-1", ItemChanges(policy="gold"))
    assert made.run(job).state is JobState.SUCCEEDED
    assert made.last[Verb.REPLICATION_START]["cut_interval_seconds"] == 2.5
    assert made.last[Verb.PROCESSING_START]["compression"] == "lz4"


def test_a_policy_that_an_item_cannot_follow_is_refused(made: Site) -> None:
    made.service.policies.put("main", replace(CHANGED, name="sealed", encryption=AES_256_GCM))
    with pytest.raises(NotFound, match="vault main has no policy gone") as refused:
        made.service.updates.update("main", "web-1", ItemChanges(policy="gone"))
    assert refused.value.field == "policy"
    with pytest.raises(Conflict, match="vault main has no key"):
        made.service.updates.update("main", "web-1", ItemChanges(policy="sealed"))
    with made.vault.read() as records:
        assert records.items.get("main", "web-1").item.policy == "default"


def test_a_group_that_was_made_goes_with_the_item_although_it_has_left_it(made: Site) -> None:
    with made.vault.write() as records:
        mine = ResourceGroup(region="west", name="mine")
        records.resources.insert(mine, scope="west", name="mine")
    job = made.service.updates.update("main", "web-1", ItemChanges(target_resource_group="mine"))
    assert made.run(job).state is JobState.SUCCEEDED
    ended = made.service.disabling.disable("main", "web-1", delete_replica=True)
    assert made.run(ended).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        assert [g.name for g in records.resources.listed(ResourceGroup, "west")] == ["mine"]
