"""Every verb of an item asked for in every state: begun, or refused in one sentence that says what
to do, and then the vault is as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site
from tests.unit.workflows.test_every_verb import at_last, moved

from leeward.core.errors import Conflict
from leeward.model.recovery import ItemState, JobState, Rehearsal
from leeward.protection.update import ItemChanges
from leeward.protocol.messages import NodeStatus

VERBS: dict[str, Callable[[Site], object]] = {
    "protect": lambda made: made.protect(),
    "failover": lambda made: made.service.failovers.failover("main", "web-1", "latest"),
    "planned failover": lambda made: made.service.planned.failover(
        "main", "web-1", "latest", power_off_seconds=1
    ),
    "change": lambda made: made.service.failovers.change("main", "web-1", made.points[-1].id),
    "commit": lambda made: made.service.failovers.commit("main", "web-1"),
    "undo-commit": lambda made: made.service.reprotection.undo_commit("main", "web-1"),
    "reprotect": lambda made: made.service.reprotection.reprotect("main", "web-1"),
    "test": lambda made: made.service.rehearsals.start("main", "web-1"),
    "clean up": lambda made: made.service.rehearsals.clean_up("main", "web-1"),
    "update": lambda made: made.service.updates.update("main", "web-1", ItemChanges(vcpus=3)),
    "unprotect": lambda made: made.service.disabling.disable("main", "web-1", delete_replica=False),
}
_S = ItemState
REPLICATED = {_S.PROTECTED, _S.RESYNCING, _S.DEGRADED}
BEGUN_IN: dict[str, set[ItemState]] = {
    "protect": set(),
    "failover": {_S.FAILING_OVER, *REPLICATED},  # of a failover whose job was lost
    "planned failover": {_S.PROTECTED, _S.RESYNCING},
    "change": {_S.FAILED_OVER},
    "commit": {_S.FAILED_OVER},
    "undo-commit": {_S.COMMITTED},
    "reprotect": {_S.COMMITTED},
    "test": REPLICATED,
    "clean up": set(),
    "update": {_S.PROTECTING, _S.INITIAL_REPLICATION, *REPLICATED},
    "unprotect": set(_S),
}


def be_protected(made: Site) -> None:
    """web-1 is an item with a recovery point, and no job is at it."""
    assert made.run(made.protect()).state is JobState.SUCCEEDED


def has_failed_over(made: Site) -> None:
    """web-1 has failed over, and there is another point."""
    moved(made)
    made.points.append(replace(made.points[0], id="rp-1-9", sequence=9))
    made.say()


def be(made: Site, state: ItemState, *, has_test_vm: bool = False) -> None:
    """The item is in `state`."""
    test_vm = Rehearsal(recovery_point="rp", region="west", host="n-1", vm_id="t")
    with made.vault.write() as records:
        (record,) = records.items.listed()
        item = replace(record.item, state=state, rehearsal=test_vm if has_test_vm else None)
        records.items.update(replace(record, item=item, is_hydrated=True))


def dump(directory: Path) -> str:
    """Return every row of the vault."""
    with closing(sqlite3.connect(directory / "vault.sqlite")) as database:
        return "\n".join(database.iterdump())


@pytest.mark.parametrize("verb", VERBS)
def test_refused_where_it_makes_no_sense(tmp_path: Path, verb: str) -> None:
    with site(tmp_path) as made:
        be_protected(made)
        for state in set(ItemState) - BEGUN_IN[verb]:
            be(made, state)
            check_refused(made, tmp_path, verb, by="web-1")


@pytest.mark.parametrize("verb", ["test", "failover", "planned failover", "unprotect"])
def test_a_test_vm_stands_in_no_failovers_way(tmp_path: Path, verb: str) -> None:
    with site(tmp_path) as made:
        be_protected(made)
        be(made, ItemState.PROTECTED, has_test_vm=True)
        if "failover" in verb:
            VERBS[verb](made)
        else:
            check_refused(made, tmp_path, verb, by="test-failover-cleanup")


@pytest.mark.parametrize(
    ("verb", "way"),
    [
        *(("failover", be_protected), ("planned failover", be_protected), ("test", be_protected)),
        *(("change", has_failed_over), ("reprotect", at_last)),
    ],
)
def test_begun_where_it_does_and_once(
    tmp_path: Path, verb: str, way: Callable[[Site], None]
) -> None:
    with site(tmp_path) as made:
        way(made)
        VERBS[verb](made)
        check_refused(made, tmp_path, verb, by="web-1")


@pytest.mark.parametrize(
    ("under_way", "way"),
    [("failover", be_protected), ("planned failover", be_protected), ("reprotect", at_last)],
)
@pytest.mark.parametrize("verb", ["failover", "planned failover", "unprotect"])
def test_nothing_moves_an_item_beside_the_job_that_does(
    tmp_path: Path, under_way: str, way: Callable[[Site], None], verb: str
) -> None:
    with site(tmp_path) as made:
        way(made)
        VERBS[under_way](made)
        check_refused(made, tmp_path, verb, by="web-1")


def test_a_region_whose_hosts_are_too_small_for_the_vm(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        small = NodeStatus(storage_root="/somewhere", memory_total_mib=16)
        made.service.monitor.take_status(made.target, small)
        check_refused(made, tmp_path, "protect", by="n-1 has 16")


@pytest.mark.parametrize("verb", ["failover", "planned failover", "test"])
def test_a_region_whose_hosts_are_full(tmp_path: Path, verb: str) -> None:
    with site(tmp_path) as made:
        be_protected(made)
        full = NodeStatus(storage_root="/somewhere", memory_available_mib=100)
        made.service.monitor.take_status(made.target, full)
        check_refused(made, tmp_path, verb, by="n-1 has 100")


def check_refused(made: Site, directory: Path, verb: str, *, by: str) -> None:
    """The verb is refused in one sentence with a way out, and the vault is as it was."""
    before = dump(directory)
    with pytest.raises(Conflict) as refused:
        VERBS[verb](made)
    assert by in str(refused.value), refused.value
    assert refused.value.hint, refused.value.message
    assert "\n" not in str(refused.value)
    assert dump(directory) == before
