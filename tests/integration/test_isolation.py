"""What a test VM's networks let out: nothing, whatever the real network has; packets decide."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from scenario.capture import OUTSIDE, Call, capturing, outside_world, way_out
from tests.integration.fabric_rig import Rig, rig
from tests.integration.test_fabric_networks import station

from leeward.fabric import namespaces
from leeward.fabric.networks import bridge_of, namespace_of
from leeward.model.recovery import Rehearsal
from leeward.model.resources import Outbound, Routing, Subnet, VirtualNetwork
from leeward.workflows.rehearsing import isolated
from leeward.workflows.specs import NetworkPlace, network_spec

pytestmark = pytest.mark.integration

REAL = VirtualNetwork(
    region="west",
    name="corp",
    resource_group="rg",
    address_space=("10.77.0.0/16",),
    subnets=(
        Subnet(name="front", prefix="10.77.0.0/24"),
        Subnet(name="back", prefix="10.77.1.0/24"),
    ),
    routing=Routing.ROUTED,
    outbound=Outbound.NAT,
)
GUEST = "10.77.0.4"
PORT = 20000 + secrets.randbelow(20000)
CALLS = (
    Call("10.77.0.9", PORT),  # a peer of its subnet
    Call("10.77.0.1", PORT + 1, is_asked=True),  # the gateway
    Call("10.77.1.9", PORT + 2),  # the other subnet
    Call(OUTSIDE, PORT + 3),  # outside
)


@pytest.fixture
def host() -> Iterator[Rig]:
    with rig() as made:
        yield made


def call(guest: str) -> None:
    """The guest calls everybody, as the demo guest's /call does."""

    def act() -> None:
        for each in CALLS:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, suppress(OSError):
                datagram.sendto(f"leeward {each.target}".encode(), (each.address, each.port))
            with suppress(OSError):
                socket.create_connection((each.address, each.port), timeout=0.3).close()

    namespaces.inside(guest, act)


def test_the_same_calls_stay_inside_and_are_seen_where_there_is_a_way_out(host: Rig) -> None:
    real = replace(network_spec(host.tag, REAL, NetworkPlace(host="h")), network_id=f"t{host.tag}r")
    rehearsal = Rehearsal(
        recovery_point="",
        region="west",
        host="h",
        vm_id="web-1-test",
        networks={"corp": f"t{host.tag}i"},
    )
    test = isolated(host.tag, REAL, rehearsal)
    lab = network_spec(host.tag, replace(REAL, name="lab"), NetworkPlace(host="h"))
    lab = replace(lab, network_id=f"t{host.tag}l")  # of another interface of the test VM
    driver = host.driver()
    for network in (real, test, lab):
        driver.apply_network(network)
    places = {
        "real": namespace_of(real.network_id),
        "test": namespace_of(test.network_id),
        "lab": namespace_of(lab.network_id),
    }
    with ExitStack() as stack:
        places["world"] = stack.enter_context(outside_world())
        guest = station(stack, test, "front", GUEST)
        with capturing({**places, "host": ""}, CALLS) as capture:
            call(guest)
            seen = capture.end()
        assert set(seen.at("test")) == {each.target for each in CALLS}
        assert seen.elsewhere("test") == {}
        with (
            way_out(places["test"], bridge_of("front")),
            capturing({**places, "host": ""}, CALLS) as capture,
        ):
            call(guest)
            seen = capture.end()
        assert seen.at("host"), "the check could not have failed"
        in_real = station(stack, real, "front", GUEST)
        with capturing({**places, "host": ""}, CALLS) as capture:
            call(in_real)
            seen = capture.end()
        assert set(seen.at("real")) == {each.target for each in CALLS}
        assert set(seen.at("world")) == {CALLS[3].target}, "the real one reaches the outside"


def test_calls_in_a_network_set_aside_for_tests_are_in_no_other(host: Rig) -> None:
    place = NetworkPlace(host="h")
    real = replace(network_spec(host.tag, REAL, place), network_id=f"t{host.tag}r")
    lab = replace(REAL, name="lab", outbound=Outbound.NONE)
    driver = host.driver()
    specs = {"real": real}
    for name, network in (
        ("closed", lab),
        ("open", replace(lab, outbound=Outbound.NAT)),
    ):
        specs[name] = replace(
            network_spec(host.tag, network, place), network_id=f"t{host.tag}{name[0]}"
        )
    for spec in specs.values():
        driver.apply_network(spec)
    places = {name: namespace_of(spec.network_id) for name, spec in specs.items()}
    with ExitStack() as stack:
        places["world"] = stack.enter_context(outside_world())
        for name, elsewhere in (("closed", set()), ("open", {CALLS[3].target})):
            guest = station(stack, specs[name], "front", GUEST)
            with capturing({**places, "host": ""}, CALLS) as capture:
                call(guest)
                seen = capture.end()
            assert set(seen.at(name)) == {each.target for each in CALLS}
            assert not seen.at("real"), "production with the same addresses hears nothing"
            assert set(seen.at("world")) == elsewhere, "what leads out is the network's own setting"
