"""Where an item's test VMs are: as it is set, interface by interface, or as one test asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.model.plans import PlanGroup, RecoveryPlan
from leeward.model.recovery import JobState, NetworkMapping, ReplicatedItem
from leeward.model.resources import (
    NetworkInterface,
    Outbound,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.update import ItemChanges
from leeward.protocol.drills import ProbingSpec
from leeward.protocol.fabric import BootSpec
from leeward.protocol.messages import Verb

LAB = VirtualNetwork(
    region="west",
    name="lab",
    resource_group="rg-asr",
    address_space=("10.0.0.0/16",),
    subnets=(
        Subnet(name="front", prefix="10.0.1.0/24"),
        Subnet(name="bench", prefix="10.0.2.0/24"),
    ),
    outbound=Outbound.NAT,
)
YARD = replace(LAB, name="yard")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected, with two interfaces: n0 at .9, n1 at .11."""
    with site(tmp_path) as made:
        with made.vault.write() as records:
            stored = records.resources.get(VirtualMachine, "east", "web-1")
            second = NetworkInterface(
                name="n1", network="corp", subnet="front", address="10.0.1.11"
            )
            vm = replace(stored.value, nics=(*stored.value.nics, second))
            records.resources.update(stored, value=vm)
            for network in (LAB, YARD):
                records.resources.insert(network, scope="west", name=network.name)
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def put(
    made: Site, networks: Mapping[str, str], addresses: Mapping[str, str] | None = None
) -> None:
    changes = ItemChanges(test_networks=dict(networks), test_addresses=dict(addresses or {}))
    assert made.run(made.service.updates.update("main", "web-1", changes)).state is (
        JobState.SUCCEEDED
    )


def item(made: Site) -> ReplicatedItem:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item


def booted(made: Site) -> list[tuple[str, str, str, bool]]:
    """Return (interface, network, address, whether anything leads out) of what was booted last."""
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    networks = {network.network_id: network for network in boot.networks}
    assert len(networks) == len(boot.networks)
    found = []
    for nic in boot.vm.nics:
        network = networks[nic.network_id]
        tunnels = any(subnet.tunnel_id for subnet in network.subnets)
        found.append((nic.name, network.name, nic.address, network.has_nat or tunnels))
    return found


def rehearse(made: Site, **more: object) -> list[tuple[str, str, str, bool]]:
    """Return where a test VM was, which is cleaned up again."""
    job = made.service.rehearsals.start("main", "web-1", **more)  # type: ignore[arg-type]
    assert made.run(job).state is JobState.SUCCEEDED
    where = booted(made)
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    return where


N0_COPY, N1_COPY = ("n0", "corp-asr", "10.0.1.9", False), ("n1", "corp-asr", "10.0.1.11", False)


def test_an_interface_without_a_setting_stays_in_an_isolated_copy(made: Site) -> None:
    assert rehearse(made) == [N0_COPY, N1_COPY]
    put(made, {"n1": "lab/bench"})
    job = made.run(made.service.rehearsals.start("main", "web-1"))
    assert booted(made) == [N0_COPY, ("n1", "lab", "10.0.2.4", True)]
    assert job.result is not None
    assert (job.result["network"], job.result["addresses"]) == ("lab", {"n1": "10.0.2.4"})


def test_clean_up_removes_the_copies_and_leaves_the_network(made: Site) -> None:
    put(made, {"n1": "lab"})
    rehearse(made)
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    copies = [network.network_id for network in boot.networks if network.name == "corp-asr"]
    assert made.last[Verb.RECOVERY_DISCARD]["networks"] == copies
    assert len(copies) == 1


def test_one_test_may_ask_otherwise(made: Site) -> None:
    put(made, {"n1": "lab"}, {"n1": "10.0.1.50"})
    assert rehearse(made)[1] == ("n1", "lab", "10.0.1.50", True)
    assert rehearse(made, network="isolated") == [N0_COPY, N1_COPY]
    assert rehearse(made, networks={"n1": "isolated"}) == [N0_COPY, N1_COPY]
    in_yard = ("n1", "yard", "10.0.1.11", True)
    assert rehearse(made, networks={"n1": "yard"}) == [N0_COPY, in_yard]
    both = rehearse(made, network="yard", networks={"n1": "lab"})
    assert both == [("n0", "yard", "10.0.1.9", True), ("n1", "lab", "10.0.1.50", True)]
    assert item(made).test_networks == {"n1": "lab"}, "the setting stays"


def test_the_setting_is_taken_back(made: Site) -> None:
    put(made, {"n0": "yard", "n1": "lab"}, {"n1": "10.0.1.50"})
    put(made, {"n1": "isolated"})
    assert (item(made).test_networks, item(made).test_addresses) == ({"n0": "yard"}, {})
    put(made, {"n0": "lab"})
    assert rehearse(made) == [("n0", "lab", "10.0.1.9", True), N1_COPY]


@pytest.mark.parametrize(
    ("changes", "error", "field", "said"),
    [
        ({"test_networks": {"n9": "lab"}}, InvalidRequest, "test_networks", "no interface n9"),
        ({"test_networks": {"n0": "gone"}}, NotFound, "test_networks", "no network 'gone'"),
        ({"test_networks": {"n0": "lab/x"}}, NotFound, "test_networks", "no subnet x"),
        ({"test_networks": {"n0": "corp-asr"}}, Conflict, "test_networks", "fails over into it"),
        ({"test_addresses": {"n0": "10.0.1.5"}}, InvalidRequest, "test_addresses", "isolated copy"),
        (
            {"test_networks": {"n0": "lab"}, "test_addresses": {"n0": "10.9.9.9"}},
            InvalidRequest,
            "test_addresses",
            "10.9.9.9",
        ),
    ],
)
def test_a_setting_that_will_not_do_is_refused_at_once(
    made: Site, changes: dict[str, dict[str, str]], error: type[LeewardError], field: str, said: str
) -> None:
    with pytest.raises(error, match=said) as refused:
        made.service.updates.update("main", "web-1", from_plain(changes, ItemChanges))
    assert refused.value.field == field
    assert item(made).test_networks == {}


def test_an_interface_that_is_none_is_refused_by_a_test(made: Site) -> None:
    with pytest.raises(InvalidRequest, match="no interface n9"):
        made.service.rehearsals.start("main", "web-1", networks={"n9": "lab"})


def test_production_does_not_move_into_its_own_tests(made: Site) -> None:
    put(made, {"n1": "lab"})
    with pytest.raises(Conflict, match="lab is no network set aside for tests"):
        made.service.updates.update("main", "web-1", ItemChanges(target_networks={"n0": "lab"}))


def test_a_network_that_has_become_productions_is_refused_when_it_is_to_be_used(
    made: Site,
) -> None:
    put(made, {"n1": "lab"})
    mapping = NetworkMapping(
        source_region="east", source_network="x", target_region="west", target_network="lab"
    )
    with made.vault.write() as records:
        records.resources.insert(mapping, scope="", name="any")
    with pytest.raises(Conflict, match="a network mapping names it"):
        made.service.rehearsals.start("main", "web-1")
    assert item(made).rehearsal is None


def test_a_network_that_tests_are_set_to_stays(made: Site) -> None:
    put(made, {"n1": "lab/bench"})
    with pytest.raises(Conflict, match="test networks of item web-1"):
        made.service.resources.delete_real(VirtualNetwork, "west", "lab")
    with pytest.raises(Conflict, match="subnet bench of network lab is used by test networks"):
        made.service.changes.change_network(replace(LAB, subnets=LAB.subnets[:1]), None)
    put(made, {"n1": "isolated"})
    job = made.service.resources.delete_real(VirtualNetwork, "west", "lab")
    assert made.run(job).state is JobState.SUCCEEDED


def test_a_copy_is_no_occupant_of_the_network_it_copies(made: Site) -> None:
    """An interface in an isolated copy beside one that is not holds no address of production."""
    put(made, {"n1": "lab"})
    job = made.service.rehearsals.start("main", "web-1")
    assert made.run(job).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        network = records.resources.get(VirtualNetwork, "west", "corp-asr").value
    wider = replace(network, subnets=(*network.subnets, Subnet(name="z", prefix="10.0.9.0/24")))
    assert made.service.changes.change_network(wider, None) is not None


def test_a_drill_looks_where_the_setting_has_put_it(made: Site) -> None:
    put(made, {"n0": "lab", "n1": "lab"}, {"n0": "10.0.1.50"})
    assert made.run(made.service.drills.begin("main", "web-1")).state is JobState.SUCCEEDED
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    (network,) = boot.networks
    asked = from_plain(made.last[Verb.PROBE_RUN], ProbingSpec)
    assert (network.name, asked.network_id) == ("lab", network.network_id)
    assert asked.address == "10.0.1.50"
    assert made.last[Verb.RECOVERY_DISCARD]["networks"] == []


def test_a_test_of_its_plan_heeds_the_setting(made: Site) -> None:
    put(made, {"n1": "lab"})
    plan = RecoveryPlan(
        name="site", vault="main", groups=(PlanGroup(name="web", items=("web-1",)),)
    )
    made.service.plans.put(plan)
    assert made.run(made.service.plan_drills.begin("main", "site")).state is JobState.SUCCEEDED
    assert booted(made) == [N0_COPY, ("n1", "lab", "10.0.1.11", True)]


def test_turned_round_it_has_isolated_copies_again(made: Site) -> None:
    put(made, {"n1": "lab"}, {"n1": "10.0.1.50"})
    job = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(job).state is JobState.SUCCEEDED
    made.say()
    assert made.run(made.service.failovers.commit("main", "web-1")).state is JobState.SUCCEEDED
    made.say()
    assert made.run(made.service.reprotection.reprotect("main", "web-1")).state is (
        JobState.SUCCEEDED
    )
    assert (item(made).test_networks, item(made).test_addresses) == ({}, {})
