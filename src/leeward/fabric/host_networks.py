"""Networks of this host: what is wanted is written down, made, made again after a reboot, removed.

Owns: network records and their order against VMs'. Must not know: how a network is made (networks,
user_networks), VMs' processes.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from leeward.core.errors import Conflict, LeewardError, NotFound
from leeward.fabric import admission
from leeward.fabric.networks import NamespaceNetworks, Networks
from leeward.fabric.records import NetworkRecord, Records
from leeward.fabric.tunnels import TunnelEnd
from leeward.fabric.user_networks import UserNetworks
from leeward.protocol.fabric import NetworkSpec, VmSpec

Specs = Callable[[], Iterable[VmSpec]]
"""What is asked, under `admission`, for every VM there is or is about to be."""


class HostNetworks:
    """The networks under `data_dir`. Thread-safe for different networks."""

    def __init__(
        self,
        data_dir: Path,
        run_dir: Path,
        *,
        is_privileged: bool | None,
        tunnel: TunnelEnd | None = None,
    ) -> None:
        """is_privileged: None finds out whether namespaces can be made. tunnel: where this host
        takes tunnels from the region's other hosts."""
        self._records = Records(data_dir / "networks", NetworkRecord)
        self._notes = run_dir / "networks"
        """One empty file per network made: beside the sockets it outlives the loss of `data_dir`,
        which the namespace outlives too."""
        privileged = may_make_namespaces() if is_privileged is None else is_privileged
        self.way: Networks = (
            NamespaceNetworks(self._records, tunnel) if privileged else UserNetworks(self._records)
        )
        self.admission = threading.Lock()
        """Held while a record that others must be compared with is checked and written."""
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def usable(self) -> dict[str, NetworkSpec]:
        """Return the networks that VMs can be connected to, by id."""
        return {
            record.spec.network_id: record.spec
            for record in self._records.all()
            if not record.is_deleting
        }

    def apply(self, spec: NetworkSpec, vms: Specs) -> None:
        """Make the network exist with exactly these subnets.

        What cannot be made leaves it as it was: not there, or as last applied."""
        with self._locks[spec.network_id]:
            with self.admission:
                known = self._records.get(spec.network_id)
                admission.check_network(spec, known=known.spec if known else None, vms=vms())
                self._records.put(spec.network_id, NetworkRecord(spec=spec))
            try:
                self._make(spec)
            except (LeewardError, OSError):
                if known is None:
                    self._remove(spec.network_id)
                else:
                    self._records.put(spec.network_id, known)
                    with suppress(LeewardError, OSError):  # why it could not be made says more
                        self._make(known.spec)
                raise

    def delete(self, network_id: str, vms: Specs) -> None:
        """Make no trace of the network remain. Raises: Conflict while a VM has a NIC in it."""
        with self._locks[network_id]:
            with self.admission:
                users = [
                    vm.vm_id for vm in vms() if any(nic.network_id == network_id for nic in vm.nics)
                ]
                if users:
                    raise Conflict(
                        f"network {network_id} is used by {', '.join(users)}", field="network_id"
                    )
                record = self._records.get(network_id)
                if record is None:
                    return
                self._records.put(network_id, replace(record, is_deleting=True))
            self._remove(network_id)

    def restore(self, network_id: str) -> None:
        """Make the network exist as last applied, whatever has happened to the host since."""
        with self._locks[network_id]:
            record = self._records.get(network_id)
            if record is None:
                raise NotFound(f"there is no network {network_id} on this host")
            self._make(record.spec)

    def remove_leftovers(self) -> list[str]:
        """Finish deletions, restore the rest, drop what a lost state directory left behind."""
        repairs = []
        for record in self._records.all():
            network_id = record.spec.network_id
            try:
                if record.is_deleting:
                    self._remove(network_id)
                    repairs.append(f"network {network_id}, left half-deleted, was removed")
                else:
                    self.restore(network_id)
            except LeewardError as error:  # one broken network must not keep the agent down
                repairs.append(f"network {network_id} is still broken: {error}")
        known = set(self._records.ids())
        for note in sorted(self._notes.glob("*")):
            if note.name not in known:
                self._remove(note.name)
                repairs.append(f"network {note.name}, of a lost state directory, was removed")
        return repairs

    def _make(self, spec: NetworkSpec) -> None:
        self._notes.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._notes / spec.network_id).touch()
        self.way.apply(spec)

    def _remove(self, network_id: str) -> None:
        self.way.delete(network_id)
        self._records.delete(network_id)
        (self._notes / network_id).unlink(missing_ok=True)


def may_make_namespaces() -> bool:
    """Say whether this process can make network namespaces and tap devices."""
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)
