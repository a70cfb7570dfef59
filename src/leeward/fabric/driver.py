"""The port every fabric driver implements: networks, VMs, and the way to a VM's QEMU.

Owns: what agents may ask of a host. Must not know: how a driver keeps or finds anything. Designed
for drivers that own their VMs' processes (`qemu`) and for those that meet running domains
(`libvirt`): protecting a VM needs `qmp` and `disk_nodes` only, never the process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from leeward.protocol.drills import ConsoleView
from leeward.protocol.fabric import DiskSpec, NetworkSpec, VmSpec, VmStatus

if TYPE_CHECKING:
    from leeward.qemu.session import QmpSession


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNode:
    """A disk of a VM as its QEMU knows it."""

    disk: str
    node: str
    """Format node: where bitmaps, taps and mirrors attach ("disk-<disk>")."""
    size_bytes: int
    is_hydrating: bool = False
    """True while the disk still reads from a base; its device's root is then "root-<disk>"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskImage:
    """A disk's image file. format: raw or qcow2."""

    disk: str
    path: Path
    format: str


class FabricDriver(Protocol):
    """One host. Thread-safe: calls for different VMs and networks run side by side.

    Every verb is idempotent: asked again with the same arguments it changes nothing. A verb that
    fails leaves nothing half-made. Verbs about an unknown VM or network raise NotFound, except
    the deleting ones.
    """

    def remove_leftovers(self) -> tuple[str, ...]:
        """Make true what an agent killed half-way left untrue; return a sentence for each repair.

        What was being created or deleted is gone; helpers of running VMs run. Call it once, when
        the agent starts, before any other verb.
        """

    def memory_available_mib(self) -> int:
        """Return the memory of the largest VM that could be started now, in MiB."""

    def memory_total_mib(self) -> int:
        """Return the memory of the largest VM that the host could run alone, in MiB."""

    def apply_network(self, spec: NetworkSpec) -> None:
        """Make the network exist on this host with exactly these subnets.

        Raises: Conflict when a subnet that VMs use is gone from `spec` or has another prefix.
        """

    def delete_network(self, network_id: str) -> None:
        """Make no trace of the network remain. Raises: Conflict while a VM has a NIC in it."""

    def create_vm(
        self, spec: VmSpec, *, bases: Mapping[str, Path] | None = None, paused: bool = False
    ) -> VmStatus:
        """Make the VM exist and run; with `paused`, stand before its first instruction.

        bases: disk → unix socket of an NBD export (export name = disk name). Such a disk is an
        empty overlay over it, filled by reading (copy-on-read); other disks are created empty or
        from their image. If the VM exists already, nothing changes: its power state neither.
        Raises: InvalidRequest or Conflict naming the field; HypervisorRefused; Unavailable.
        """

    def start_vm(self, vm_id: str, *, paused: bool = False) -> VmStatus:
        """Make the VM run. A paused one goes on; a stopped one boots, standing before its first
        instruction with `paused`."""

    def stop_vm(self, vm_id: str, *, force: bool) -> VmStatus:
        """Make the VM not run. Without `force` the guest is asked to power off first and has 30 s;
        with it nothing is waited for, not even a flush."""

    def change_vm(
        self, vm_id: str, *, vcpus: int, memory_mib: int, forwards: tuple[int, ...]
    ) -> VmStatus:
        """Make the stopped VM start with that size next. Raises: Conflict while it runs;
        InvalidRequest."""

    def add_disk(self, vm_id: str, disk: DiskSpec) -> VmStatus:
        """Make the VM have one more disk, empty or from its image; a running guest sees it. Returns
        the sizes of all its disks, too.

        Raises: Conflict when it has another disk of that name; InvalidRequest; HypervisorRefused
        when there is no place for it; Unavailable.
        """

    def unplug_disk(self, vm_id: str, disk: str) -> None:
        """Make a running guest not see the disk any more; what it holds stays for `remove_disk`.

        Raises: NotFound; Conflict for the disk the VM boots from, and while the disk is not local;
        HypervisorRefused when the guest does not let it go.
        """

    def remove_disk(self, vm_id: str, disk: str) -> None:
        """Make the VM have no such disk; its image is gone. Raises: as `unplug_disk`, but for a
        disk it has not; HypervisorRefused while the disk is mirrored."""

    def grow_disk(self, vm_id: str, disk: str, size_bytes: int) -> VmStatus:
        """Make the disk so large; a running guest sees it. Returns the sizes of all disks, too.

        Raises: NotFound; InvalidRequest when it would shrink; Conflict while it is not local;
        HypervisorRefused while it is mirrored.
        """

    def halt_vm(self, vm_id: str, *, power_off_seconds: float) -> bool:
        """Make the guest write no more while its QEMU stays, with all that is attached to it.

        The guest is asked to power off and has `power_off_seconds`; then it is paused. Returns
        whether it powered off. `start_vm` undoes it, `stop_vm` completes it. Idempotent.
        Raises: Conflict when the VM does not run.
        """

    def delete_vm(self, vm_id: str, *, keep_disks: Collection[str] = ()) -> None:
        """Make no trace of the VM remain: stopped, disks it was created with deleted. Images of
        `keep_disks` stay, as `<image>.kept`."""

    def made_for(self, vm_id: str) -> str:
        """Return the job that the VM was made for, "" if that is not known."""

    def vm_status(self, vm_id: str) -> VmStatus:
        """Return how the VM is now."""

    def list_vms(self) -> tuple[VmStatus, ...]:
        """Return every VM of this host, by vm_id."""

    def view_console(self, vm_id: str) -> ConsoleView:
        """Return what the VM shows: the end of its serial console, a picture of its display if it
        has one. Raises: Conflict when it is not running."""

    def qmp(self, vm_id: str) -> QmpSession:
        """Return the agent's one QMP session with the VM, shared by all callers; do not close it.

        A new one after the VM was restarted: ask again rather than keep it.
        Raises: Conflict when the VM is not running; Unavailable when its QEMU does not answer.
        """

    def agent_socket(self, vm_id: str) -> Path:
        """Return the unix socket at which the agent inside the guest, if there is one, is reached
        by one client at a time."""

    def nbd_socket(self, vm_id: str) -> Path:
        """Return the unix socket at which the VM's QEMU has its NBD server, once somebody has
        started it; it goes with QEMU."""

    def disk_nodes(self, vm_id: str) -> tuple[DiskNode, ...]:
        """Return the VM's disks in the order of its spec. Works while it is stopped too."""

    def allocated_bytes(self, vm_id: str) -> int:
        """Return how much space the images of the VM's disks take. Works while it runs."""

    def disk_images(self, vm_id: str) -> tuple[DiskImage, ...]:
        """Return where the images of the VM's disks lie, in the order of its spec. Raises: Conflict
        when it runs, or when a disk has not all of its content yet."""

    def forget_bases(self, vm_id: str) -> None:
        """Make later starts of the VM do without its bases.

        Call it when every disk holds all its data, before the base nodes are taken from QEMU: a VM
        that dies in between starts from its overlays alone.
        """
