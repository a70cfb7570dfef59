"""What a protected VM becomes can be changed, by the rules that held when it was protected."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.protection.test_plan import after, plan

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.model.recovery import ItemState
from leeward.model.resources import AvailabilitySet, Subnet, VirtualNetwork
from leeward.protection.inventory import Protected
from leeward.protection.update import CHANGEABLE, ItemChanges, plan_update

DR = VirtualNetwork(
    region="west",
    name="dr",
    resource_group="rg-asr",
    address_space=("10.9.0.0/16",),
    subnets=(Subnet(name="a", prefix="10.9.1.0/24"), Subnet(name="b", prefix="10.9.2.0/24")),
)
MADE = after(plan())
SPREAD = AvailabilitySet(region="west", name="spread", resource_group="rg-asr")
SITE = replace(
    MADE,
    networks=(*MADE.networks, DR),
    availability_sets=(*MADE.availability_sets, SPREAD),
)
(ITEM,) = SITE.protected
NIC = ITEM.target_vm.nics[0]


def update(**changes: object) -> Protected:
    return plan_update(SITE, ITEM, ItemChanges(**changes))  # type: ignore[arg-type]


def test_nothing_asked_for_changes_nothing() -> None:
    made = plan_update(SITE, ITEM, ItemChanges())
    assert (made.target_vm, made.item.target_vm) == (ITEM.target_vm, ITEM.item.target_vm)


def test_size_name_and_set() -> None:
    made = update(vcpus=7, memory_mib=999, target_vm="w", target_availability_set="spread")
    vm = made.target_vm
    assert (vm.vcpus, vm.memory_mib, vm.name, vm.availability_set) == (7, 999, "w", "spread")
    assert (made.item.target_vm, made.item.target_availability_set) == ("w", "spread")
    assert update(target_availability_set="none").target_vm.availability_set == ""


def test_another_network_keeps_the_mac_and_takes_a_free_address() -> None:
    nic = update(target_networks={NIC.name: "dr/b"}).target_vm.nics[0]
    assert (nic.network, nic.subnet, nic.mac) == ("dr", "b", NIC.mac)
    assert nic.address.startswith("10.9.2.")
    asked = update(target_networks={NIC.name: "dr"}, addresses={NIC.name: "10.9.1.77"})
    assert asked.target_vm.nics[0].address == "10.9.1.77"


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"target_networks": {NIC.name: "gone"}}, NotFound, "no network gone"),
        ({"target_networks": {NIC.name: "dr/c"}}, NotFound, "no subnet c"),
        ({"target_networks": {"ghost": "dr"}}, InvalidRequest, "no interface ghost"),
        ({"addresses": {NIC.name: "192.0.2.1"}}, InvalidRequest, "not a host address"),
        ({"target_availability_set": "gone"}, NotFound, "no availability set gone"),
        ({"target_vm": "-"}, InvalidRequest, "cannot be a name"),
    ],
)
def test_bad_input_is_named(
    changes: dict[str, object], error: type[LeewardError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        update(**changes)


def test_a_taken_name_and_address_are_refused() -> None:
    other = replace(
        ITEM,
        item=replace(ITEM.item, id="item-2", name="db-1"),
        target_vm=replace(ITEM.target_vm, name="db-1", nics=(replace(NIC, address="10.0.1.200"),)),
    )
    site = replace(SITE, protected=(ITEM, other))
    with pytest.raises(Conflict, match="already has a virtual machine db-1"):
        plan_update(site, ITEM, ItemChanges(target_vm="db-1"))


def test_a_network_where_its_mac_is_taken_is_refused() -> None:
    there = replace(NIC, network="dr", subnet="a", address="10.9.1.7")
    vm = replace(ITEM.target_vm, name="other", nics=(there,), host="another")
    site = replace(SITE, vms=(*SITE.vms, vm))
    with pytest.raises(Conflict, match=f"{NIC.mac} belongs to other in network dr"):
        plan_update(site, ITEM, ItemChanges(target_networks={NIC.name: "dr"}))


@pytest.mark.parametrize("state", sorted(set(ItemState) - CHANGEABLE, key=str))
def test_it_is_no_time_for_it(state: ItemState) -> None:
    moved = replace(ITEM, item=replace(ITEM.item, state=state))
    with pytest.raises(Conflict, match="cannot be changed now"):
        plan_update(SITE, moved, ItemChanges(vcpus=2))


def test_group_and_policy() -> None:
    made = update(target_resource_group="rg-asr", policy="gold")
    assert (made.item.target_resource_group, made.target_vm.resource_group) == ("rg-asr", "rg-asr")
    assert made.item.policy == "gold"
    assert update().item.policy == ITEM.item.policy
    with pytest.raises(NotFound, match="no resource group gone in region west"):
        update(target_resource_group="gone")
