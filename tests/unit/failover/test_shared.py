"""Shared points count as a whole, and a group fails over to one of them together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.failover.shared import LATEST_SHARED, choose_shared, list_shared
from leeward.model.groups import ConsistencyGroup
from leeward.model.recovery import (
    Consistency,
    ItemState,
    RecoveryPoint,
    ReplicatedItem,
    SharedMark,
)

GROUP = ConsistencyGroup(id="cg-1", name="shop", vault="main", items=("db", "web"))


def mark(number: int, *members: str, group: str = "cg-1") -> SharedMark:
    return SharedMark(
        id=f"sp-{number}", group=group, members=members or ("i-db", "i-web"), time_ns=number
    )


def point(number: int, shared: SharedMark | None) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-{number}",
        epoch=1,
        sequence=number,
        time_ns=number,
        consistency=Consistency.CRASH,
        shared=shared,
    )


def item(name: str, state: ItemState = ItemState.PROTECTED, at: str = "") -> ReplicatedItem:
    return ReplicatedItem(
        id=f"i-{name}",
        name=name,
        vault="main",
        policy="default",
        state=state,
        epoch=1,
        source_region="east",
        source_vm=name,
        target_region="west",
        target_resource_group="rg",
        recovery_point=at,
    )


DB = [point(9, mark(3)), point(8, None), point(5, mark(2)), point(2, mark(1))]
WEB = [point(7, mark(2)), point(4, mark(4)), point(3, mark(1))]
SHARED = list_shared({"i-db": DB, "i-web": WEB}, GROUP)


def test_only_what_every_member_has_is_shared() -> None:
    assert [point.id for point in SHARED] == ["sp-2", "sp-1"]
    assert SHARED[0].points == {"i-db": "rp-5", "i-web": "rp-7"}
    assert list_shared({"i-db": DB}, GROUP) == ()


def test_other_groups_and_damaged_points_do_not_count() -> None:
    other = [replace(each, shared=mark(2, group="cg-2")) for each in WEB]
    assert list_shared({"i-db": DB, "i-web": other}, GROUP) == ()
    damaged = [replace(each, is_quarantined=each.id == "rp-7") for each in WEB]
    assert [p.id for p in list_shared({"i-db": DB, "i-web": damaged}, GROUP)] == ["sp-1"]


def test_members_that_have_left_must_have_it_still() -> None:
    wide = mark(5, "i-db", "i-queue", "i-web")
    points = {"i-db": [point(1, wide)], "i-web": [point(2, wide)]}
    assert list_shared(points, GROUP) == ()
    assert len(list_shared({**points, "i-queue": [point(3, wide)]}, GROUP)) == 1


def test_the_latest_or_one_by_id_is_chosen() -> None:
    items = [item("db"), item("web")]
    assert choose_shared(GROUP, items, SHARED, LATEST_SHARED).id == "sp-2"
    assert choose_shared(GROUP, items, SHARED, "sp-1").id == "sp-1"
    with pytest.raises(NotFound, match="sp-3"):
        choose_shared(GROUP, items, SHARED, "sp-3")
    with pytest.raises(NotFound, match="no shared recovery point"):
        choose_shared(GROUP, items, (), LATEST_SHARED)
    with pytest.raises(InvalidRequest, match="'latest'"):
        choose_shared(GROUP, items, SHARED, "latest")


def test_a_point_from_before_an_item_joined_does_not_fit() -> None:
    items = [item("db"), item("new"), item("web")]
    with pytest.raises(NotFound):
        choose_shared(GROUP, items, SHARED, LATEST_SHARED)


def test_those_left_follow_those_that_have_failed_over() -> None:
    moved = [item("db", ItemState.FAILED_OVER, "rp-2"), item("web")]
    assert choose_shared(GROUP, moved, SHARED, LATEST_SHARED).id == "sp-1"
    with pytest.raises(Conflict, match="not of sp-2"):
        choose_shared(GROUP, moved, SHARED, "sp-2")
    astray = [item("db", ItemState.COMMITTED, "rp-8"), item("web")]
    with pytest.raises(Conflict, match="do not share"):
        choose_shared(GROUP, astray, SHARED, LATEST_SHARED)
