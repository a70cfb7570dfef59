"""A test guest calls production, and nobody but its own networks hears it: packets decide.

Owns: whom it calls, where is listened, the way out that is opened to see the check fail. Must not
know: how a test failover is isolated. The networks it copies have every way out there is: tunnels
to another host, routing, address translation. Then the same in a network set aside for tests: its
packets are in that one and in no other.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from demo.poller import ask
from demo.ports import free_port

from leeward.fabric.networks import bridge_of, namespace_of
from leeward.model.recovery import ItemState
from scenario import leaks
from scenario.capture import OUTSIDE, Call, Seen, capturing, outside_world, way_out
from scenario.common import Findings, Result
from scenario.rig import GUEST_PORT, Rig, create_vm
from scenario.stage import play

WEST = ("--region", "west", "--resource-group", "web-rg-asr")
PEER = "10.10.1.9"
CALL_SECONDS = 30.0


def run() -> Result:
    """Return what the captures showed."""
    return play(_story, up=_up)


def _up(rig: Rig) -> None:
    arguments = ("--regions", "east,west", "--hosts", "2", "--port", str(free_port()))
    rig.run("up", "--detach", *arguments, seconds=180)


def calls() -> tuple[Call, ...]:
    """Return whom the guests call, at ports that nobody else uses."""
    port = 20000 + secrets.randbelow(20000)
    return (
        Call(PEER, port),
        Call("10.10.1.1", port + 1, is_asked=True),
        Call("10.10.2.9", port + 2),
        Call(OUTSIDE, port + 3),
        Call("10.10.1.77", port + 4),
    )


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("web-1 in east, protected in west, where its network has every way out"):
        create_vm(rig)
        rig.wait_guest("east")
        rig.run("protect", "east/web-1", "--to", "west")
        ways = ("--add-subnet", "back=10.10.2.0/24", "--routed", "--nat")
        for network in ("east/corp", "west/corp-asr"):
            rig.run("network", "update", network, *ways)
        rig.run("storage-account", "create", "peers", *WEST)
        nic = ("--nic", f"front=corp-asr/front,address={PEER}")
        peer = ("vm", "create", "peer-1", *WEST, "--memory", "64M", "--disk", "d=peers,size=1M")
        rig.run(*peer, *nic)
        rig.wait_protected(since=time.time())
    whom = calls()
    with outside_world() as world:
        with findings.part("production itself is heard outside"):
            seen = listen(rig, whom, rig.address("east"), {"world": world})
            findings.check(
                "its datagram arrives there", bool(seen.at("world")), f"{dict(seen.frames)}"
            )
        with findings.part("a test failover; its guest calls them all"):
            address = rehearse(rig)
            inside = test_namespace(rig)
            seen = listen(rig, whom, address, {"world": world, "test": inside})
            _check_isolated(findings, whom, seen)
            findings.figures["packets_inside"] = float(sum(seen.at("test").values()))
            findings.figures["packets_outside"] = float(sum(seen.elsewhere("test").values()))
        with findings.part("with a way out opened on purpose it is heard"):
            with way_out(inside, bridge_of("front")):
                seen = listen(rig, whom, address, {"test": inside})
            heard = sum(seen.at("host").values())
            findings.check("the check can fail", heard > 0, f"{heard} packets on the host")
            findings.figures["packets_with_a_way_out"] = float(heard)
        with findings.part("clean-up"):
            rig.run("test-failover-cleanup", "web-1")
            left = _left(rig, inside)
            findings.check("nothing of the test VM is left", not left, ", ".join(left))
        with findings.part("a test failover into a network set aside for tests"):
            _check_set_aside(rig, findings, whom, {"world": world})
            item = rig.item()
            findings.check("web-1 was protected all along", item.state is ItemState.PROTECTED)


def _check_isolated(findings: Findings, whom: tuple[Call, ...], seen: Seen) -> None:
    unheard = {call.target for call in whom} - set(seen.at("test"))
    findings.check("inside, every call is seen", not unheard, f"{seen.at('test')}")
    findings.check("outside, not a single packet", not seen.elsewhere("test"), f"{seen.frames}")


def _check_set_aside(
    rig: Rig, findings: Findings, whom: tuple[Call, ...], places: dict[str, str]
) -> None:
    """The test VM is in the network that is named, at its own address; production's is refused."""
    refused = rig.try_run("test-failover", "web-1", "--network", "corp-asr")
    is_refused = refused.code != 0 and "no network set aside for tests" in refused.said
    findings.check("production's network is refused", is_refused, refused.said)
    subnet = ("--subnet", "front=10.10.1.0/24")
    rig.run("network", "create", "lab", *WEST, "--address-space", "10.10.0.0/16", *subnet)
    address = rehearse(rig, "--network", "lab")
    test = rig.item().rehearsal
    assert test is not None, "there is no test VM"
    lab = namespace_of(test.networks["lab"])
    seen = listen(rig, whom, address, {**places, "test": lab})
    inside, outside = seen.at("test"), seen.elsewhere("test")
    findings.check("its calls are in the network for tests", bool(inside), f"{inside}")
    findings.check("and nowhere else", not outside, f"{seen.frames}")
    findings.figures["packets_in_the_test_network"] = float(sum(inside.values()))
    rig.run("test-failover-cleanup", "web-1")
    rig.run("network", "delete", "west/lab")
    left = _left(rig, lab)
    findings.check("nothing of it is left", not left, ", ".join(left))


def listen(rig: Rig, whom: tuple[Call, ...], address: str, places: dict[str, str]) -> Seen:
    """Return what was seen while the guest behind `address` called them all: in `places`, on the
    host, and in every network of this installation."""
    known = set(places.values())
    ours = {name: name for name in _networks(rig) if name not in known}
    with capturing({**places, **ours, "host": ""}, whom) as capture:
        for call in whom:
            said = ask(address, f"/call?to={call.target}", timeout_seconds=CALL_SECONDS)
            assert said is not None, f"the guest at {address} does not answer"
            assert (
                call.is_asked
                or not (said["connected"] or said["echoed"])
                or call.address == (OUTSIDE)
            ), f"{call.target} answered: {said}"
        time.sleep(1)
        seen = capture.end()
    assert not seen.missed, f"{seen.missed} packets were missed"
    return seen


def rehearse(rig: Rig, *more: str) -> str:
    """Return where the test VM's guest answers."""
    said = rig.run("test-failover", "web-1", "--forward", str(GUEST_PORT), "-o", "json", *more)
    forward = json.loads(said)["result"]["status"]["forwards"][0]
    address = f"{forward['host_address']}:{forward['host_port']}"
    rig.wait("the test VM's guest", lambda: ask(address, "/counter"), seconds=120)
    return address


def test_namespace(rig: Rig) -> str:
    """Return the namespace that the test VM is in."""
    rehearsal = rig.item().rehearsal
    assert rehearsal is not None, "there is no test VM"
    return namespace_of(rehearsal.networks["corp-asr"])


def _networks(rig: Rig) -> list[str]:
    """Return the namespaces of all networks of this installation's hosts."""
    homes = (home for place in leaks.homes_of(rig.data) for home in (place / "networks").glob("*"))
    return [name for name in map(namespace_of, (home.name for home in homes)) if _exists(name)]


def _exists(name: str) -> bool:
    return Path("/run/netns", name).exists()


def _left(rig: Rig, namespace: str) -> list[str]:
    west = rig.data / "regions" / "west"
    left = [str(path) for path in (*west.rglob("*-test-*"), *west.glob("hosts/*/networks/t*"))]
    left += [namespace] if _exists(namespace) else []
    return left + (["a test VM in the vault"] if rig.item().rehearsal else [])
