"""Which items can be a consistency group, and how often one is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest
from leeward.model.groups import ConsistencyGroup
from leeward.model.recovery import ItemState, ReplicatedItem
from leeward.protection.groups import check_group, seconds_until_next


def item(name: str, **given: str) -> ReplicatedItem:
    made = ReplicatedItem(
        id=f"i-{name}",
        name=name,
        vault="main",
        policy="default",
        state=ItemState.PROTECTED,
        epoch=1,
        source_region="east",
        source_vm=name,
        target_region="west",
        target_resource_group="rg",
    )
    return replace(made, **given)  # type: ignore[arg-type]


ITEMS = {
    each.name: each
    for each in (
        item("db"),
        item("web"),
        item("far", source_region="north"),
        item("gold", policy="gold"),
    )
}


def group(*items: str, name: str = "shop") -> ConsistencyGroup:
    return ConsistencyGroup(id="cg-1", name=name, vault="main", items=items)


def test_items_that_go_the_same_way_under_one_policy_are_a_group() -> None:
    check_group(group("db", "web"), ITEMS, [group("db", "web")])


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (("db",), "2 to 32"),
        (("db", "db"), "named twice"),
        (("db", "none"), "no replicated item none"),
        (("db", "far"), "far from north to west"),
        (("db", "gold"), "kept to one policy"),
    ],
)
def test_others_are_not(items: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        check_group(group(*items), ITEMS, [])
    assert caught.value.field == "items"


def test_names_are_names_and_an_item_is_in_one_group() -> None:
    with pytest.raises(InvalidRequest):
        check_group(group("db", "web", name="Shop!"), ITEMS, [])
    with pytest.raises(Conflict, match="db is in consistency group old already"):
        check_group(group("db", "web"), ITEMS, [group("db", "x", name="old")])


def test_attempts_in_vain_are_repeated_soon_and_then_less_often() -> None:
    assert [seconds_until_next(60, failures) for failures in (0, 1, 2, 5, 20)] == [60, 2, 4, 32, 60]
    assert [seconds_until_next(1, failures) for failures in (0, 1, 20)] == [1, 1, 1]
    assert seconds_until_next(3600, 20) == 60
