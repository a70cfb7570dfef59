"""A vault that knows an item already is not changed by what stores say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import from_plain, to_plain
from leeward.model.recovery import JobState
from leeward.model.resources import StorageAccount
from leeward.protocol.messages import Verb
from leeward.protocol.rebuild import FoundItem, FoundItems
from leeward.workflows import rebuild_verbs
from leeward.workflows.item_specs import about_item, processing_spec


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(rebuild_verbs, "POINTS_SECONDS", 0.0)  # nobody tells of any
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        made.say()
        yield made


@dataclass(frozen=True, slots=True)
class Result:
    items: tuple[str, ...]
    problems: tuple[str, ...]


def find_it_in_stores(made: Site) -> None:
    with made.vault.read() as records:
        (record,) = records.items.listed()
        about = about_item(records, record)
    found = FoundItem(item_id=record.item.id, epoch=1, about=about, point_count=1)
    made.results[Verb.STORES_READ] = to_plain(FoundItems(items=(found,)))


def test_an_item_that_the_vault_knows_is_left_alone(made: Site) -> None:
    """One that has failed over is not processed again: its points and its log stay as they are."""
    find_it_in_stores(made)
    job = made.run(made.service.failovers.failover("main", "web-1", "latest"))
    assert job.state is JobState.SUCCEEDED
    made.say()
    with made.vault.read() as records:
        before = records.items.listed()
    made.last.pop(Verb.PROCESSING_START, None)
    job = made.run(made.service.rebuilding.rebuild(["file:///x"], region="west"))
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"items": ["web-1"], "problems": []})
    assert Verb.PROCESSING_START not in made.last
    with made.vault.read() as records:
        assert records.items.listed() == before


def lose_the_vault(made: Site, items: dict[str, dict[str, str]]) -> None:
    """Each of these items is found in stores. items: item id → disk → URL of its replica."""
    with made.vault.write() as records:
        (record,) = records.items.listed()
        about = about_item(records, record)
        (mapping, *_) = about.item.disks
        records.items.delete(record.item.id)
        records.resources.delete(StorageAccount, "west", mapping.target_account)
    found = [
        FoundItem(
            item_id=item_id,
            epoch=1,
            about=replace(about, item=replace(about.item, id=item_id, name=f"vm-{item_id}")),
            urls={mapping.disk: urls["system"]} if urls else {},
        )
        for item_id, urls in items.items()
    ]
    made.results[Verb.STORES_READ] = to_plain(FoundItems(items=tuple(found)))


@pytest.mark.parametrize("ids", [("item-1", "item-2"), ("item-2", "item-1")])
def test_an_account_is_where_any_item_of_it_was_found(made: Site, ids: tuple[str, str]) -> None:
    """An item of which nothing is stored there says where the account was, not where it is."""
    found: dict[str, dict[str, str]] = {"item-1": {}, "item-2": {"system": "file:///elsewhere"}}
    lose_the_vault(made, {each: found[each] for each in ids})
    job = made.run(made.service.rebuilding.rebuild(["file:///x"], region="west"))
    assert job.result == {"items": ["vm-item-1", "vm-item-2"], "problems": []}
    with made.vault.read() as records:
        for each in ids:
            replica = processing_spec(records, records.items.by_ids([each])[each]).replicas[0]
            assert replica.target_url == "file:///elsewhere"


def test_an_item_whose_account_is_somewhere_else_is_refused(made: Site) -> None:
    lose_the_vault(made, {"item-1": {"system": "file:///a"}, "item-2": {"system": "file:///b"}})
    job = made.run(made.service.rebuilding.rebuild(["file:///x"], region="west"))
    result = from_plain(job.result, Result)
    assert result.items == ("vm-item-1",)
    (problem,) = result.problems
    assert "is at file:///a" in problem
    assert "is at file:///b" in problem
