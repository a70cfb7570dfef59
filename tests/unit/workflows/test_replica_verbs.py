"""Leftovers are told from what is in use, and only they can be deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.model.recovery import JobState
from leeward.model.resources import StorageAccount
from leeward.protocol.messages import Verb
from leeward.protocol.rebuild import FoundItem, FoundItems
from leeward.protocol.replicas import StoredItem, StoredItems
from leeward.workflows.item_specs import about_item

LEFT = "item-left"


def stored(url: str, item_id: str, **more: object) -> StoredItem:
    return StoredItem(url=url, item_id=item_id, objects=2, bytes=10, **more)  # type: ignore[arg-type]


def leave_behind(made: Site, *, held: int = 0, problem: str = "") -> None:
    """A leftover lies in west/attic and, without a catalog, in the account of east's disks."""
    attic = StorageAccount(region="west", name="attic", resource_group="rg", url="file:///attic")
    with made.vault.write() as records:
        records.resources.insert(attic, scope="west", name="attic")
    items = (
        stored("file:///attic", LEFT, has_catalog=True, name="db-1", held=held, point_count=4),
        stored("file:///x", LEFT),
    )
    problems = {"file:///attic": problem} if problem else {}
    made.results[Verb.REPLICAS_READ] = to_plain(StoredItems(items=items, problems=problems))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


def test_each_replica_is_of_an_item_or_left_over(made: Site) -> None:
    assert made.run(made.protect()).state is JobState.SUCCEEDED
    leave_behind(made, problem="half of it is away")
    with made.vault.read() as records:
        (record,) = records.items.listed()
    mine = stored("file:///attic", record.item.id, has_catalog=True)
    both = StoredItems(items=(mine, stored("file:///attic", LEFT)))
    made.results[Verb.REPLICAS_READ] = to_plain(both)
    job = made.run(made.service.replicas.read(region="west", account="attic"))
    assert job.state is JobState.SUCCEEDED, job.error
    replicas = job.result["replicas"]
    assert isinstance(replicas, list)
    assert {each["stored"]["item_id"]: each["used_by"] for each in replicas} == {
        record.item.id: "main/web-1",
        LEFT: "",
    }
    assert {(each["region"], each["account"]) for each in replicas} == {("west", "attic")}
    assert made.last[Verb.REPLICAS_READ] == {"urls": ["file:///attic"]}


def test_a_leftover_is_erased_everywhere_the_catalog_last(made: Site) -> None:
    leave_behind(made)
    erased: list[object] = []
    made.before_answer[Verb.REPLICA_ERASE] = lambda: erased.append(None)
    job = made.run(made.service.replicas.delete(LEFT, even_if_held=False))
    assert job.state is JobState.SUCCEEDED, job.error
    assert len(erased) == 2
    assert made.last[Verb.REPLICA_ERASE]["url"] == "file:///attic"
    assert job.result == {
        "item_id": LEFT,
        "objects": 4,
        "bytes": 20,
        "accounts": ["east/data", "west/attic"],
        "problems": [],
    }


def test_what_is_protected_is_refused_with_the_way_to_end_it(made: Site) -> None:
    assert made.run(made.protect()).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        (record,) = records.items.listed()
    with pytest.raises(Conflict, match="web-1 in vault main") as refused:
        made.service.replicas.delete(record.item.id, even_if_held=True)
    assert "unprotect web-1 --delete-replica" in str(refused.value.hint)
    assert made.asked[Verb.REPLICA_ERASE] == 0


def test_one_that_a_reader_holds_is_refused_before_anything_is_erased(made: Site) -> None:
    leave_behind(made, held=1)
    job = made.run(made.service.replicas.delete(LEFT, even_if_held=False))
    assert job.state is JobState.FAILED
    assert "1 readers" in job.error
    assert made.asked[Verb.REPLICA_ERASE] == 0
    job = made.run(made.service.replicas.delete(LEFT, even_if_held=True))
    assert job.state is JobState.SUCCEEDED, job.error
    assert made.last[Verb.REPLICA_ERASE]["even_if_held"] is True


def test_what_is_nowhere_says_so_and_which_accounts_were_not_read(made: Site) -> None:
    leave_behind(made, problem="its root is gone")
    job = made.run(made.service.replicas.delete("item-none", even_if_held=False))
    assert job.state is JobState.FAILED
    assert "not read: west/attic: its root is gone" in job.error


def test_what_cannot_be_says_why(made: Site) -> None:
    with pytest.raises(InvalidRequest, match="item_id"):
        made.service.replicas.delete("no/../name", even_if_held=False)
    with pytest.raises(NotFound, match="no storage account attic in region west"):
        made.service.replicas.read(region="west", account="attic")
    made.silence(made.worker)
    made.silence(made.source_worker)
    with pytest.raises(Unavailable, match="no worker answers"):
        made.service.replicas.read(region="", account="")


def test_an_item_is_not_rebuilt_while_it_is_being_deleted(made: Site) -> None:
    assert made.run(made.protect()).state is JobState.SUCCEEDED
    with made.vault.write() as records:
        (record,) = records.items.listed()
        about = about_item(records, record)
        records.items.delete(record.item.id)
    found = FoundItem(item_id=record.item.id, epoch=1, about=about, point_count=1)
    made.results[Verb.STORES_READ] = to_plain(FoundItems(items=(found,)))
    made.service.replicas.delete(record.item.id, even_if_held=False)
    job = made.run(made.service.rebuilding.rebuild(["file:///x"], region="west"))
    problems = [f"{record.item.id}: what is stored of it is being deleted"]
    assert job.result == {"items": [], "problems": problems}
