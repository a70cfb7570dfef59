"""Network mappings: both directions, heeded by the next protection, and nothing by halves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.model.recovery import JobState, NetworkMapping
from leeward.model.resources import VirtualNetwork
from leeward.vault.resources import ResourceState

THERE = NetworkMapping(
    source_region="east", source_network="corp", target_region="west", target_network="dr"
)
BACK = NetworkMapping(
    source_region="west", source_network="dr", target_region="east", target_network="corp"
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        with made.vault.write() as records:
            corp = records.resources.get(VirtualNetwork, "east", "corp").value
            for name in ("dr", "other"):
                there = replace(corp, region="west", name=name)
                records.resources.insert(there, scope="west", name=name)
        yield made


def test_both_directions_or_one(made: Site) -> None:
    made.service.mappings.put(THERE, is_one_way=False)
    assert made.service.mappings.listed() == (THERE, BACK)
    changed = replace(THERE, target_network="other")
    made.service.mappings.put(changed, is_one_way=True)
    assert made.service.mappings.listed() == (changed, BACK)
    made.service.mappings.delete("east", "corp", "west")
    assert made.service.mappings.listed() == (BACK,)
    with pytest.raises(NotFound, match="not mapped into west"):
        made.service.mappings.delete("east", "corp", "west")


def test_the_next_protection_heeds_it(made: Site) -> None:
    made.service.mappings.put(THERE, is_one_way=False)
    assert made.run(made.protect()).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        (record,) = records.items.listed()
    assert [nic.network for nic in record.target_vm.nics] == ["dr"]
    made.service.mappings.delete("east", "corp", "west")
    with made.vault.read() as records:
        assert records.items.listed()[0].target_vm == record.target_vm


@pytest.mark.parametrize(
    ("wrong", "kind", "field"),
    [
        (replace(THERE, source_network="x"), NotFound, "source_network"),
        (replace(THERE, target_network="x"), NotFound, "target_network"),
        (replace(THERE, target_region="east"), InvalidRequest, "target_region"),
    ],
)
def test_what_makes_no_sense(
    made: Site, wrong: NetworkMapping, kind: type[LeewardError], field: str
) -> None:
    with pytest.raises(kind) as refused:
        made.service.mappings.put(wrong, is_one_way=False)
    assert refused.value.field == field
    assert made.service.mappings.listed() == ()


def test_a_network_that_is_just_being_deleted(made: Site) -> None:
    with made.vault.write() as records:
        records.resources.set_state(VirtualNetwork, "west", "dr", ResourceState.DELETING)
    with pytest.raises(Conflict, match="just being deleted"):
        made.service.mappings.put(THERE, is_one_way=False)
    assert made.service.mappings.listed() == ()
