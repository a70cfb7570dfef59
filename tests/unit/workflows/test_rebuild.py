"""A vault that knows an item already is not changed by what stores say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import to_plain
from leeward.model.recovery import JobState
from leeward.protocol.messages import Verb
from leeward.protocol.rebuild import FoundItem, FoundItems
from leeward.workflows.item_specs import about_item


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        made.say()
        yield made


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
