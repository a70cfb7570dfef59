"""How a subnet of this host is joined with the same subnet elsewhere: VXLAN, or a bridge out there.

Owns: the devices between a network's namespace and the host, and the rules that keep what is each
host's own (its gateway, its DHCP answers) on its side. Must not know: VMs, DHCP servers.

A tunnel's outer end stays in the namespace the agent runs in; only its inner end lies in the
network's. Every host has a UDP port of its own, which its peers are told, so that several hosts can
share a machine. Nothing is learned from packets: a frame goes to every peer, and the bridges behind
them know whether it is theirs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.fabric import namespaces
from leeward.protocol.fabric import SubnetSpec

COMMAND_SECONDS = 20.0
_EVERYBODY = "00:00:00:00:00:00"
_MTU = 1450
"""A frame and the tunnel's own headers fit into 1500 bytes."""


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """Where this host takes tunnels from others: an IPv4 address of its own and a UDP port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def parse_end(text: str) -> TunnelEnd:
    """Return the tunnel end that "ADDRESS:PORT" names. Raises: InvalidRequest."""
    address, _, port = text.rpartition(":")
    try:
        IPv4Address(address)
        number = int(port)
    except (AddressValueError, ValueError) as error:
        raise InvalidRequest(
            f"tunnel: {text!r} is not ADDRESS:PORT", field="tunnel", hint="such as 192.0.2.10:4789"
        ) from error
    if not 1 <= number <= 65535:
        raise InvalidRequest(f"tunnel: {port} is not a port", field="tunnel", hint="1 to 65535")
    return TunnelEnd(address, number)


def settle_end(wanted: str, kept_in: Path) -> TunnelEnd | None:
    """Return the host's tunnel end: `wanted` as it is, or with a free port that is kept in a file
    where it names an address alone; None where it is "". Raises: InvalidRequest, Unavailable."""
    if not wanted:
        return None
    if ":" in wanted:
        return parse_end(wanted)
    try:
        known = parse_end(kept_in.read_text().strip())
    except (OSError, InvalidRequest):
        known = None
    if known is not None and known.address == wanted:
        return known
    end = parse_end(f"{wanted}:{_free_port(wanted)}")
    kept_in.write_text(str(end))
    return end


@dataclass(frozen=True, slots=True)
class Joint:
    """Where one subnet's bridge in a network's namespace meets what is outside of it.

    there: devices of the namespace as they were last seen, by name.
    """

    namespace: str
    bridge: str
    subnet: SubnetSpec
    there: Mapping[str, Mapping[str, Any]]

    def join_peers(self, end: TunnelEnd | None, peers: Sequence[str]) -> None:
        """Make the bridge reach exactly those peers. Raises: Unavailable, InvalidRequest."""
        device = tunnel_of(self.subnet.name)
        if end is None or not self.subnet.tunnel_id or not peers:
            self._drop(device)
            return
        if not self._is_tunnel_of(device, end):
            self._drop(device)  # neither end nor id of a tunnel can be changed
            namespaces.change_host(
                [
                    f"link add {device} netns {self.namespace} mtu {_MTU} type vxlan "
                    f"id {self.subnet.tunnel_id} dstport {end.port} local {end.address} nolearning"
                ]
            )
        self._connect(device)
        _set_peers(self.namespace, device, [parse_end(peer) for peer in peers])

    def join_bridge(self) -> None:
        """Make the bridge one network with the host's bridge that the subnet names, if it does.

        Raises: InvalidRequest when the host has no such bridge; Unavailable.
        """
        inner = f"out-{_digest(self.subnet.name)}"
        if not self.subnet.bridge:
            self._drop(inner)
            return
        if not _has_bridge(self.subnet.bridge):
            raise InvalidRequest(
                f"subnet {self.subnet.name}: this host has no bridge {self.subnet.bridge}",
                field="bridge",
            )
        outer = f"lw{_digest(self.namespace + self.subnet.name, 10)}"
        if inner not in self.there:
            namespaces.change_host(
                [f"link add {outer} type veth peer name {inner} netns {self.namespace}"]
            )
        namespaces.change_host([f"link set {outer} master {self.subnet.bridge} up"])
        self._connect(inner)

    def _is_tunnel_of(self, device: str, end: TunnelEnd) -> bool:
        there = self.there.get(device, {}).get("linkinfo", {}).get("info_data", {})
        known = (there.get("id"), there.get("local"), there.get("port"))
        return known == (self.subnet.tunnel_id, end.address, end.port)

    def _connect(self, device: str) -> None:
        namespaces.change(self.namespace, [f"link set {device} master {self.bridge} up"])

    def _drop(self, device: str) -> None:
        if device in self.there:
            namespaces.change(self.namespace, [f"link delete {device}"])


def tunnel_of(subnet: str) -> str:
    """Return the name of the subnet's tunnel device."""
    return f"vx-{_digest(subnet)}"


def _has_bridge(name: str) -> bool:
    link = namespaces.host_links().get(name, {})
    return bool(link.get("linkinfo", {}).get("info_kind") == "bridge")


def _set_peers(namespace: str, device: str, peers: Sequence[TunnelEnd]) -> None:
    wanted = {(peer.address, peer.port) for peer in peers}
    known = _peers(namespace, device)
    lines = [
        f"fdb append {_EVERYBODY} dev {device} dst {address} port {port}"
        for address, port in sorted(wanted - known)
    ]
    lines += [
        f"fdb del {_EVERYBODY} dev {device} dst {address} port {port}"
        for address, port in sorted(known - wanted)
    ]
    if lines:
        _bridge(["-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def _peers(namespace: str, device: str) -> set[tuple[str, int]]:
    """Return what the device sends to now. A port that is the device's own is not shown."""
    own = namespaces.links(namespace)[device]["linkinfo"]["info_data"]["port"]
    shown = json.loads(_bridge(["-j", "-n", namespace, "fdb", "show", "dev", device]) or "[]")
    return {
        (str(entry["dst"]), int(entry.get("port", own)))
        for entry in shown
        if entry.get("mac") == _EVERYBODY and "dst" in entry
    }


def _bridge(arguments: Sequence[str], *, stdin: str = "") -> str:
    if shutil.which("bridge") is None:
        raise InvalidRequest("bridge (iproute2) is not installed")
    done = subprocess.run(
        ["bridge", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Unavailable(f"bridge {' '.join(arguments)}: {said[0] if said else done.returncode}")
    return done.stdout


def _free_port(address: str) -> int:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InvalidRequest(
            f"tunnel: {address!r} is not an address of this host", field="tunnel"
        ) from error


def _digest(text: str, length: int = 8) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
