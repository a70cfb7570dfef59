"""Test failovers: isolated whatever the network is, one at a time, and refused where they make no
sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import from_plain
from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest, NotFound
from leeward.model.recovery import ItemState, Job, JobState, NetworkMapping, Rehearsal
from leeward.model.resources import (
    NetworkInterface,
    Outbound,
    Routing,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.options import ProtectOptions
from leeward.protection.update import ItemChanges
from leeward.protocol.fabric import BootSpec, NetworkSpec
from leeward.protocol.messages import Verb
from leeward.vault.jobs import IdempotencyKey


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected."""
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def rehearsal(made: Site) -> Rehearsal | None:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item.rehearsal


def start(made: Site, **more: object) -> BootSpec:
    """Return what the host was told to boot."""
    job = made.service.rehearsals.start("main", "web-1", **more)  # type: ignore[arg-type]
    assert made.run(job).state is JobState.SUCCEEDED
    return from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)


def test_a_test_vm_whose_host_has_been_forgotten_is_cleaned_up(made: Site) -> None:
    start(made)
    made.silence(made.target)
    made.service.nodes.forget(made.target.id)
    job = made.service.rehearsals.clean_up("main", "web-1")
    assert made.run(job).state is JobState.SUCCEEDED
    assert rehearsal(made) is None


def test_its_networks_lead_nowhere_whatever_the_real_one_does(made: Site) -> None:
    with made.vault.write() as records:
        stored = records.resources.get(VirtualNetwork, "west", "corp-asr")
        subnets = tuple(replace(subnet, bridge="br0") for subnet in stored.value.subnets)
        opened = replace(
            stored.value, subnets=subnets, outbound=Outbound.NAT, routing=Routing.ROUTED
        )
        records.resources.update(stored, value=opened)
    boot = start(made, forwards=(8080,))
    (network,) = boot.networks
    assert network.peers == ()
    assert not network.has_nat
    assert {(subnet.tunnel_id, subnet.bridge) for subnet in network.subnets} == {(0, "")}
    assert [(subnet.name, subnet.prefix) for subnet in network.subnets] == [
        ("front", "10.0.1.0/24")
    ]
    assert {nic.network_id for nic in boot.vm.nics} == {network.network_id}
    assert boot.vm.nics[0].address == "10.0.1.9"
    assert boot.vm.forwards == (8080,)
    assert boot.vm.vm_id != "web-1"


def test_the_item_goes_on_and_one_test_runs_at_a_time(made: Site) -> None:
    start(made)
    with made.vault.read() as records:
        assert records.items.get("main", "web-1").item.state is ItemState.PROTECTED
    with pytest.raises(Conflict, match="has a test VM already"):
        made.service.rehearsals.start("main", "web-1")
    with pytest.raises(Conflict, match="has a test VM, which reads"):
        made.service.disabling.disable("main", "web-1", delete_replica=True)
    job = made.run(made.service.failovers.failover("main", "web-1", "latest"))
    assert job.state is JobState.SUCCEEDED, "a disaster does not wait for a test"
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    assert rehearsal(made) is None


def test_clean_up_takes_vm_and_networks_away(made: Site) -> None:
    boot = start(made)
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    networks = [boot.networks[0].network_id]
    assert made.last[Verb.RECOVERY_DISCARD] == {"vm_id": boot.vm.vm_id, "networks": networks}
    with pytest.raises(Conflict, match="has no test VM"):
        made.service.rehearsals.clean_up("main", "web-1")


def test_clean_up_is_not_that_of_an_item_of_the_same_name_in_another_vault(made: Site) -> None:
    start(made)
    with made.vault.write() as records:
        records.jobs.create(
            job_id="job-elsewhere",
            verb="item.test-failover-cleanup",
            target="item/web-1",
            arguments={"item_id": "i-elsewhere"},
            now_ns=1,
        )
    job = made.service.rehearsals.clean_up("main", "web-1")
    assert job.id != "job-elsewhere"
    assert made.service.rehearsals.clean_up("main", "web-1").id == job.id
    assert made.run(job).state is JobState.SUCCEEDED
    assert rehearsal(made) is None


def test_a_repeated_clean_up_is_the_same_job_though_the_item_has_gone(made: Site) -> None:
    start(made)
    key = IdempotencyKey(key="k", fingerprint="f")
    job = made.service.rehearsals.clean_up("main", "web-1", key)
    assert made.run(job).state is JobState.SUCCEEDED
    with made.vault.write() as records:
        records.items.delete(records.items.get("main", "web-1").item.id)
    assert made.service.rehearsals.clean_up("main", "web-1", key).id == job.id


def test_one_that_does_not_boot_leaves_nothing(made: Site) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no")
    job = made.run(made.service.rehearsals.start("main", "web-1"))
    assert job.state is JobState.FAILED
    assert rehearsal(made) is None
    assert made.asked[Verb.RECOVERY_DISCARD] == 1
    assert made.last[Verb.RECOVERY_DISCARD]["networks"]


def test_refusals(made: Site) -> None:
    with pytest.raises(NotFound):
        made.service.rehearsals.start("main", "web-1", "rp-9-9")
    with pytest.raises(InvalidRequest, match="TCP port"):
        made.service.rehearsals.start("main", "web-1", forwards=(80, 80))
    made.run(made.service.failovers.failover("main", "web-1", "latest"))
    with pytest.raises(Conflict, match="is failed over, not protected"):
        made.service.rehearsals.start("main", "web-1")


# --- in a network set aside for tests

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


def put(made: Site, *resources: VirtualNetwork | VirtualMachine) -> None:
    with made.vault.write() as records:
        for each in resources:
            records.resources.insert(each, scope="west", name=each.name)


def helper(address: str, host: str = "n-1") -> VirtualMachine:
    """Return a VM that is in the network for tests."""
    nic = NetworkInterface(
        name="n0", network="lab", subnet="front", address=address, mac="52:54:00:00:00:01"
    )
    return VirtualMachine(region="west", name="helper", resource_group="rg", nics=(nic,), host=host)


def test_it_is_put_into_the_network_that_is_named(made: Site) -> None:
    put(made, LAB)
    boot = start(made, network="lab")
    (network,), (nic,) = boot.networks, boot.vm.nics
    assert (network.name, network.has_nat) == ("lab", True)
    assert network.subnets[0].tunnel_id, "its hosts are joined as they are for any VM"
    assert (nic.network_id, nic.subnet, nic.address) == (network.network_id, "front", "10.0.1.9")
    test = rehearsal(made)
    assert test is not None
    assert (test.test_network, test.networks) == ("lab", {"lab": network.network_id})
    with made.vault.read() as records:
        messages = [each.message for each in records.events.listed(limit=5, target="item/web-1")]
    assert any(message.endswith("in network lab at 10.0.1.9") for message in messages)


@pytest.mark.parametrize(
    ("wanted", "taken", "place"),
    [
        ("lab", "10.0.1.9", ("front", "10.0.1.4")),
        ("lab", "10.0.1.8", ("front", "10.0.1.9")),
        ("lab/bench", "10.0.1.9", ("bench", "10.0.2.4")),
    ],
)
def test_its_address_is_kept_if_free_else_the_next(
    made: Site, wanted: str, taken: str, place: tuple[str, str]
) -> None:
    put(made, LAB, helper(taken))
    (nic,) = start(made, network=wanted).vm.nics
    assert (nic.subnet, nic.address) == place


def test_the_first_subnet_is_taken_where_none_has_its_name(made: Site) -> None:
    subnets = (Subnet(name="z", prefix="10.0.1.0/24"), Subnet(name="a", prefix="10.0.2.0/24"))
    put(made, replace(LAB, subnets=subnets))
    (nic,) = start(made, network="lab").vm.nics
    assert (nic.subnet, nic.address) == ("a", "10.0.2.4")


def test_its_address_and_its_network_are_held_until_it_is_cleaned_up(made: Site) -> None:
    put(made, LAB)
    start(made, network="lab")
    resources = made.service.resources
    with pytest.raises(Conflict, match="test VM of web-1"):
        resources.delete_real(VirtualNetwork, "west", "lab")
    wanted = replace(helper("10.0.1.9"), name="late", host="", resource_group="rg-asr")
    with pytest.raises(Conflict, match=r"10.0.1.9 belongs to test VM of web-1"):
        made.service.machines.create(wanted)
    smaller = replace(LAB, subnets=LAB.subnets[1:])
    with pytest.raises(Conflict, match="used by test VM of web-1"):
        made.service.changes.change_network(smaller, version=None)
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    assert made.last[Verb.RECOVERY_DISCARD]["networks"] == [], "it is not the test VM's to remove"
    assert (
        made.run(resources.delete_real(VirtualNetwork, "west", "lab")).state is JobState.SUCCEEDED
    )


def test_clean_up_takes_along_what_a_network_that_has_gone_left_on_the_host(made: Site) -> None:
    put(made, LAB)
    boot = start(made, network="lab")
    with made.vault.write() as records:
        records.resources.delete(VirtualNetwork, "west", "lab")
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    assert made.last[Verb.RECOVERY_DISCARD]["networks"] == [boot.networks[0].network_id]
    assert rehearsal(made) is None


def test_production_networks_are_refused(made: Site) -> None:
    put(made, LAB)
    begin = made.service.rehearsals.start
    with pytest.raises(Conflict, match="web-1 fails over into it") as caught:
        begin("main", "web-1", network="corp-asr")
    assert caught.value.field == "network"
    assert "isolated copy" in (caught.value.hint or "")
    with pytest.raises(NotFound, match="no network 'corp'"):
        begin("main", "web-1", network="corp")
    with pytest.raises(NotFound, match="no subnet back"):
        begin("main", "web-1", network="lab/back")
    mapping = NetworkMapping(
        source_region="east", source_network="corp", target_region="west", target_network="lab"
    )
    with made.vault.write() as records:
        records.resources.insert(mapping, scope="", name="any")
    with pytest.raises(Conflict, match="a network mapping names it"):
        begin("main", "web-1", network="lab")
    assert rehearsal(made) is None


def test_a_network_behind_the_bridge_of_production_is_refused(made: Site) -> None:
    def on(network: VirtualNetwork, bridge: str) -> VirtualNetwork:
        subnets = tuple(replace(subnet, bridge=bridge) for subnet in network.subnets)
        return replace(network, subnets=subnets)

    with made.vault.write() as records:
        stored = records.resources.get(VirtualNetwork, "west", "corp-asr")
        records.resources.update(stored, value=on(stored.value, "br-prod"))
    put(made, on(LAB, "br-prod"), on(replace(LAB, name="far"), "br-lab"))
    with pytest.raises(Conflict, match="joined with bridge br-prod as corp-asr is"):
        made.service.rehearsals.start("main", "web-1", network="lab")
    start(made, network="far")
    far = on(replace(LAB, name="far"), "br-prod")
    with pytest.raises(Conflict, match="subnets: far is joined with bridge br-prod"):
        made.service.changes.change_network(far, version=None)
    put(made, on(replace(LAB, name="near"), "br-lab"))
    with pytest.raises(Conflict, match="target_networks: the test VM of web-1 is in network far"):
        made.service.updates.update("main", "web-1", ItemChanges(target_networks={"n0": "near"}))


def test_production_is_refused_where_a_test_vm_is(made: Site) -> None:
    put(made, LAB)
    start(made, network="lab")
    with pytest.raises(Conflict, match="target_networks: the test VM of web-1 is in network lab"):
        made.service.updates.update("main", "web-1", ItemChanges(target_networks={"n0": "lab"}))
    mapping = NetworkMapping(
        source_region="east", source_network="corp", target_region="west", target_network="lab"
    )
    with pytest.raises(Conflict, match="target_network: the test VM of web-1"):
        made.service.mappings.put(mapping, is_one_way=False)
    with made.vault.write() as records:
        first = records.resources.get(VirtualMachine, "east", "web-1").value
        nics = tuple(replace(nic, address="10.0.1.10") for nic in first.nics)
        records.resources.insert(
            replace(first, name="web-2", nics=nics), scope="east", name="web-2"
        )
    options = ProtectOptions(
        source_region="east", vm="web-2", target_region="west", target_networks={"corp": "lab"}
    )
    with pytest.raises(Conflict, match="target_networks: the test VM of web-1 is in network lab"):
        made.service.protection.protect("main", options)


def test_a_failover_goes_its_way_beside_it(made: Site) -> None:
    put(made, LAB)
    start(made, network="lab")
    job = made.run(made.service.failovers.failover("main", "web-1", "latest"))
    assert job.state is JobState.SUCCEEDED
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    assert [(n.network_id == boot.networks[0].network_id, n.address) for n in boot.vm.nics] == [
        (True, "10.0.1.9")
    ]
    assert boot.networks[0].name == "corp-asr"


def test_hosts_with_vms_in_the_network_are_joined_with_its_host(made: Site) -> None:
    far = made.enrol_target("n-2")
    with made.vault.write() as records:
        for node, tunnel in ((made.target, "10.9.9.1:4789"), (far, "10.9.9.2:4789")):
            records.nodes.set_tunnel(node.id, tunnel)
    put(made, LAB, helper("10.0.1.20", "n-2"))
    networks = made.service.host_networks
    networks.tick()
    (network,) = start(made, network="lab").networks
    assert network.peers == ("10.9.9.2:4789",)
    networks.tick()
    told = from_plain(made.last[Verb.NETWORK_APPLY], NetworkSpec)
    assert (told.name, told.peers) == ("lab", ("10.9.9.1:4789",))
    made.run(made.service.rehearsals.clean_up("main", "web-1"))
    networks.tick()
    assert from_plain(made.last[Verb.NETWORK_APPLY], NetworkSpec).peers == ()


@pytest.mark.parametrize("after_action", [True, False])
def test_killed_at_every_step_it_boots_once_and_is_cleaned_up_once(
    made: Site, after_action: bool
) -> None:
    def run_killed(job: Job) -> None:
        step = 0
        while not made.engine.run(job.id, kill_at=step, after_action=after_action):
            step += 1
        assert step >= 2
        assert made.job(job).state is JobState.SUCCEEDED

    put(made, LAB)
    run_killed(made.service.rehearsals.start("main", "web-1", network="lab"))
    assert made.asked[Verb.RECOVERY_BOOT] == 1
    run_killed(made.service.rehearsals.clean_up("main", "web-1"))
    assert made.asked[Verb.RECOVERY_DISCARD] == 1
    assert rehearsal(made) is None
