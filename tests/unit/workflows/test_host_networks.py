"""Hosts are told of a network what they need to know, again whenever that has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from leeward.core.clock import SystemClock
from leeward.core.codec import from_plain
from leeward.core.errors import Conflict
from leeward.model.resources import (
    NetworkInterface,
    Outbound,
    Routing,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protocol.fabric import NetworkSpec
from leeward.protocol.messages import EnrolmentRequest, NodeStatus, Role, Verb
from leeward.vault.database import sqlite_url
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import VaultStore
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Dispatch
from leeward.workflows.host_networks import HostNetworks, host_network
from leeward.workflows.live import LiveState
from leeward.workflows.signals import Signals

NETWORK = VirtualNetwork(
    region="east",
    name="corp",
    resource_group="rg",
    address_space=("10.0.0.0/16",),
    subnets=(Subnet(name="front", prefix="10.0.1.0/24"),),
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Give a vault with the network in it and nothing that runs."""
    vault, signals, clock = (
        VaultStore.open(sqlite_url(tmp_path / "v.sqlite")),
        Signals(),
        SystemClock(),
    )
    live = LiveState(clock)
    with vault.write() as records:
        records.resources.insert(NETWORK, scope="east", name="corp")
    yield Bench(
        vault=vault,
        dispatch=Dispatch(vault, signals, live, clock),
        live=live,
        signals=signals,
        clock=clock,
        installation="i",
    )
    vault.close()


def add_host(bench: Bench, name: str, tunnel: str) -> NodeRecord:
    """Return a host's agent that has just been heard."""
    with bench.vault.write() as records:
        records.nodes.add_token(name, region="east", expires_ns=1 << 62)
        request = EnrolmentRequest(
            token=name, role=Role.AGENT, region="east", name=name, key="ab" * 32
        )
        node = records.nodes.enrol(request, now_ns=0)
        records.nodes.set_tunnel(node.id, tunnel)
    bench.live.put(node.id, NodeStatus())
    return node


def add_vm(bench: Bench, name: str, host: str) -> None:
    """The VM has an interface in the network, on that host."""
    nic = NetworkInterface(name="n", network="corp", subnet="front", address="10.0.1.9")
    vm = VirtualMachine(region="east", name=name, resource_group="rg", nics=(nic,), host=host)
    with bench.vault.write() as records:
        records.resources.insert(vm, scope="east", name=name)


def told(bench: Bench, node: NodeRecord) -> list[NetworkSpec]:
    """Return what the node has been told, in order."""
    with bench.vault.read() as records:
        commands = records.commands.open_for(node.id)
    assert {command.verb for command in commands} <= {Verb.NETWORK_APPLY}
    return [from_plain(command.arguments, NetworkSpec) for command in commands]


def test_hosts_with_vms_of_one_network_know_each_others_tunnels(bench: Bench) -> None:
    one, two = add_host(bench, "h1", "192.0.2.1:1"), add_host(bench, "h2", "192.0.2.2:2")
    idle = add_host(bench, "h3", "192.0.2.3:3")
    networks = HostNetworks(bench)
    add_vm(bench, "a", "h1")
    networks.tick()
    assert told(bench, one) == [], "whoever put the VM there has told it"
    add_vm(bench, "b", "h2")
    networks.tick()
    networks.tick()
    assert [spec.peers for spec in told(bench, one)] == [("192.0.2.2:2",)]
    assert [spec.peers for spec in told(bench, two)] == [("192.0.2.1:1",)]
    assert told(bench, idle) == []
    assert told(bench, one)[0].network_id != told(bench, two)[0].network_id
    assert told(bench, one)[0].subnets == told(bench, two)[0].subnets
    with bench.vault.write() as records:  # and back: what was right once is told again
        records.resources.delete(VirtualMachine, "east", "b")
    networks.tick()
    assert [spec.peers for spec in told(bench, one)] == [("192.0.2.2:2",), ()]


def test_changed_settings_reach_the_hosts(bench: Bench) -> None:
    host = add_host(bench, "h1", "")
    networks = HostNetworks(bench)
    add_vm(bench, "a", "h1")
    networks.tick()
    with bench.vault.write() as records:
        stored = records.resources.get(VirtualNetwork, "east", "corp")
        changed = replace(NETWORK, routing=Routing.ROUTED, outbound=Outbound.NAT)
        records.resources.update(stored, value=changed)
    networks.tick()
    assert [(spec.is_routed, spec.has_nat) for spec in told(bench, host)] == [(True, True)]


def test_hosts_on_a_bridge_out_there_have_addresses_of_their_own(bench: Bench) -> None:
    hosts = [add_host(bench, f"h{number:02}", "") for number in range(17)]
    subnet = Subnet(name="front", prefix="10.0.1.0/24", bridge="br0")
    network = replace(NETWORK, subnets=(subnet,))
    with bench.vault.read() as records:
        found = [
            host_network(bench, records, network, host).subnets[0].host_address
            for host in hosts[:16]
        ]
        assert found[:2] == ["10.0.1.254", "10.0.1.253"]
        assert len(set(found)) == 16
        with pytest.raises(Conflict, match="16 hosts"):
            host_network(bench, records, network, hosts[16])
