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
from leeward.model.recovery import ItemState, JobState, Rehearsal
from leeward.model.resources import Outbound, Routing, VirtualNetwork
from leeward.protocol.fabric import BootSpec
from leeward.protocol.messages import Verb


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
