"""An item goes over to another cache account: source held, worker first, or all as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.model.recovery import ItemState, Job, JobState, ReplicatedItem
from leeward.model.resources import ResourceGroup, StorageAccount
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.workflows.item_specs import about_item

MADE = "main-east-cache"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        add(made, "east", "more")
        add(made, "west", "away")
        yield made


def add(made: Site, region: str, name: str) -> None:
    account = StorageAccount(
        region=region, name=name, resource_group="rg", url=f"file:///{name}", disk_directory="/y"
    )
    with made.vault.write() as records:
        if records.resources.find(ResourceGroup, region, "rg") is None:
            records.resources.insert(
                ResourceGroup(region=region, name="rg"), scope=region, name="rg"
            )
        records.resources.insert(account, scope=region, name=name)


def change(made: Site, account: str = "more") -> Job:
    return made.service.caches.change("main", "web-1", account)


def record(made: Site) -> ItemRecord:
    with made.vault.read() as records:
        (found,) = records.items.listed()
    return found


def item(made: Site) -> ReplicatedItem:
    return record(made).item


def accounts(made: Site) -> list[str]:
    with made.vault.read() as records:
        return [stored.name for stored in records.resources.listed(StorageAccount, "east")]


def told(made: Site) -> list[tuple[Verb, object, object]]:
    """Return, from now on, what nodes are told of caches."""
    seen: list[tuple[Verb, object, object]] = []
    for verb in (Verb.REPLICATION_START, Verb.PROCESSING_START, Verb.CACHE_CHANGE):

        def note(verb: Verb = verb) -> None:
            said = made.last[verb]
            seen.append((verb, said["cache_url"], said.get("is_held")))

        made.before_answer[verb] = note
    return seen


def test_the_source_is_held_until_the_worker_has_the_new_cache(made: Site) -> None:
    seen, former = told(made), made.last[Verb.REPLICATION_START]["cache_url"]
    assert made.run(change(made)).state is JobState.SUCCEEDED
    assert seen == [
        (Verb.REPLICATION_START, former, True),
        (Verb.CACHE_CHANGE, "file:///more", None),
        (Verb.PROCESSING_START, "file:///more", None),
        (Verb.REPLICATION_START, "file:///more", False),
    ]
    assert made.last[Verb.CACHE_ERASE]["url"] == former
    assert (item(made).cache_account, record(made).cache_region) == ("more", "east")
    assert item(made).next_cache_account == ""


def test_the_account_that_is_left_can_go_and_the_new_one_cannot(made: Site) -> None:
    assert MADE in accounts(made)
    assert made.run(change(made)).state is JobState.SUCCEEDED
    assert MADE not in accounts(made), "a protection made it, nothing uses it"
    with pytest.raises(Conflict, match="web-1"):
        made.service.resources.delete_real(StorageAccount, "east", "more")
    add(made, "east", "third")
    assert made.run(change(made, "third")).state is JobState.SUCCEEDED
    assert "more" in accounts(made), "a person made it"
    job = made.service.resources.delete_real(StorageAccount, "east", "more")
    assert made.run(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize("verb", [Verb.REPLICATION_START, Verb.CACHE_CHANGE])
def test_what_a_node_refuses_is_undone(made: Site, verb: Verb) -> None:
    former = made.last[Verb.REPLICATION_START]["cache_url"]
    job = change(made)

    def once() -> None:
        made.refuse.pop(verb, None)

    made.refuse[verb] = Unavailable("no space left")
    made.engine.before_step = lambda name: once() if name == "keep" else None
    ended = made.run(job)
    assert ended.state is JobState.FAILED
    assert "no space left" in ended.error
    assert (item(made).cache_account, item(made).next_cache_account) == (MADE, "")
    for verb in (Verb.PROCESSING_START, Verb.REPLICATION_START):
        assert made.last[verb]["cache_url"] == former
    assert made.last[Verb.REPLICATION_START]["is_held"] is False
    assert made.last[Verb.CACHE_ERASE]["url"] == "file:///more"
    assert MADE in accounts(made)


def test_both_accounts_stay_while_it_goes_over(made: Site) -> None:
    change(made)
    for name in (MADE, "more"):
        with pytest.raises(Conflict, match="web-1"):
            made.service.resources.delete_real(StorageAccount, "east", name)


def test_what_needs_the_source_waits_for_the_end(made: Site) -> None:
    change(made)
    with pytest.raises(Conflict, match="going over to cache account more"):
        change(made, "sys")
    with pytest.raises(Conflict, match="going over to cache account more"):
        made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1)


def test_a_failover_meanwhile_goes_first(made: Site) -> None:
    job = change(made)
    assert not made.engine.run(job.id, kill_at=1, after_action=True)
    failover = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(failover).state is JobState.SUCCEEDED
    asked = dict(made.asked)
    assert made.run(job).state is JobState.FAILED
    assert (item(made).state, item(made).next_cache_account) == (ItemState.FAILED_OVER, "")
    for verb in (Verb.PROCESSING_START, Verb.REPLICATION_START):
        assert made.asked[verb] == asked[verb]


def test_a_source_that_goes_on_under_another_epoch_is_not_left_held(made: Site) -> None:
    job = change(made)
    assert not made.engine.run(job.id, kill_at=0, after_action=True)
    assert made.last[Verb.REPLICATION_START]["is_held"] is True
    with made.vault.write() as records:  # failed over and turned round twice meanwhile
        (found,) = records.items.listed()
        records.items.update(replace(found, item=replace(found.item, epoch=7)))
    assert made.run(job).state is JobState.FAILED
    told = made.last[Verb.REPLICATION_START]
    assert (told["is_held"], told["epoch"]) == (False, 7)
    assert item(made).cache_account == MADE


def test_a_failover_ends_the_change_at_once(made: Site) -> None:
    """Whatever of the source goes on should the failover fail does so with nothing held back."""
    change(made)
    made.service.failovers.failover("main", "web-1", "latest")
    assert item(made).next_cache_account == ""


def test_a_catalog_never_says_that_it_goes_over(made: Site) -> None:
    """A vault made anew from it has no job that would end it."""
    change(made)
    with made.vault.read() as records:
        assert about_item(records, record(made)).item.next_cache_account == ""


@pytest.mark.parametrize(
    ("account", "error", "said"),
    [
        ("away", NotFound, "no storage account away in east"),
        ("gone", NotFound, "no storage account gone in east"),
        (MADE, InvalidRequest, "there already"),
    ],
)
def test_an_account_that_will_not_do_is_refused(
    made: Site, account: str, error: type[LeewardError], said: str
) -> None:
    with pytest.raises(error, match=said) as refused:
        change(made, account)
    assert refused.value.field == "cache_account"
    assert item(made).next_cache_account == ""


@pytest.mark.parametrize("role", ["source", "worker"])
def test_silent_nodes_are_told_of_at_once(made: Site, role: str) -> None:
    made.silence(getattr(made, role))
    with pytest.raises(Unavailable, match="does not answer"):
        change(made)
    assert item(made).next_cache_account == ""


@pytest.mark.parametrize(
    "state",
    [
        state
        for state in ItemState
        if state not in (ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED)
    ],
)
def test_only_what_is_replicated_goes_over(made: Site, state: ItemState) -> None:
    with made.vault.write() as records:
        (found,) = records.items.listed()
        records.items.update(replace(found, item=replace(found.item, state=state)))
    with pytest.raises(Conflict, match="web-1 is"):
        change(made)
