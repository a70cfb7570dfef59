"""The fabric driver that owns its VMs: QEMU processes, images and networks of this host.

Owns: the order of steps, and undoing them. Must not know: how each step is done (vms, disks,
networks). Every verb writes its intent into the VM's record first; `remove_leftovers` finishes or
undoes what a killed agent had begun.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.core.units import MIB
from leeward.fabric import admission, disks
from leeward.fabric.accelerator import choose_accelerator
from leeward.fabric.console import view_console
from leeward.fabric.driver import DiskImage, DiskNode
from leeward.fabric.host_networks import HostNetworks
from leeward.fabric.records import Phase, Records, VmRecord
from leeward.fabric.tunnels import TunnelEnd
from leeward.fabric.vm_disks import VmDisks, format_of, image_of, machine_disk
from leeward.fabric.vms import VmFiles, VmProcesses, nbd_socket, socket_directory
from leeward.model.resources import PowerState
from leeward.observability.log import get_logger
from leeward.protocol.drills import ConsoleView
from leeward.protocol.fabric import DiskSpec, NetworkSpec, VmSpec, VmStatus
from leeward.qemu.machine import QEMU, Accelerator, Machine
from leeward.qemu.overlay import add_overlay_bitmaps
from leeward.qemu.session import QmpSession

_log = get_logger()

ASKED_AT_ONCE = 32
"""VMs whose state is asked side by side."""


class QemuDriver:
    """VMs and networks of this host, kept under `data_dir` (driver.FabricDriver).

    run_dir: short directory for unix sockets.
    """

    def __init__(
        self,
        data_dir: Path,
        run_dir: Path,
        *,
        accelerator: Accelerator | None = None,
        is_privileged: bool | None = None,
        tunnel: TunnelEnd | None = None,
    ) -> None:
        """accelerator, is_privileged: given instead of found out. tunnel: where this host takes
        tunnels from the region's other hosts; None: its networks are its own."""
        self._data_dir = data_dir
        self._run_dir = run_dir
        self._accelerator = accelerator
        self._vms = Records(data_dir / "vms", VmRecord)
        self._networks = HostNetworks(data_dir, run_dir, is_privileged=is_privileged, tunnel=tunnel)
        self._processes = VmProcesses()
        self._disks = VmDisks(self._vms, self._processes, self._files)
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    def close(self) -> None:
        """Let go of every VM; they run on."""
        self._processes.close()

    # -- networks ----------------------------------------------------------------------------------

    def memory_available_mib(self) -> int:
        return max(0, available_memory_mib() - admission.QEMU_OVERHEAD_MIB)

    def memory_total_mib(self) -> int:
        return max(0, _memory_mib("MemTotal") - admission.QEMU_OVERHEAD_MIB)

    def apply_network(self, spec: NetworkSpec) -> None:
        self._networks.apply(spec, self._specs)

    def delete_network(self, network_id: str) -> None:
        self._networks.delete(network_id, self._specs)

    # -- VMs ---------------------------------------------------------------------------------------

    def create_vm(
        self, spec: VmSpec, *, bases: Mapping[str, Path] | None = None, paused: bool = False
    ) -> VmStatus:
        spec = admission.complete(spec)
        with self._locks[spec.vm_id]:
            known = self._vms.get(spec.vm_id)
            if known is not None and known.phase in (Phase.READY, Phase.STARTING):
                if known.spec != spec:
                    raise Conflict(f"VM {spec.vm_id} exists already", field="vm_id")
                return self.vm_status(spec.vm_id)
            if known is not None:
                self._remove(known)
            record = self._admit(spec, bases or {})
            try:
                for disk in spec.disks:
                    self._create_disk(record, disk.name)
                return self._boot(record, paused=paused)
            except BaseException:
                self._remove(record)
                raise

    def _admit(self, spec: VmSpec, bases: Mapping[str, Path]) -> VmRecord:
        """Return the record of a VM that may be made, written down. Nothing else is done yet."""
        self._files(spec.vm_id)
        for program in (QEMU, "qemu-img"):
            if shutil.which(program) is None:
                raise InvalidRequest(f"{program} is not installed on this host")
        admission.check_memory(spec, available_memory_mib())
        record = VmRecord(
            spec=spec,
            phase=Phase.CREATING,
            overlays=frozenset(bases),
            nonce=secrets.token_hex(4),
            bases={disk: str(socket) for disk, socket in bases.items()},
        )
        if unknown := record.overlays - {disk.name for disk in spec.disks}:
            raise InvalidRequest(f"there is no disk {', '.join(sorted(unknown))}", field="disks")
        with self._networks.admission:
            others = [other for other in self._specs() if other.vm_id != spec.vm_id]
            admission.check_vm(spec, networks=self._networks.usable(), others=others)
            for disk in spec.disks:
                if disk.name in record.overlays:
                    disks.check_unused(spec.vm_id, disk)
                disks.check_new(image_of(record, disk.name), disk)
            self._vms.put(spec.vm_id, record)
        return record

    def _create_disk(self, record: VmRecord, name: str) -> None:
        disk = next(disk for disk in record.spec.disks if disk.name == name)
        path = image_of(record, name)
        if name in record.overlays:
            disks.create_overlay_image(path, disk, Path(record.bases[name]))
        else:
            disks.create_image(path, disk)

    def start_vm(self, vm_id: str, *, paused: bool = False) -> VmStatus:
        with self._locks[vm_id]:
            record = self._record(vm_id)
            files = self._files(vm_id)
            if self._processes.process(files) is not None and self._processes.is_halted(files):
                self._processes.end(files, force=False)
            if self._processes.process(files) is None:
                record = self._disks.settle(record)
                admission.check_memory(record.spec, available_memory_mib())
                self._vms.put(vm_id, replace(record, phase=Phase.STARTING))
                try:
                    return self._boot(record, paused=paused)
                except BaseException:
                    self._vms.put(vm_id, replace(record, phase=Phase.READY))
                    raise
            if not paused:
                self._processes.resume(files)
            return self.vm_status(vm_id)

    def _boot(self, record: VmRecord, *, paused: bool) -> VmStatus:
        """Start the VM's process and all that goes with it, and settle its record."""
        spec, files = record.spec, self._files(record.spec.vm_id)
        for network_id in sorted({nic.network_id for nic in spec.nics}):
            self._networks.restore(network_id)  # the host may have been rebooted since
        accelerator = self._choose_accelerator()
        self._networks.way.stop_forwarding(files.home)
        attachment = self._networks.way.attach(spec, record.forwards)
        try:
            machine = Machine(
                name=spec.name,
                vcpus=spec.vcpus,
                memory_mib=spec.memory_mib,
                display=spec.display,
                accelerator=accelerator,
                disks=tuple(machine_disk(record, disk.name) for disk in spec.disks),
                nics=attachment.nics,
                qmp_socket=files.qmp,
                spare_qmp_socket=files.spare_qmp,
                agent_socket=files.agent,
                console_log=files.console,
            )
            process = self._processes.start(files, machine, attachment.descriptors)
        finally:
            attachment.close()
        try:
            if record.overlays and record.phase is Phase.CREATING:
                add_overlay_bitmaps(self._processes.qmp(files), sorted(record.overlays))
            wanted = attachment.forwards or record.forwards
            forwards = self._networks.way.forward(files.home, spec, process, wanted)
            if not paused:
                self._processes.resume(files)
            settled = replace(
                record, phase=Phase.READY, accelerator=accelerator.value, forwards=forwards
            )
            self._vms.put(spec.vm_id, settled)
        except BaseException:  # one that is noted as half-started would be ended whenever we start
            self._processes.end(files, force=True)
            raise
        _log.info("vm_started", vm=spec.vm_id, pid=process.pid, accelerator=accelerator.value)
        return self.vm_status(spec.vm_id)

    def stop_vm(self, vm_id: str, *, force: bool) -> VmStatus:
        with self._locks[vm_id]:
            self._record(vm_id)
            files = self._files(vm_id)
            if force:
                self._processes.end(files, force=True)
            else:
                self._processes.power_off(files)
            self._networks.way.stop_forwarding(files.home)
            _log.info("vm_stopped", vm=vm_id, force=force)
            return self.vm_status(vm_id)

    def change_vm(
        self, vm_id: str, *, vcpus: int, memory_mib: int, forwards: tuple[int, ...]
    ) -> VmStatus:
        with self._locks[vm_id]:
            record = self._record(vm_id)
            if self._processes.process(self._files(vm_id)) is not None:
                raise Conflict(f"VM {vm_id} runs: its size changes only while it is stopped")
            spec = replace(record.spec, vcpus=vcpus, memory_mib=memory_mib, forwards=forwards)
            with self._networks.admission:
                others = [other for other in self._specs() if other.vm_id != vm_id]
                admission.check_vm(spec, networks=self._networks.usable(), others=others)
                self._vms.put(vm_id, replace(record, spec=spec))
            return self.vm_status(vm_id)

    def add_disk(self, vm_id: str, disk: DiskSpec) -> VmStatus:
        with self._locks[vm_id]:
            record = self._record(vm_id)
            if all(known.name != disk.name for known in record.spec.disks):
                admission.check_disks(replace(record.spec, disks=(*record.spec.disks, disk)))
            self._disks.add(record, disk)
            return self._with_sizes(vm_id)

    def unplug_disk(self, vm_id: str, disk: str) -> None:
        with self._locks[vm_id]:
            self._disks.unplug(self._record(vm_id), disk)

    def remove_disk(self, vm_id: str, disk: str) -> None:
        with self._locks[vm_id]:
            self._disks.remove(self._record(vm_id), disk)

    def grow_disk(self, vm_id: str, disk: str, size_bytes: int) -> VmStatus:
        with self._locks[vm_id]:
            self._disks.grow(self._record(vm_id), disk, size_bytes)
            return self._with_sizes(vm_id)

    def _with_sizes(self, vm_id: str) -> VmStatus:
        sizes = {node.disk: node.size_bytes for node in self.disk_nodes(vm_id)}
        return replace(self.vm_status(vm_id), disk_sizes=sizes)

    def halt_vm(self, vm_id: str, *, power_off_seconds: float) -> bool:
        with self._locks[vm_id]:
            self._record(vm_id)
            files = self._files(vm_id)
            is_off = self._processes.halt(files, power_off_seconds=power_off_seconds)
            _log.info("vm_halted", vm=vm_id, is_guest_off=is_off)
            return is_off

    def delete_vm(self, vm_id: str, *, keep_disks: Collection[str] = ()) -> None:
        with self._locks[vm_id]:
            record = self._vms.get(vm_id)
            if record is not None:
                self._processes.end(self._files(vm_id), force=True)
                for name in set(keep_disks) & {disk.name for disk in record.spec.disks}:
                    disks.keep_image(image_of(record, name))
                self._remove(record)
                _log.info("vm_deleted", vm=vm_id)

    def _remove(self, record: VmRecord) -> None:
        """Make no trace of the VM remain, its record last. Idempotent."""
        vm_id = record.spec.vm_id
        files = self._files(vm_id)
        self._vms.put(vm_id, replace(record, phase=Phase.DELETING))
        self._processes.end(files, force=True)
        self._networks.way.stop_forwarding(files.home)
        self._networks.way.detach(record.spec)
        for disk in record.spec.disks:
            disks.delete_image(image_of(record, disk.name))
        self._vms.delete(vm_id)

    def made_for(self, vm_id: str) -> str:
        return self._record(vm_id).spec.made_for

    def vm_status(self, vm_id: str) -> VmStatus:
        return self._status(self._record(vm_id))

    def list_vms(self) -> tuple[VmStatus, ...]:
        records = [each for each in self._vms.all() if each.phase in (Phase.READY, Phase.STARTING)]
        # Side by side: a few that hang, one after the other, would make the host look silent.
        with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="vm-status") as asking:
            return tuple(asking.map(self._status, records))

    def _status(self, record: VmRecord) -> VmStatus:
        files = self._files(record.spec.vm_id)
        power = self._processes.power(files)
        process = self._processes.process(files)
        if power is PowerState.STOPPED or process is None:
            return VmStatus(
                vm_id=record.spec.vm_id,
                power=PowerState.STOPPED,
                console_log=str(files.console),
            )
        return VmStatus(
            vm_id=record.spec.vm_id,
            power=power,
            accelerator=record.accelerator,
            pid=process.pid,
            forwards=record.forwards,
            console_log=str(files.console),
        )

    def view_console(self, vm_id: str) -> ConsoleView:
        files = self._files(vm_id)
        return view_console(self.qmp(vm_id), files.console, files.home / "screen.png")

    def qmp(self, vm_id: str) -> QmpSession:
        self._record(vm_id)
        return self._processes.qmp(self._files(vm_id))

    def agent_socket(self, vm_id: str) -> Path:
        self._record(vm_id)
        return self._files(vm_id).agent

    def nbd_socket(self, vm_id: str) -> Path:
        return nbd_socket(self._run_dir, vm_id)

    def disk_nodes(self, vm_id: str) -> tuple[DiskNode, ...]:
        record = self._record(vm_id)
        nodes = []
        for disk in record.spec.disks:
            path = image_of(record, disk.name)
            image_format = format_of(record, disk.name)
            nodes.append(
                DiskNode(
                    disk=disk.name,
                    node=f"disk-{disk.name}",
                    size_bytes=disks.image_size(path, image_format),
                    is_hydrating=disk.name in record.bases,
                )
            )
        return tuple(nodes)

    def allocated_bytes(self, vm_id: str) -> int:
        record = self._record(vm_id)
        paths = (image_of(record, disk.name) for disk in record.spec.disks)
        return sum(disks.allocated_bytes(path) for path in paths)

    def disk_images(self, vm_id: str) -> tuple[DiskImage, ...]:
        record = self._record(vm_id)
        if self._processes.process(self._files(vm_id)) is not None:
            raise Conflict(f"VM {vm_id} runs: its disks change")
        if record.bases:
            raise Conflict(f"disks of VM {vm_id} are not local yet")
        return tuple(
            DiskImage(
                disk=disk.name,
                path=image_of(record, disk.name),
                format=format_of(record, disk.name),
            )
            for disk in record.spec.disks
        )

    def forget_bases(self, vm_id: str) -> None:
        with self._locks[vm_id]:
            self._vms.put(vm_id, replace(self._record(vm_id), bases={}))

    # -- after a crash -----------------------------------------------------------------------------

    def remove_leftovers(self) -> tuple[str, ...]:
        repairs = []
        for record in self._vms.all():
            try:
                repair = self._repair_vm(record)
            except LeewardError as error:  # one broken VM must not keep the agent down
                repair = f"VM {record.spec.vm_id} is still broken: {error}"
            if repair:
                repairs.append(repair)
        repairs += self._networks.remove_leftovers()
        return tuple(repairs)

    def _repair_vm(self, record: VmRecord) -> str:
        """Bring one VM to a settled state; return what was done, "" for nothing."""
        vm_id = record.spec.vm_id
        files = self._files(vm_id)
        with self._locks[vm_id]:
            if record.phase in (Phase.CREATING, Phase.DELETING):
                self._remove(record)
                return f"VM {vm_id}, left half-made or half-deleted, was removed"
            settled, record = self._settle_disks(record)
            process = self._processes.process(files)
            if record.phase is Phase.STARTING:
                self._processes.end(files, force=True)
                self._vms.put(vm_id, replace(record, phase=Phase.READY))
                return f"VM {vm_id}, left half-started, was stopped{settled and '; '}{settled}"
            if process is None:
                self._networks.way.stop_forwarding(files.home)
                return settled
            forwards = self._networks.way.forward(files.home, record.spec, process, record.forwards)
            if forwards != record.forwards:
                self._vms.put(vm_id, replace(record, forwards=forwards))
            return settled

    def _settle_disks(self, record: VmRecord) -> tuple[str, VmRecord]:
        """Return what was done about a half-made disk, "" for nothing, and the record of after."""
        name = record.half_made
        if not name:
            return "", record
        what = f"disk {name} of VM {record.spec.vm_id}, left half-added or half-removed,"
        try:
            return f"{what} was removed", self._disks.settle(record)
        except (
            LeewardError
        ) as error:  # the VM's other disks, and its forwards, need not wait for it
            return f"{what} is still there: {error}", record

    # -- small answers -----------------------------------------------------------------------------

    def _record(self, vm_id: str) -> VmRecord:
        record = self._vms.get(vm_id)
        if record is None or record.phase in (Phase.CREATING, Phase.DELETING):
            raise NotFound(f"there is no VM {vm_id} on this host")
        return record

    def _specs(self) -> list[VmSpec]:
        return [record.spec for record in self._vms.all()]

    def _files(self, vm_id: str) -> VmFiles:
        return VmFiles(
            home=self._vms.home(vm_id),
            sockets=socket_directory(self._run_dir, vm_id),
            nbd=self.nbd_socket(vm_id),
        )

    def prepare(self) -> None:
        """Find out now what the first VM, in a failover perhaps, would have to wait for."""
        with suppress(LeewardError):  # without QEMU: the first VM says so to whoever wants it
            self._choose_accelerator()

    def _choose_accelerator(self) -> Accelerator:
        if self._accelerator is None:
            self._accelerator = choose_accelerator(self._data_dir / "accelerator.json")
        return self._accelerator


def available_memory_mib() -> int:
    """Return how much memory the host can still give without swapping."""
    return _memory_mib("MemAvailable")


def _memory_mib(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 // MIB
    raise InvalidRequest(f"the host does not say how much memory it has ({key})")
