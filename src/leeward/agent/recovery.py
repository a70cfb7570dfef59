"""Recovery verbs: VMs booted from a recovery point over an export, until their disks are local.

Owns: which VM reads from which export (kept on disk, so that an agent killed on the way finds its
exports and hydrations again). Must not know: NBD, QEMU, the replica log.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from leeward.agent.lanes import run_all
from leeward.agent.records import Records
from leeward.core.errors import Conflict, HypervisorRefused, LeewardError, NotFound, Unavailable
from leeward.fabric.driver import FabricDriver
from leeward.model.resources import PowerState
from leeward.observability.log import get_logger
from leeward.protocol.fabric import BootSpec, VmStatus
from leeward.protocol.messages import HydrationStatus

log = get_logger()

BOOT_TRIES_MAX = 3
AGAIN_SECONDS = 20.0
"""A boot that has failed after longer is not tried again: whoever asked will not wait for it."""
TEND_SECONDS = 5.0
"""Between two looks whether exports run that no hydration sees after."""


class ExportPort(Protocol):
    """A running export of one recovery point."""

    @property
    def socket(self) -> Path: ...
    def ensure_running(self) -> None: ...
    def wait_open(self) -> None: ...
    def first_read_ns(self) -> int: ...
    def stop(self) -> None: ...


class ExportsPort(Protocol):
    """Exports of this host."""

    def start(self, export_id: str, boot: BootSpec) -> ExportPort:
        """Return the export, which takes connections and answers them once it is open."""
        ...

    def find(self, export_id: str) -> ExportPort | None: ...

    def disk_sizes(self, boot: BootSpec) -> dict[str, int]:
        """Return the disks that the recovery point has, and their bytes."""
        ...


class HydratorPort(Protocol):
    """One VM's disks being made local."""

    def start(self) -> None: ...
    def status(self) -> HydrationStatus: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRecord:
    """What an agent keeps of a VM booted from a recovery point."""

    boot: BootSpec
    hydrated: bool = False
    bytes_total: int = 0
    first_read_ns: int = 0


class Recoveries:
    """Every VM of this host that was booted from a recovery point. Thread-safe per VM."""

    def __init__(
        self,
        driver: FabricDriver,
        directory: Path,
        exports: ExportsPort,
        make_hydrator: Callable[[BootSpec, ExportPort], HydratorPort],
    ) -> None:
        """make_hydrator: one that lets the VM's bases go and stops the export when it is done."""
        self._driver = driver
        self._records = Records(directory, RecoveryRecord)
        self._exports = exports
        self._make_hydrator = make_hydrator
        self._lock = threading.Lock()
        self._known: dict[str, RecoveryRecord] = self._records.all()
        self._hydrators: dict[str, HydratorPort] = {}
        self._vms: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        """Held while a VM is booted, started, discarded or seen after."""
        self._ending = threading.Event()

    def resume(self) -> None:
        """Exports that VMs still need run, and hydration goes on where it was; what cannot be taken
        up now is later. Nothing is waited for: a store may be away."""
        for vm_id, record in list(self._known.items()):
            self._take_up(vm_id, record)
        threading.Thread(target=self._tend, name="tend-recoveries", daemon=True).start()

    def _take_up(self, vm_id: str, record: RecoveryRecord) -> None:
        try:
            if not record.hydrated and self._may_read_from_base(vm_id):
                self._hydrate(record.boot, self._export_of(record.boot, waits=False))
                return
            if not record.hydrated and self._is_there(vm_id):
                # the agent before was killed just after the last base had gone
                self._remember(replace(record, hydrated=True))
            self._drop_export(vm_id)
        except LeewardError as error:
            log.warning("recovery_not_resumed", vm=vm_id, error=str(error))

    def _tend(self) -> None:
        while not self._ending.wait(TEND_SECONDS):
            self.look_after()

    def look_after(self) -> None:
        """What no hydration sees after is seen after: VMs that could not be taken up, and the
        exports of those that read from them all their lives."""
        for vm_id in list(self._known):
            lock = self._vms[vm_id]
            if lock.acquire(blocking=False):  # else somebody is at it
                try:
                    record = self._known.get(vm_id)
                    if record is not None and not record.hydrated and not self._ending.is_set():
                        self._look_after(vm_id, record)
                finally:
                    lock.release()

    def _look_after(self, vm_id: str, record: RecoveryRecord) -> None:
        with self._lock:
            is_hydrated_by_somebody = vm_id in self._hydrators
        if is_hydrated_by_somebody:
            return
        if record.boot.hydrates:
            self._take_up(vm_id, record)
            return
        export = self._exports.find(vm_id)
        try:
            if export is not None:
                export.ensure_running()
        except LeewardError as error:
            log.warning("export_not_running", vm=vm_id, error=str(error))

    def boot(self, spec: BootSpec) -> VmStatus:
        """The VM runs from the recovery point, its networks exist, and it is being hydrated.

        A boot that fails leaves nothing behind.
        Raises: Conflict if it runs from another point already; what export and driver raise.
        """
        is_varied = spec.is_varied
        if is_varied:
            spec = _as_at_the_point(spec, self._exports.disk_sizes(spec))
        with self._vms[spec.vm.vm_id]:
            status = self._boot_known(spec)
        if is_varied:
            return replace(status, disk_sizes={r.disk: r.size_bytes for r in spec.replicas})
        return status

    def _boot_known(self, spec: BootSpec) -> VmStatus:
        vm_id = spec.vm.vm_id
        known = self._known.get(vm_id)
        if known is not None and (known.boot.item_id, known.boot.point_id) != (
            spec.item_id,
            spec.point_id,
        ):
            if self._is_there(vm_id):
                raise Conflict(f"{vm_id} already runs from recovery point {known.boot.point_id}")
            self.discard(vm_id)  # a boot that was cut short, and nobody asked for again
            known = None
        if known is None and self._is_there(vm_id):
            raise Conflict(f"{vm_id} is on this host already, from no recovery point")
        if known is None:
            self._remember(RecoveryRecord(boot=spec))
        elif known.hydrated:
            return self._driver.start_vm(vm_id)
        try:
            export, status = self._boot_over_export(spec)
        except LeewardError:
            if known is None:
                self.discard(vm_id)
            raise
        self._hydrate(spec, export)
        return status

    def discard(
        self, vm_id: str, *, keep_disks: tuple[str, ...] = (), networks: tuple[str, ...] = ()
    ) -> None:
        """The VM, its overlays and its export are gone; the images of `keep_disks` stay under
        another name; of `networks` those are gone that no VM is in any more. Idempotent."""
        with self._vms[vm_id]:
            self._stop_hydrator(vm_id)
            self._driver.delete_vm(vm_id, keep_disks=keep_disks)
            self._drop_export(vm_id)
            with self._lock:
                self._known.pop(vm_id, None)
                self._records.delete(vm_id)
        for network_id in networks:
            with suppress(Conflict):  # whoever leaves it last takes it away
                self._driver.delete_network(network_id)

    def source_of(self, vm_id: str) -> tuple[Path, tuple[str, ...]]:
        """Return the socket of the running export that the VM reads from, and its disks. Raises:
        NotFound."""
        record = self._known.get(vm_id)
        if record is None or record.hydrated:
            raise NotFound(f"{vm_id} reads from no recovery point here")
        disks = tuple(replica.disk for replica in record.boot.replicas)
        return self._export_of(record.boot).socket, disks

    def epoch_of(self, vm_id: str, item_id: str) -> int:
        """Return the epoch under which the VM was booted from a recovery point of the item; 0: it
        was not."""
        record = self._known.get(vm_id)
        return record.boot.epoch if record is not None and record.boot.item_id == item_id else 0

    def ensure_export(self, vm_id: str) -> None:
        """The export that the VM still reads from runs; call it before the VM is started."""
        with self._vms[vm_id]:
            record = self._known.get(vm_id)
            if record is not None and not record.hydrated and self._reads_from_base(vm_id):
                self._hydrate(record.boot, self._export_of(record.boot))

    def statuses(self) -> tuple[HydrationStatus, ...]:
        """Return how far each VM is."""
        with self._lock:
            known, hydrators = dict(self._known), dict(self._hydrators)
        return tuple(
            self._status(vm_id, record, hydrators.get(vm_id))
            for vm_id, record in sorted(known.items())
        )

    def shut_down(self) -> None:
        """Nothing is driven from this process any more; VMs and exports go on running."""
        self._ending.set()
        run_all(partial(self._stop_hydrator, vm_id) for vm_id in list(self._hydrators))

    def _boot_over_export(self, spec: BootSpec) -> tuple[ExportPort, VmStatus]:
        """Return the export and the VM that runs over it.

        An export killed before the VM is there costs another try, not the failover: only a VM that
        is there already waits for its export to come back.
        """
        vm_id, begun = spec.vm.vm_id, time.monotonic()
        for _ in range(BOOT_TRIES_MAX - 1):
            try:
                return self._try_boot(spec)
            except (Unavailable, HypervisorRefused) as error:
                if time.monotonic() - begun > AGAIN_SECONDS:
                    raise
                log.warning("boot_tried_again", vm=vm_id, error=str(error))
        return self._try_boot(spec)

    def _try_boot(self, spec: BootSpec) -> tuple[ExportPort, VmStatus]:
        """While the export opens the recovery point, networks, overlays and QEMU get ready: QEMU
        waits for its answer."""
        export = self._exports.start(spec.vm.vm_id, spec)
        opened = _aside(export.wait_open)
        bases = {replica.disk: export.socket for replica in spec.replicas}
        try:
            for network in spec.networks:
                self._driver.apply_network(network)
            status = self._driver.create_vm(spec.vm, bases=bases)
        except HypervisorRefused as error:  # for want of its bases, perhaps
            raise opened.exception() or error from error
        opened.result()
        return export, status

    def _status(
        self, vm_id: str, record: RecoveryRecord, hydrator: HydratorPort | None
    ) -> HydrationStatus:
        is_due = record.boot.hydrates and not record.hydrated
        if record.hydrated or hydrator is None:
            return HydrationStatus(
                vm_id=vm_id,
                bytes_done=record.bytes_total if record.hydrated else 0,
                bytes_total=record.bytes_total,
                done=record.hydrated,
                first_read_ns=record.first_read_ns,
                problem="hydration has not begun" if is_due else "",
            )
        status = hydrator.status()
        if status.done:
            self._settle(record, status)
        return status

    def _settle(self, record: RecoveryRecord, status: HydrationStatus) -> None:
        """Every disk is local: remember it and what was measured, unless the VM has been discarded
        meanwhile."""
        hydrated = replace(
            record,
            hydrated=True,
            bytes_total=status.bytes_total,
            first_read_ns=status.first_read_ns,
        )
        with self._lock, suppress(LeewardError):
            if self._known.get(status.vm_id) is record:
                self._records.put(status.vm_id, hydrated)
                self._known[status.vm_id] = hydrated
                self._hydrators.pop(status.vm_id, None)  # its thread has ended

    def _may_read_from_base(self, vm_id: str) -> bool:
        """Say whether the VM reads from its export, or its QEMU still may: the agent before was
        killed before the last base node had gone, after which it would have ended the export."""
        if self._reads_from_base(vm_id):
            return True
        if self._exports.find(vm_id) is None:
            return False
        try:
            return self._driver.vm_status(vm_id).power is not PowerState.STOPPED
        except NotFound:
            return False

    def _reads_from_base(self, vm_id: str) -> bool:
        try:
            return any(disk.is_hydrating for disk in self._driver.disk_nodes(vm_id))
        except NotFound:
            return False

    def _is_there(self, vm_id: str) -> bool:
        try:
            return bool(self._driver.disk_nodes(vm_id))
        except NotFound:
            return False

    def _export_of(self, boot: BootSpec, *, waits: bool = True) -> ExportPort:
        export = self._exports.find(boot.vm.vm_id)
        if export is None:
            export = self._exports.start(boot.vm.vm_id, boot)
            if waits:
                export.wait_open()
            return export
        export.ensure_running()
        return export

    def _hydrate(self, boot: BootSpec, export: ExportPort) -> None:
        with self._lock:
            if boot.vm.vm_id in self._hydrators or not boot.hydrates:
                return
            hydrator = self._make_hydrator(boot, export)
            self._hydrators[boot.vm.vm_id] = hydrator
        hydrator.start()

    def _stop_hydrator(self, vm_id: str) -> None:
        with self._lock:
            hydrator = self._hydrators.pop(vm_id, None)
        if hydrator is not None:
            hydrator.stop()

    def _drop_export(self, vm_id: str) -> None:
        export = self._exports.find(vm_id)
        if export is not None:
            with suppress(LeewardError):
                export.stop()

    def _remember(self, record: RecoveryRecord) -> None:
        vm_id = record.boot.vm.vm_id
        with self._lock:
            self._records.put(vm_id, record)
            self._known[vm_id] = record


def _as_at_the_point(spec: BootSpec, sizes: dict[str, int]) -> BootSpec:
    """Return what is to be booted with just the disks that the point has, as large as they were."""
    disks = tuple(
        replace(disk, size_bytes=sizes[disk.name]) for disk in spec.vm.disks if disk.name in sizes
    )
    return replace(
        spec,
        replicas=tuple(
            replace(replica, size_bytes=sizes[replica.disk])
            for replica in spec.replicas
            if replica.disk in sizes
        ),
        vm=replace(spec.vm, disks=disks),
        is_varied=False,
    )


def _aside(action: Callable[[], None]) -> Future[None]:
    """Return what becomes of the action, run in a thread that nobody has to wait for."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            action()
        except Exception as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return outcome
