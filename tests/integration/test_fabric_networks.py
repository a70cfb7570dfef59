"""What reaches what: subnets of a network, hosts of a region, a bridge out there, the outside.

Packets decide: each station is a namespace on a subnet's bridge, as a guest would be.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from scenario.capture import wait_carries
from tests.integration.fabric_rig import Rig, rig

from leeward.core.errors import InvalidRequest
from leeward.fabric import namespaces, processes
from leeward.fabric.networks import bridge_of, namespace_of
from leeward.fabric.packet_rules import OUTSIDE
from leeward.fabric.qemu_driver import QemuDriver
from leeward.fabric.tunnels import TunnelEnd, parse_end, settle_end, tunnel_of
from leeward.protocol.fabric import NetworkSpec
from leeward.qemu.machine import Accelerator

pytestmark = pytest.mark.integration
T = TypeVar("T")


@pytest.fixture
def host() -> Iterator[Rig]:
    """Give what names networks, and look for traces at the end."""
    with rig() as made:
        yield made


@pytest.fixture
def stations() -> Iterator[ExitStack]:
    """Give what removes stations, hosts and their networks at the end."""
    with ExitStack() as stack:
        yield stack


class Machine:
    """A host in a namespace of its own, or in the test's, with a driver."""

    def __init__(
        self, stack: ExitStack, directory: Path, *, own_namespace: bool = False, tunnel: str = ""
    ) -> None:
        self.namespace = f"lwh{secrets.token_hex(3)}" if own_namespace else ""
        if self.namespace:
            namespaces.ensure(self.namespace)
            stack.callback(namespaces.remove, self.namespace)
            namespaces.change(self.namespace, ["link set lo up"])
        end = settle_end(tunnel, directory.with_suffix(".tunnel"))
        self.end = str(end or "")
        self._stack = stack
        self._driver = QemuDriver(
            directory / "data",
            directory / "run",
            accelerator=Accelerator.TCG,
            is_privileged=True,
            tunnel=end,
        )

    def inside(self, action: Callable[[], T]) -> T:
        """Return what the action returns, run where the host's agent would run."""
        return namespaces.inside(self.namespace, action) if self.namespace else action()

    def apply(self, spec: NetworkSpec) -> None:
        """The network exists on the host until the test ends."""
        self._stack.callback(self.inside, lambda: self._driver.delete_network(spec.network_id))
        self.inside(lambda: self._driver.apply_network(spec))


def station(stack: ExitStack, network: NetworkSpec, subnet: str, address: str) -> str:
    """Return a namespace that is on the subnet's bridge as a guest would be."""
    last = address.rpartition(".")[2]
    name = f"{namespace_of(network.network_id)}-{last}{subnet[0]}"
    namespaces.ensure(name)
    stack.callback(namespaces.remove, name)
    device = f"v{last}{subnet[0]}"
    namespaces.change(
        namespace_of(network.network_id),
        [
            f"link add {device} type veth peer name eth0 netns {name}",
            f"link set {device} master {bridge_of(subnet)} up",
        ],
    )
    gateway = address.rpartition(".")[0] + ".1"
    namespaces.change(
        name,
        [
            f"address add {address}/24 dev eth0",
            "link set lo up",
            "link set eth0 up",
            f"route add default via {gateway}",
        ],
    )
    wait_carries(name, "eth0")
    wait_carries(namespace_of(network.network_id), device)
    return name


def reaches(source: str, target: str, address: str, *, seconds: float = 60) -> bool:
    """Say whether a TCP connection from namespace `source` to one in `target` carries a byte."""
    listener = namespaces.inside(target, lambda: socket.create_server((address, 7)))

    def connect() -> bool:
        try:
            with socket.create_connection((address, 7), timeout=seconds) as connection:
                connection.sendall(b"?")
                connection.settimeout(seconds)
                return connection.recv(1) == b"!"
        except OSError:
            return False

    def answer() -> None:
        listener.settimeout(seconds)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection:
            connection.settimeout(seconds)
            try:
                if connection.recv(1) == b"?":
                    connection.sendall(b"!")
            except OSError:
                return

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        return namespaces.inside(source, connect)
    finally:
        answering.join()
        listener.close()


def is_apart(source: str, target: str, address: str) -> bool:
    """Say whether no such connection is made within a second."""
    return not reaches(source, target, address, seconds=1)


def test_the_subnets_of_a_network_do_not_reach_each_other(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    machine, network = Machine(stations, tmp_path / "a"), host.network("i")
    machine.apply(network)
    here = station(stations, network, "front", "10.77.0.9")
    near = station(stations, network, "front", "10.77.0.10")
    far = station(stations, network, "back", "10.77.1.9")
    assert reaches(here, near, "10.77.0.10")
    assert is_apart(here, far, "10.77.1.9")


def test_the_subnets_of_a_routed_network_reach_each_other_until_it_routes_no_more(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    machine, network = Machine(stations, tmp_path / "a"), host.network("r")
    machine.apply(replace(network, is_routed=True))
    here = station(stations, network, "front", "10.77.0.9")
    far = station(stations, network, "back", "10.77.1.9")
    assert reaches(here, far, "10.77.1.9")
    machine.apply(network)
    assert is_apart(here, far, "10.77.1.9")


def test_a_network_whose_change_is_refused_stays_as_it_was(
    host: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, network = host.driver(), host.network("f")
    driver.apply_network(network)
    for wanted, missing in (
        (replace(network, is_routed=True), "nft"),
        (
            replace(network, has_nat=True),
            "slirp4netns",
        ),  # when the rules let packets through already
    ):
        with monkeypatch.context() as patch:
            patch.setenv("PATH", path_without(tmp_path / missing, missing))
            with pytest.raises(InvalidRequest, match=f"{missing}.* is not installed"):
                driver.apply_network(wanted)
        assert forwards_packets(network) is False, missing
    driver.apply_network(replace(network, is_routed=True))
    assert forwards_packets(network)


def test_an_address_can_be_given_again_after_a_withdrawal_that_was_cut_short(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, network = host.driver(), host.network("w")
    driver.apply_network(network)
    driver.create_vm(host.empty_vm("one", nics=host.nics(network)[:1]), paused=True)
    home = dhcp_home(host, network)
    assert processes.read_pid_file(home / "dnsmasq.pid") is not None

    def killed(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        if path.parent.name == "hosts":
            raise KeyboardInterrupt

    real = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            driver.delete_vm("one")
    assert list((home / "hosts").iterdir()) == []
    assert processes.find(home / "dnsmasq.pid") is None, "one that has not forgotten the address"
    host.driver().delete_vm("one")
    assert processes.find(home / "dnsmasq.pid") is not None


def test_vms_of_a_subnet_are_deleted_side_by_side(host: Rig) -> None:
    driver, network = host.driver(), host.network("v")
    driver.apply_network(network)
    names = ("one", "two", "three")
    for last, name in enumerate(names, start=4):
        vm = host.empty_vm(name, nics=host.nics(network, last)[:1])
        disks = tuple(
            replace(disk, directory=f"{disk.directory}-{name}", format="raw") for disk in vm.disks
        )
        driver.create_vm(replace(vm, disks=disks), paused=True)
    with ThreadPoolExecutor() as pool:
        deletions = [pool.submit(driver.delete_vm, name) for name in names]
        deletions.append(pool.submit(driver.apply_network, network))
        for deletion in deletions:
            deletion.result()
    serving = [pid for pid in servers_in(network) if f"={bridge_of('front')}" in arguments(pid)]
    assert len(serving) == 1


def test_the_dhcp_server_says_what_the_network_has_now(host: Rig) -> None:
    driver, network = host.driver(), host.network("o")
    front = replace(network.subnets[0], host_address="10.77.0.254")
    network = replace(network, subnets=(front,))
    moved = replace(network, subnets=(replace(front, gateway="10.77.0.2"),))
    said, servers = [], []
    for spec in (network, network, replace(network, has_nat=True), network, moved):
        driver.apply_network(spec)
        server = processes.find(dhcp_home(host, network) / "dnsmasq.pid")
        assert server is not None
        servers.append(server)
        line = arguments(server.pid)
        said.append(("dns-server" in line, "router,10.77.0.1 " in line))
    assert said == [(False, True), (False, True), (True, True), (False, True), (False, False)]
    assert servers[0] == servers[1], "one that says what is so goes on"


def servers_in(network: NetworkSpec) -> list[int]:
    """Return the pids of the processes in the network's namespace."""
    return namespaces.processes_in(namespace_of(network.network_id))


def arguments(pid: int) -> str:
    """Return the command line of a process, "" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def dhcp_home(host: Rig, network: NetworkSpec) -> Path:
    """Return the directory of the DHCP server of the network's first subnet."""
    return host.directory / "data/networks" / network.network_id / "dhcp-front"


def path_without(directory: Path, missing: str) -> str:
    """Return a PATH with the programs that networks need but one."""
    directory.mkdir()
    for program in {"ip", "bridge", "nsenter", "dnsmasq", "nft", "slirp4netns"} - {missing}:
        found = shutil.which(program)
        assert found is not None, program
        (directory / program).symlink_to(found)
    return str(directory)


def forwards_packets(network: NetworkSpec) -> bool:
    """Say whether the network's namespace routes."""
    setting = Path("/proc/sys/net/ipv4/ip_forward")
    return namespaces.inside(namespace_of(network.network_id), setting.read_text).strip() == "1"


def test_a_network_spans_hosts_that_tell_each_other_where_their_tunnels_end(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    one = Machine(stations, tmp_path / "one", tunnel="127.0.0.1")
    two = Machine(stations, tmp_path / "two", tunnel="127.0.0.1")
    three = Machine(stations, tmp_path / "three", tunnel="127.0.0.1")
    assert len({one.end, two.end, three.end}) == 3
    specs = [joined(host, which) for which in "abc"]
    for machine, spec, peers in (
        (one, specs[0], (two.end, three.end)),
        (two, specs[1], (one.end, three.end)),
        (three, specs[2], (one.end, two.end)),
    ):
        machine.apply(replace(spec, peers=peers))
    here = station(stations, specs[0], "front", "10.77.0.9")
    there = station(stations, specs[1], "front", "10.77.0.10")
    third = station(stations, specs[2], "front", "10.77.0.11")
    other = station(stations, specs[1], "back", "10.77.1.9")
    assert reaches(here, there, "10.77.0.10")
    assert reaches(there, here, "10.77.0.9")
    assert reaches(third, here, "10.77.0.9")
    assert is_apart(here, other, "10.77.1.9")
    # a host that is no peer any more is not reached; the tunnel of the last peer goes
    one.apply(replace(specs[0], peers=(three.end,)))
    assert is_apart(here, there, "10.77.0.10")
    one.apply(specs[0])
    assert tunnel_of("front") not in namespaces.links(namespace_of(specs[0].network_id))


def test_a_tunnel_ends_where_the_host_takes_tunnels_now(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    other = Machine(stations, tmp_path / "other", tunnel="127.0.0.1")
    specs = [joined(host, which) for which in "gh"]
    before = Machine(stations, tmp_path / "one", tunnel="127.0.0.1")
    before.apply(replace(specs[0], peers=(other.end,)))
    # the same host, its agent started with another port
    (tmp_path / "one.tunnel").unlink()
    after = Machine(stations, tmp_path / "one", tunnel="127.0.0.1")
    assert after.end != before.end
    after.apply(replace(specs[0], peers=(other.end,)))
    other.apply(replace(specs[1], peers=(after.end,)))
    here = station(stations, specs[0], "front", "10.77.0.9")
    there = station(stations, specs[1], "front", "10.77.0.10")
    assert reaches(there, here, "10.77.0.9")
    index = namespaces.links(namespace_of(specs[0].network_id))[tunnel_of("front")]["ifindex"]
    after.apply(replace(specs[0], peers=(other.end,)))
    again = namespaces.links(namespace_of(specs[0].network_id))[tunnel_of("front")]["ifindex"]
    assert again == index, "one that ends there goes on"


def test_subnets_of_a_routed_network_reach_each_other_across_hosts(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    one = Machine(stations, tmp_path / "one", tunnel="127.0.0.1")
    two = Machine(stations, tmp_path / "two", tunnel="127.0.0.1")
    specs = [replace(joined(host, which), is_routed=True) for which in "de"]
    one.apply(replace(specs[0], peers=(two.end,)))
    two.apply(replace(specs[1], peers=(one.end,)))
    here = station(stations, specs[0], "front", "10.77.0.9")
    there = station(stations, specs[1], "back", "10.77.1.9")
    assert reaches(here, there, "10.77.1.9")
    assert reaches(there, here, "10.77.0.9")


def joined(host: Rig, which: str) -> NetworkSpec:
    """Return the network as the region's host `which` is told of it: one network on the wire."""
    network = host.network(which)
    ids = (int(host.tag, 16) % (1 << 23), 1 + int(host.tag, 16) % (1 << 23))
    subnets = tuple(
        replace(subnet, tunnel_id=1 + number)
        for subnet, number in zip(network.subnets, ids, strict=True)
    )
    return replace(network, subnets=subnets)


def test_a_network_with_address_translation_reaches_the_outside_and_is_not_reached_from_there(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    machine, network = Machine(stations, tmp_path / "a", own_namespace=True), host.network("n")
    namespaces.change(
        machine.namespace,
        [
            "link add outer type bridge",
            "address add 192.0.2.1/24 dev outer",
            "link set outer up",
        ],
    )
    machine.apply(network)
    here = station(stations, network, "front", "10.77.0.9")
    far = station(stations, network, "back", "10.77.1.9")
    assert is_apart(here, machine.namespace, "192.0.2.1")
    machine.apply(replace(network, has_nat=True))
    wait_for_device(namespace_of(network.network_id), OUTSIDE)
    assert reaches(here, machine.namespace, "192.0.2.1")
    assert is_apart(machine.namespace, here, "10.77.0.9")
    assert is_apart(here, far, "10.77.1.9")
    machine.apply(network)
    assert is_apart(here, machine.namespace, "192.0.2.1")


def test_a_subnet_joined_with_a_bridge_of_the_host_is_one_network_with_it(
    host: Rig, stations: ExitStack, tmp_path: Path
) -> None:
    machine, network = Machine(stations, tmp_path / "a", own_namespace=True), host.network("b")
    front = replace(network.subnets[0], bridge="site0", host_address="10.77.0.254")
    network = replace(network, subnets=(front, network.subnets[1]))
    with pytest.raises(InvalidRequest, match="no bridge site0"):
        machine.apply(network)
    namespaces.change(
        machine.namespace,
        [
            "link add site0 type bridge forward_delay 0",
            "address add 10.77.0.1/24 dev site0",
            "link set site0 up",
        ],
    )
    machine.apply(network)
    here = station(stations, network, "front", "10.77.0.9")
    far = station(stations, network, "back", "10.77.1.9")
    assert reaches(here, machine.namespace, "10.77.0.1")
    assert reaches(machine.namespace, here, "10.77.0.9")
    assert is_apart(far, machine.namespace, "10.77.0.1")


def wait_for_device(namespace: str, device: str) -> None:
    """Return when the namespace has that device, up and with a route."""
    for _ in range(300):
        if namespaces.addresses(namespace, device) if device in namespaces.links(namespace) else ():
            return
        time.sleep(0.1)
    raise AssertionError(f"{namespace} got no {device}")


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:70000", "host:4789", ":1"])
def test_what_is_no_tunnel_end_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_end(text)
    assert refused.value.field == "tunnel"


def test_a_hosts_tunnel_end_stays_where_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "tunnel"
    assert settle_end("", kept) is None
    first = settle_end("127.0.0.1", kept)
    assert first is not None
    assert settle_end("127.0.0.1", kept) == first
    assert settle_end("127.0.0.1:4789", kept) == TunnelEnd("127.0.0.1", 4789)
    with pytest.raises(InvalidRequest, match="not an address of this host"):
        settle_end("192.0.2.77", kept)
