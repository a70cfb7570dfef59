"""Each check refuses what it is for, all refusals are said at once, and the page says the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.protection.test_plan import HEALTHY, INVENTORY, OPTIONS, VM, after, plan

from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.model.resources import PowerState
from leeward.protection.support import ASPECTS, Aspect, Candidate, check_support, matrix_page

PAGE = Path(__file__).resolve().parents[3] / "docs" / "support-matrix.md"
GOOD = Candidate(vault="main", vm=VM, condition=HEALTHY, inventory=INVENTORY, options=OPTIONS)
BAD: dict[str, Callable[[], list[Candidate]]] = {
    "Target region": lambda: [replace(GOOD, options=replace(OPTIONS, target_region="east"))],
    "Nodes of the target region": lambda: [
        replace(GOOD, inventory=replace(INVENTORY, regions_with_agents=frozenset())),
        replace(GOOD, inventory=replace(INVENTORY, regions_with_workers=frozenset())),
    ],
    "Number of protections": lambda: [
        replace(GOOD, inventory=after(plan())),
        replace(GOOD, vm=replace(VM, region="west"), inventory=after(plan())),
        replace(GOOD, vm=replace(VM, region="north"), inventory=after(plan())),
    ],
    "Host": lambda: [replace(GOOD, condition=replace(HEALTHY, is_host_answering=False))],
    "Power": lambda: [
        replace(GOOD, condition=replace(HEALTHY, power=PowerState.STOPPED)),
        replace(GOOD, condition=replace(HEALTHY, is_made=False)),
    ],
    "Choice of disks": lambda: [
        replace(GOOD, options=replace(OPTIONS, exclude_disks=("x",))),
        replace(GOOD, options=replace(OPTIONS, target_accounts={"x": "y"})),
    ],
    "System disk": lambda: [
        replace(GOOD, vm=replace(VM, disks=())),
        replace(GOOD, options=replace(OPTIONS, exclude_disks=("system",))),
    ],
    "Storage accounts of the source's disks": lambda: [
        replace(GOOD, inventory=replace(INVENTORY, accounts=()))
    ],
    "Interfaces": lambda: [replace(GOOD, inventory=replace(INVENTORY, networks=()))],
    "Choice of networks and addresses": lambda: [
        replace(GOOD, options=replace(OPTIONS, target_networks={"x": "y"})),
        replace(GOOD, options=replace(OPTIONS, addresses={"x": "10.10.1.9"})),
    ],
}


@pytest.mark.parametrize("aspect", [a for a in ASPECTS if a.check], ids=lambda a: a.title)
def test_refuses_what_it_is_for(aspect: Aspect) -> None:
    assert aspect.check is not None
    assert aspect.refused
    assert list(aspect.check(GOOD)) == []
    for candidate in BAD[aspect.title]():
        assert list(aspect.check(candidate)), aspect.title


def test_all_that_is_wrong_is_said_at_once() -> None:
    check_support(GOOD)
    bad = replace(
        GOOD,
        condition=replace(HEALTHY, power=PowerState.STOPPED),
        options=replace(OPTIONS, exclude_disks=("system",)),
    )
    with pytest.raises(Conflict, match=r"is stopped; also: system is the system disk") as refused:
        check_support(bad)
    assert refused.value.field == "vm"
    assert "vm start" in str(refused.value.hint)


def test_the_first_reason_gives_the_kind_of_error() -> None:
    for title, kind in (("Target region", InvalidRequest), ("Host", Unavailable)):
        with pytest.raises(kind):
            check_support(BAD[title]()[0])


def test_an_excluded_disk_may_have_lost_its_account() -> None:
    check_support(
        replace(
            GOOD,
            inventory=replace(INVENTORY, accounts=INVENTORY.accounts[:1]),
            options=replace(OPTIONS, exclude_disks=("data",)),
        )
    )


def test_the_page_is_printed_from_the_checks() -> None:
    assert PAGE.read_text() == matrix_page(), "print it again: the command is on the page"
