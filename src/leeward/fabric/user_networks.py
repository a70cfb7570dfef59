"""Networks without privileges: QEMU's own user networking, with the same addresses.

Owns: its options. Must not know: namespaces. VMs get their addresses and their forwards; they reach
neither each other nor anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leeward.core.errors import NotFound
from leeward.fabric.forwards import free_ports
from leeward.fabric.networks import Attachment
from leeward.fabric.processes import ProcessIdentity
from leeward.fabric.records import NetworkRecord, Records
from leeward.protocol.fabric import Forward, NetworkSpec, NicSpec, SubnetSpec, VmSpec
from leeward.qemu.machine import MachineNic


class UserNetworks:
    """Networks inside each VM's QEMU (networks.Networks); there is nothing to make or remove."""

    def __init__(self, records: Records[NetworkRecord]) -> None:
        self._records = records

    def apply(self, spec: NetworkSpec) -> None:
        pass

    def delete(self, network_id: str) -> None:
        pass

    def attach(self, spec: VmSpec, wanted: Sequence[Forward]) -> Attachment:
        forwards = free_ports(spec, wanted)
        nics = tuple(
            MachineNic(
                name=nic.name,
                mac=nic.mac,
                backend=self._backend(spec, nic, forwards if index == 0 else ()),
            )
            for index, nic in enumerate(spec.nics)
        )
        return Attachment(nics, forwards=forwards)

    def detach(self, spec: VmSpec) -> None:
        pass

    def forward(
        self, home: Path, spec: VmSpec, vm: ProcessIdentity, wanted: Sequence[Forward]
    ) -> tuple[Forward, ...]:
        return tuple(wanted)

    def stop_forwarding(self, home: Path) -> None:
        pass

    def _backend(self, spec: VmSpec, nic: NicSpec, forwards: Sequence[Forward]) -> str:
        subnet = self._subnet(nic)
        ports = "".join(
            f",hostfwd=tcp:{one.host_address}:{one.host_port}-{nic.address}:{one.guest_port}"
            for one in forwards
        )
        return (
            f"user,restrict=on,ipv6=off,net={subnet.prefix},host={subnet.gateway},"
            f"dhcpstart={nic.address},hostname={spec.name}{ports}"
        )

    def _subnet(self, nic: NicSpec) -> SubnetSpec:
        record = self._records.get(nic.network_id)
        for subnet in record.spec.subnets if record else ():
            if subnet.name == nic.subnet:
                return subnet
        raise NotFound(f"there is no subnet {nic.subnet} in network {nic.network_id}")
