"""Rows: created once, changed from the version that was read, answered once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from leeward.core.errors import Conflict, NotAllowed, NotFound
from leeward.model.recovery import (
    Consistency,
    FrozenTime,
    ItemState,
    JobState,
    JobStep,
    RecoveryPoint,
    ReplicatedItem,
)
from leeward.model.resources import Region, ResourceGroup, VirtualMachine
from leeward.protocol.messages import Command, CommandResult, EnrolmentRequest, Role, Verb
from leeward.vault.database import sqlite_url
from leeward.vault.events import Event
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.records import Records, VaultStore
from leeward.vault.resources import ResourceState

REQUEST = EnrolmentRequest(token="t", role=Role.AGENT, region="east", name="h", key="k1")
ITEM = ItemRecord(
    item=ReplicatedItem(
        id="item-1",
        name="web-1",
        vault="main",
        policy="default",
        state=ItemState.PROTECTED,
        epoch=1,
        source_region="east",
        source_vm="web-1",
        target_region="west",
        target_resource_group="rg",
    ),
    target_vm=VirtualMachine(region="west", name="web-1", resource_group="rg"),
    cache_region="east",
)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    vault = VaultStore.open(sqlite_url(tmp_path / "vault.sqlite"))
    with vault.write() as opened:
        yield opened
    vault.close()


def point(sequence: int, epoch: int = 1) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-{epoch}-{sequence}",
        epoch=epoch,
        sequence=sequence,
        time_ns=sequence,
        consistency=Consistency.CRASH,
    )


def test_a_resource_changes_only_from_the_version_read(records: Records) -> None:
    group = ResourceGroup(region="east", name="rg")
    records.resources.insert(group, scope="east", name="rg", state=ResourceState.CREATING)
    first = records.resources.get(ResourceGroup, "east", "rg")
    records.resources.update(first, state=ResourceState.READY)
    with pytest.raises(Conflict, match="just been changed"):
        records.resources.update(first, state=ResourceState.DELETING)
    assert records.resources.get(ResourceGroup, "east", "rg").state is ResourceState.READY
    assert records.resources.find(ResourceGroup, "west", "rg") is None
    with pytest.raises(NotFound, match="there is no region west"):
        records.resources.get(ResourceGroup, "west", "rg")
    records.resources.insert(Region(name="west"), scope="", name="west")
    with pytest.raises(NotFound, match="there is no resource group rg in west"):
        records.resources.get(ResourceGroup, "west", "rg")


def test_a_token_enrols_once_and_its_repetition_is_harmless(records: Records) -> None:
    records.nodes.add_token("t", region="east", expires_ns=100)
    node = records.nodes.enrol(REQUEST, now_ns=1)
    assert records.nodes.enrol(REQUEST, now_ns=1000) == node
    with pytest.raises(NotAllowed, match="has been used"):
        records.nodes.enrol(replace(REQUEST, key="k2"), now_ns=1)
    assert records.nodes.authenticate(node.id, "k1") == node
    with pytest.raises(NotAllowed):
        records.nodes.authenticate(node.id, "k2")


def test_a_new_token_replaces_a_nodes_key(records: Records) -> None:
    for token in ("t", "u"):
        records.nodes.add_token(token, region="east", expires_ns=100)
    node = records.nodes.enrol(REQUEST, now_ns=1)
    again = records.nodes.enrol(replace(REQUEST, token="u", key="k2"), now_ns=1)
    assert again.id == node.id
    assert records.nodes.authenticate(node.id, "k2").id == node.id


@pytest.mark.parametrize(
    ("request_", "now_ns"),
    [
        (replace(REQUEST, token="x"), 1),
        (replace(REQUEST, region="west"), 1),
        (REQUEST, 101),
    ],
    ids=["unknown", "other region", "expired"],
)
def test_a_wrong_token_is_refused(
    records: Records, request_: EnrolmentRequest, now_ns: int
) -> None:
    records.nodes.add_token("t", region="east", expires_ns=100)
    with pytest.raises(NotAllowed):
        records.nodes.enrol(request_, now_ns=now_ns)


def test_a_command_is_queued_once_and_answered_once(records: Records) -> None:
    records.nodes.add_token("t", region="east", expires_ns=100)
    node = records.nodes.enrol(REQUEST, now_ns=1).id
    commands = [Command(id=name, verb=Verb.VM_START, arguments={"n": name}) for name in "ba"]
    for command in (*commands, *commands):
        records.commands.enqueue(command, node_id=node, job_id="job-1", now_ns=1)
    assert records.commands.open_for(node) == commands
    first = CommandResult(command_id="b", ok=True, result={"x": 1})
    assert records.commands.answer(first, node_id=node, now_ns=2)
    late = CommandResult(command_id="b", ok=False, error="late")
    assert not records.commands.answer(late, node_id=node, now_ns=3)
    records.commands.withdraw("b", now_ns=4)
    found = records.commands.find("b")
    assert found is not None
    assert found.answer == first
    assert records.commands.open_for(node) == commands[1:]
    with pytest.raises(NotFound):
        records.commands.answer(CommandResult(command_id="a", ok=True), node_id="another", now_ns=2)


def test_a_job_ends_once(records: Records) -> None:
    records.jobs.create(job_id="job-1", verb="v", target="t", arguments={"a": [1]}, now_ns=1)
    records.jobs.started("job-1")
    step = JobStep(name="s", state=JobState.RUNNING, started_ns=1)
    records.jobs.put_step("job-1", 0, step)
    records.jobs.put_step("job-1", 0, replace(step, bytes_done=5))
    assert records.jobs.get("job-1").steps == (replace(step, bytes_done=5),)
    assert records.jobs.open_ids() == ["job-1"]
    assert records.jobs.end("job-1", JobState.SUCCEEDED, now_ns=2, result={"r": 1})
    assert not records.jobs.end("job-1", JobState.FAILED, now_ns=3)
    assert records.jobs.get("job-1").result == {"r": 1}
    assert records.jobs.open_ids() == []
    with pytest.raises(Conflict, match="already ended"):
        records.jobs.request_cancel("job-1")


def test_a_key_stands_for_one_request(records: Records) -> None:
    key = IdempotencyKey(key="k", fingerprint="f")
    assert records.jobs.job_of_key(key) is None
    records.jobs.keep_key(key, "job-1", now_ns=1)
    assert records.jobs.job_of_key(key) == "job-1"
    with pytest.raises(Conflict, match="another request"):
        records.jobs.job_of_key(IdempotencyKey(key="k", fingerprint="g"))
    records.jobs.purge(keys_before_ns=2, jobs_before_ns=0)
    assert records.jobs.job_of_key(key) is None


def test_points_are_listed_newest_first_and_once(records: Records) -> None:
    records.items.insert(ITEM)
    assert records.points.add("item-1", [point(1), point(2)]) == 2
    assert records.points.add("item-1", [point(2), point(1, epoch=2)]) == 1
    listed = [p.id for p in records.points.listed("item-1")]
    assert listed == ["rp-2-1", "rp-1-2", "rp-1-1"]
    newest = records.points.newest("item-1")
    assert newest == point(1, epoch=2)
    assert records.points.find("item-1", "rp-1-2") == point(2)
    assert records.points.find("item-1", "rp-9-9") is None
    records.points.remove("item-1", ["rp-1-2", "unknown"])
    assert len(records.points.listed("item-1")) == 2
    records.points.keep("item-1", {"rp-1-1", "unknown"})
    assert [p.id for p in records.points.listed("item-1")] == ["rp-1-1"]
    records.items.delete("item-1")
    assert records.points.listed("item-1") == []


def test_an_item_changes_only_from_the_version_read(records: Records) -> None:
    records.items.insert(ITEM)
    read = records.items.get("main", "web-1")
    changed = records.items.update(replace(read, worker_id="w"))
    assert changed.version == read.version + 1
    with pytest.raises(Conflict, match="just been changed"):
        records.items.update(read)
    assert records.items.listed(region="west") == records.items.listed(region="east")
    assert records.items.listed(region="north") == []


def test_a_point_remembers_how_long_its_guest_stood_still(records: Records) -> None:
    records.items.insert(ITEM)
    frozen = replace(point(1), frozen=FrozenTime(total_ns=120_000_000, ours_ns=300_000))
    records.points.add("item-1", [frozen, point(2)])
    assert records.points.listed("item-1") == [point(2), frozen]


def test_points_come_and_go_by_the_thousand(records: Records) -> None:
    records.items.insert(ITEM)
    points = [point(sequence) for sequence in range(1, 1502)]
    assert records.points.add("item-1", points) == 1501
    assert records.points.add("item-1", [*points[-3:], point(1502)]) == 1
    records.points.remove("item-1", [each.id for each in points])
    assert [each.sequence for each in records.points.listed("item-1")] == [1502]


def test_events_and_spent_tokens_do_not_grow_for_ever(records: Records) -> None:
    for number in range(5):
        records.events.add(
            Event(time_ns=number, target="item/web-1", kind="item_degraded", message=str(number))
        )
    records.events.purge(before_ns=1, count_max=2)
    assert [event.message for event in records.events.listed(limit=9)] == ["4", "3"]
    records.nodes.add_token("t", region="east", expires_ns=10)
    records.nodes.purge_tokens(expired_before_ns=10)
    records.nodes.enrol(REQUEST, now_ns=1)
    records.nodes.purge_tokens(expired_before_ns=11)
    with pytest.raises(NotAllowed):
        records.nodes.enrol(REQUEST, now_ns=1)


def test_the_token_of_a_forgotten_node_is_spent(records: Records) -> None:
    records.nodes.add_token("t", region="east", expires_ns=100)
    records.nodes.delete(records.nodes.enrol(REQUEST, now_ns=1).id)
    with pytest.raises(NotAllowed, match="has been used"):
        records.nodes.enrol(REQUEST, now_ns=1)
