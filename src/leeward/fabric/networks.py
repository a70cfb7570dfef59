"""A region's networks on this host: a namespace per network, a bridge and DHCP per subnet.

Owns: making them so, and connecting VMs. Must not know: disks, QEMU's processes. Two networks with
the same addresses live side by side; the subnets of one reach each other only if it routes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from leeward.core.errors import LeewardError, NotFound
from leeward.fabric import namespaces, processes
from leeward.fabric.dhcp import DhcpServer, held, stop_server
from leeward.fabric.forwards import ensure_forwarding, stop_forwarding
from leeward.fabric.outside import NAME_SERVER, Outside
from leeward.fabric.packet_rules import apply_rules
from leeward.fabric.processes import ProcessIdentity
from leeward.fabric.records import NetworkRecord, Records
from leeward.fabric.tunnels import Joint, TunnelEnd
from leeward.protocol.fabric import Forward, NetworkSpec, NicSpec, SubnetSpec, VmSpec
from leeward.qemu.machine import MachineNic


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a VM's QEMU is given of its networks.

    descriptors: to be inherited by it and closed here. forwards: those QEMU provides itself.
    """

    nics: tuple[MachineNic, ...]
    descriptors: tuple[int, ...] = ()
    forwards: tuple[Forward, ...] = ()

    def close(self) -> None:
        """Give up our own copies of the descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Networks(Protocol):
    """How this host makes networks. Calls for different networks and VMs run side by side."""

    def apply(self, spec: NetworkSpec) -> None:
        """Make the network exist with exactly these subnets."""

    def delete(self, network_id: str) -> None:
        """Make no trace of it remain. Idempotent."""

    def attach(self, spec: VmSpec, wanted: Sequence[Forward]) -> Attachment:
        """Connect the VM's NICs, in the order of its spec. wanted: host ports of its last start."""

    def detach(self, spec: VmSpec) -> None:
        """Make the networks forget the VM. Idempotent."""

    def forward(
        self, home: Path, spec: VmSpec, vm: ProcessIdentity, wanted: Sequence[Forward]
    ) -> tuple[Forward, ...]:
        """Make the VM's forwards work while process `vm` runs; return where they are."""

    def stop_forwarding(self, home: Path) -> None:
        """Make the VM's forwards not work. Idempotent."""


class NamespaceNetworks:
    """Networks in namespaces of their own; needs root and /dev/net/tun."""

    def __init__(self, records: Records[NetworkRecord], tunnel: TunnelEnd | None = None) -> None:
        """tunnel: where this host takes tunnels from others; None: it spans no networks."""
        self._records = records
        self._tunnel = tunnel

    def apply(self, spec: NetworkSpec) -> None:
        name = namespace_of(spec.network_id)
        is_new = not namespaces.exists(name)
        namespaces.ensure(name)
        for setting in ("ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"):
            namespaces.write_setting(name, setting, "1")
        is_joined = self._tunnel is not None and bool(spec.peers)
        apply_rules(name, spec, is_joined=is_joined, is_new=is_new)
        there = self._apply_bridges(name, spec)
        for subnet in spec.subnets:
            joint = Joint(name, bridge_of(subnet.name), subnet, there)
            joint.join_peers(self._tunnel, spec.peers)
            joint.join_bridge()
            self._dhcp(spec.network_id, subnet).ensure_running()
        outside = self._outside(spec.network_id)
        if spec.has_nat:
            outside.ensure_open()
        else:
            outside.close()

    def delete(self, network_id: str) -> None:
        self._outside(network_id).close()
        for home in sorted(self._records.home(network_id).glob("dhcp-*")):
            stop_server(home)
        name = namespace_of(network_id)
        for pid in namespaces.processes_in(name):  # servers whose directory was lost
            process = processes.identify(pid)
            if process is not None:
                processes.end(process)
        namespaces.remove(name)

    def attach(self, spec: VmSpec, wanted: Sequence[Forward]) -> Attachment:
        nics: list[MachineNic] = []
        descriptors: list[int] = []
        try:
            for nic in spec.nics:
                self._dhcp(nic.network_id, self._subnet(nic)).assign(spec.vm_id, spec.name, nic)
                descriptors.append(self._open_tap(spec.vm_id, nic))
                backend = f"tap,fd={descriptors[-1]}"
                nics.append(MachineNic(name=nic.name, mac=nic.mac, backend=backend))
        except BaseException:
            Attachment((), tuple(descriptors)).close()
            raise
        return Attachment(tuple(nics), tuple(descriptors))

    def detach(self, spec: VmSpec) -> None:
        for nic in spec.nics:
            home = self._dhcp_home(nic.network_id, nic.subnet)
            with held(home), suppress(NotFound):  # the network is gone already
                self._dhcp(nic.network_id, self._subnet(nic)).withdraw(spec.vm_id, nic.name)

    def forward(
        self, home: Path, spec: VmSpec, vm: ProcessIdentity, wanted: Sequence[Forward]
    ) -> tuple[Forward, ...]:
        if not spec.nics:
            return ()
        return ensure_forwarding(home, spec, namespace_of(spec.nics[0].network_id), vm, wanted)

    def stop_forwarding(self, home: Path) -> None:
        stop_forwarding(home)

    def _apply_bridges(self, name: str, spec: NetworkSpec) -> dict[str, dict[str, Any]]:
        """Make the bridges so; return the devices that were there before, bridges' ports too."""
        there = namespaces.links(name)
        wanted = {bridge_of(subnet.name): subnet for subnet in spec.subnets}
        commands = ["link set lo up"]
        for bridge, link in there.items():
            if bridge.startswith("br-") and bridge not in wanted:
                self._drop_subnet(spec.network_id, bridge)
                commands += [
                    f"link delete {port}"
                    for port in there
                    if there[port].get("master") == bridge and port.startswith(("vx-", "out-"))
                ]
                commands.append(f"link delete {link['ifname']}")
        for bridge, subnet in wanted.items():
            address = f"{host_address_of(subnet)}/{subnet.prefix.partition('/')[2]}"
            if bridge not in there:
                commands.append(f"link add {bridge} type bridge forward_delay 0 mcast_snooping 0")
            elif stale := namespaces.addresses(name, bridge) - {address}:
                self._drop_subnet(spec.network_id, bridge)
                commands += [f"address delete {old} dev {bridge}" for old in sorted(stale)]
            commands.append(f"address replace {address} dev {bridge}")
            commands.append(f"link set {bridge} up")
        namespaces.change(name, commands)
        for bridge in wanted:  # a guest that has just booted is found in 0.1 s instead of 1 s
            namespaces.write_setting(name, f"ipv4/neigh/{bridge}/retrans_time_ms", "100")
        return there

    def _drop_subnet(self, network_id: str, bridge: str) -> None:
        """Stop the DHCP server of a subnet that is gone or has another prefix now."""
        for home in sorted(self._records.home(network_id).glob("dhcp-*")):
            if bridge_of(home.name.removeprefix("dhcp-")) == bridge:
                stop_server(home)

    def _open_tap(self, vm_id: str, nic: NicSpec) -> int:
        name = namespace_of(nic.network_id)
        device = "tap" + hashlib.sha256(f"{vm_id}/{nic.name}".encode()).hexdigest()[:10]
        descriptor = namespaces.open_tap(name, device)
        try:
            namespaces.change(name, [f"link set {device} master {bridge_of(nic.subnet)} up"])
        except LeewardError:
            os.close(descriptor)
            raise
        return descriptor

    def _subnet(self, nic: NicSpec) -> SubnetSpec:
        record = self._records.get(nic.network_id)
        for subnet in record.spec.subnets if record else ():
            if subnet.name == nic.subnet:
                return subnet
        raise NotFound(f"there is no subnet {nic.subnet} in network {nic.network_id}")

    def _dhcp(self, network_id: str, subnet: SubnetSpec) -> DhcpServer:
        return DhcpServer(
            home=self._dhcp_home(network_id, subnet.name),
            namespace=namespace_of(network_id),
            bridge=bridge_of(subnet.name),
            subnet=subnet,
            name_server=NAME_SERVER if self._has_nat(network_id) else "",
        )

    def _dhcp_home(self, network_id: str, subnet: str) -> Path:
        return self._records.home(network_id) / f"dhcp-{subnet}"

    def _has_nat(self, network_id: str) -> bool:
        record = self._records.get(network_id)
        return record is not None and record.spec.has_nat

    def _outside(self, network_id: str) -> Outside:
        return Outside(self._records.home(network_id) / "outside", namespace_of(network_id))


def namespace_of(network_id: str) -> str:
    """Return the name of the network's namespace."""
    return f"lw-{network_id}"


def host_address_of(subnet: SubnetSpec) -> str:
    """Return the address of this host's side of the subnet."""
    return subnet.host_address or subnet.gateway


def bridge_of(subnet: str) -> str:
    """Return the name of the subnet's bridge: at most 15 characters, whatever the subnet's name."""
    return "br-" + hashlib.sha256(subnet.encode()).hexdigest()[:8]
