"""Disks added to a VM, taken from it and made larger, whether it runs or not.

Owns: their steps, each written into the VM's record first: what a killed agent had begun is undone,
or finished, by `settle`. Must not know: replication; whoever mirrors a disk lets go of it first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.fabric import disks
from leeward.fabric.records import Records, VmRecord
from leeward.fabric.vms import VmFiles, VmProcesses
from leeward.observability.log import get_logger
from leeward.protocol.fabric import DiskSpec
from leeward.qemu import hotplug
from leeward.qemu.machine import MachineDisk
from leeward.qemu.session import QmpSession

_log = get_logger()


def disk_spec(record: VmRecord, name: str) -> DiskSpec:
    """Return what the record says of the disk. Raises: NotFound."""
    found = next((disk for disk in record.spec.disks if disk.name == name), None)
    if found is None:
        raise NotFound(f"VM {record.spec.vm_id} has no disk {name}", field="disk")
    return found


def image_of(record: VmRecord, name: str) -> Path:
    """Return where the disk's image lies."""
    disk = disk_spec(record, name)
    if name in record.overlays:
        return disks.overlay_path(record.spec.vm_id, disk, record.nonce)
    return disks.image_path(record.spec.vm_id, disk)


def machine_disk(record: VmRecord, name: str) -> MachineDisk:
    """Return the disk as its QEMU is to have it."""
    path, base = image_of(record, name), record.bases.get(name)
    return MachineDisk(
        name=name,
        path=path,
        format=disk_spec(record, name).format,
        is_direct=disks.is_direct_possible(path.parent),
        is_overlay=name in record.overlays,
        base_socket=Path(base) if base else None,
    )


def format_of(record: VmRecord, name: str) -> str:
    """Return the format of the disk's image."""
    return "qcow2" if name in record.overlays else disk_spec(record, name).format


class VmDisks:
    """Changes the disks of VMs of one host. Its caller holds the VM's lock."""

    def __init__(
        self,
        vms: Records[VmRecord],
        processes: VmProcesses,
        files_of: Callable[[str], VmFiles],
    ) -> None:
        self._vms = vms
        self._processes = processes
        self._files_of = files_of

    def add(self, record: VmRecord, disk: DiskSpec) -> None:
        """The VM has the disk, made empty or from its image, and its guest sees it. Idempotent.

        Raises: Conflict, InvalidRequest, HypervisorRefused, Unavailable; then there is nothing of
        it.
        """
        record = self.settle(record)  # what is half-made is taken away when the agent next starts
        vm_id = record.spec.vm_id
        if any(known.name == disk.name for known in record.spec.disks):
            if disk_spec(record, disk.name) != disk:
                raise Conflict(f"VM {vm_id} has another disk {disk.name} already", field="disk")
        else:
            spec = replace(record.spec, disks=(*record.spec.disks, disk))
            begun = replace(record, spec=spec, half_made=disk.name)
            disks.check_new(image_of(begun, disk.name), disk)
            self._vms.put(vm_id, begun)
            try:
                disks.create_image(image_of(begun, disk.name), disk)
                self._plug(begun, disk.name)
            except BaseException:
                self.settle(begun)
                raise
            record = replace(begun, half_made="")
            self._vms.put(vm_id, record)
            _log.info("disk_added", vm=vm_id, disk=disk.name)
        self._plug(record, disk.name)

    def unplug(self, record: VmRecord, name: str) -> None:
        """The VM's guest sees the disk no more, until the VM is started again. Idempotent.

        Raises: Conflict for the disk it boots from; HypervisorRefused when the guest keeps it.
        """
        record = self.settle(record)
        self._check_removable(record, name)
        session = self._session(record)
        if session is not None:
            hotplug.unplug(session, name)

    def remove(self, record: VmRecord, name: str) -> None:
        """The VM has no such disk, and its image is gone. Idempotent. Raises: as `unplug`;
        HypervisorRefused while somebody mirrors it."""
        record = self.settle(record)
        if all(disk.name != name for disk in record.spec.disks):
            return
        self.unplug(record, name)
        session = self._session(record)
        if session is not None:  # before it is written down: a disk that is refused stays one
            hotplug.drop_nodes(session, machine_disk(record, name))
        begun = replace(record, half_made=name)
        self._vms.put(record.spec.vm_id, begun)
        self.settle(begun)
        _log.info("disk_removed", vm=record.spec.vm_id, disk=name)

    def grow(self, record: VmRecord, name: str, size_bytes: int) -> None:
        """The disk is so large, for a running guest as well; what is new reads as zeros.
        Idempotent.

        Raises: InvalidRequest when it would shrink; Conflict while it is not local;
        HypervisorRefused while somebody mirrors or exports it; Unavailable.
        """
        record = self.settle(record)
        disk = disk_spec(record, name)
        path, image_format = image_of(record, name), format_of(record, name)
        size_before = disks.image_size(path, image_format)
        if size_bytes < size_before:
            raise InvalidRequest(
                f"disk {name} has {size_before} bytes: it cannot become smaller",
                field="size_bytes",
            )
        if name in record.bases:
            raise Conflict(f"disk {name} still reads from its recovery point", field="disk")
        session = self._session(record)
        if session is not None:
            hotplug.grow(session, name, size_bytes)
        else:
            disks.grow_image(path, image_format, size_bytes)
        larger = replace(disk, size_bytes=size_bytes)
        spec = replace(
            record.spec,
            disks=tuple(larger if one.name == name else one for one in record.spec.disks),
        )
        self._vms.put(record.spec.vm_id, replace(record, spec=spec))
        _log.info("disk_grown", vm=record.spec.vm_id, disk=name, bytes=size_bytes)

    def settle(self, record: VmRecord) -> VmRecord:
        """Return the record without the disk that was being added or removed: nothing of it is
        left. Idempotent."""
        name = record.half_made
        if not name:
            return record
        session = self._session(record)
        if session is not None:
            hotplug.unplug(session, name)
            hotplug.drop_nodes(session, machine_disk(record, name))
        disks.delete_image(image_of(record, name))
        kept = tuple(disk for disk in record.spec.disks if disk.name != name)
        settled = replace(
            record,
            spec=replace(record.spec, disks=kept),
            overlays=record.overlays - {name},
            half_made="",
        )
        self._vms.put(record.spec.vm_id, settled)
        return settled

    def _plug(self, record: VmRecord, name: str) -> None:
        session = self._session(record)
        if session is not None:
            hotplug.plug(session, machine_disk(record, name))

    def _session(self, record: VmRecord) -> QmpSession | None:
        """Return the session with the VM's QEMU, None while it does not run."""
        try:
            return self._processes.qmp(self._files_of(record.spec.vm_id))
        except Conflict:
            return None

    def _check_removable(self, record: VmRecord, name: str) -> None:
        disk_spec(record, name)
        if record.spec.disks[0].name == name:
            raise Conflict(f"VM {record.spec.vm_id} boots from disk {name}", field="disk")
        if name in record.bases:
            raise Conflict(f"disk {name} still reads from its recovery point", field="disk")
