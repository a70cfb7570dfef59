"""Stand-ins for the fabric and what hangs on it: they remember what was asked of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from leeward.core.errors import LeewardError, NotFound, Unavailable
from leeward.fabric.driver import DiskImage, DiskNode
from leeward.mobility.shared_cut import SharedAttempt
from leeward.model.recovery import Consistency, FreezeReport, ReplicationState
from leeward.model.resources import PowerState
from leeward.protocol.drills import ConsoleView
from leeward.protocol.fabric import (
    BootSpec,
    DiskSpec,
    NetworkSpec,
    ReplicaDisk,
    ReplicationSpec,
    VmSpec,
    VmStatus,
)
from leeward.protocol.messages import HydrationStatus, ReplicationStatus
from leeward.qemu.session import QmpSession


class FakeDriver:
    """A host whose VMs are names with a power state; `calls` has every change in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.vms: dict[str, PowerState] = {}
        self.hydrating: set[str] = set()
        self.jobs: dict[str, str] = {}
        self.refuse_create: LeewardError | None = None
        self.refuse_delete_network: LeewardError | None = None

    def remove_leftovers(self) -> tuple[str, ...]:
        return ()

    def memory_available_mib(self) -> int:
        return 1024

    def memory_total_mib(self) -> int:
        return 2048

    def apply_network(self, spec: NetworkSpec) -> None:
        self.calls.append(f"network {spec.network_id}")

    def delete_network(self, network_id: str) -> None:
        if self.refuse_delete_network:
            raise self.refuse_delete_network
        self.calls.append(f"no network {network_id}")

    def create_vm(
        self, spec: VmSpec, *, bases: Mapping[str, Path] | None = None, paused: bool = False
    ) -> VmStatus:
        if self.refuse_create:
            raise self.refuse_create
        self.calls.append(f"create {spec.vm_id} over {sorted(bases or {})}")
        self.vms[spec.vm_id] = PowerState.RUNNING
        self.jobs[spec.vm_id] = spec.made_for
        if bases:
            self.hydrating.add(spec.vm_id)
        return self.vm_status(spec.vm_id)

    def start_vm(self, vm_id: str, *, paused: bool = False) -> VmStatus:
        self.vm_status(vm_id)
        self.calls.append(f"start {vm_id}")
        self.vms[vm_id] = PowerState.RUNNING
        return self.vm_status(vm_id)

    def stop_vm(self, vm_id: str, *, force: bool) -> VmStatus:
        self.vm_status(vm_id)
        self.calls.append(f"stop {vm_id}{' by force' if force else ''}")
        self.vms[vm_id] = PowerState.STOPPED
        return self.vm_status(vm_id)

    def change_vm(
        self, vm_id: str, *, vcpus: int, memory_mib: int, forwards: tuple[int, ...]
    ) -> VmStatus:
        self.calls.append(f"change {vm_id} to {vcpus}, {memory_mib}, {forwards}")
        return self.vm_status(vm_id)

    def add_disk(self, vm_id: str, disk: DiskSpec) -> VmStatus:
        self.calls.append(f"add {disk.name} to {vm_id}")
        return replace(self.vm_status(vm_id), disk_sizes={"d": 1 << 20, disk.name: 1 << 20})

    def unplug_disk(self, vm_id: str, disk: str) -> None:
        self.calls.append(f"unplug {disk} of {vm_id}")

    def remove_disk(self, vm_id: str, disk: str) -> None:
        self.calls.append(f"remove {disk} of {vm_id}")

    def grow_disk(self, vm_id: str, disk: str, size_bytes: int) -> VmStatus:
        self.calls.append(f"grow {disk} of {vm_id}")
        return replace(self.vm_status(vm_id), disk_sizes={disk: size_bytes})

    def halt_vm(self, vm_id: str, *, power_off_seconds: float) -> bool:
        self.vm_status(vm_id)
        self.calls.append(f"halt {vm_id}")
        self.vms[vm_id] = PowerState.PAUSED
        return True

    def delete_vm(self, vm_id: str, *, keep_disks: Collection[str] = ()) -> None:
        self.calls.append(f"delete {vm_id}")
        self.vms.pop(vm_id, None)
        self.hydrating.discard(vm_id)

    def made_for(self, vm_id: str) -> str:
        self.vm_status(vm_id)
        return self.jobs.get(vm_id, "")

    def vm_status(self, vm_id: str) -> VmStatus:
        if vm_id not in self.vms:
            raise NotFound(f"there is no VM {vm_id}")
        return VmStatus(vm_id=vm_id, power=self.vms[vm_id])

    def list_vms(self) -> tuple[VmStatus, ...]:
        return tuple(self.vm_status(vm_id) for vm_id in sorted(self.vms))

    def view_console(self, vm_id: str) -> ConsoleView:
        self.vm_status(vm_id)
        return ConsoleView(text="login: ")

    def qmp(self, vm_id: str) -> QmpSession:
        raise Unavailable("no QEMU here")

    def agent_socket(self, vm_id: str) -> Path:
        raise Unavailable("no QEMU here")

    def nbd_socket(self, vm_id: str) -> Path:
        raise Unavailable("no QEMU here")

    def disk_nodes(self, vm_id: str) -> tuple[DiskNode, ...]:
        self.vm_status(vm_id)
        return (
            DiskNode(
                disk="d", node="disk-d", size_bytes=1 << 20, is_hydrating=vm_id in self.hydrating
            ),
        )

    def allocated_bytes(self, vm_id: str) -> int:
        self.calls.append(f"measure {vm_id}")
        return 1 << 20 >> self.calls.count(f"measure {vm_id}")

    def disk_images(self, vm_id: str) -> tuple[DiskImage, ...]:
        self.vm_status(vm_id)
        return (DiskImage(disk="d", path=Path("/disks/d.raw"), format="raw"),)

    def forget_bases(self, vm_id: str) -> None:
        self.hydrating.discard(vm_id)


class FakeReplicator:
    """Streams from `start` to `stop`."""

    def __init__(self, spec: ReplicationSpec, calls: list[str]) -> None:
        self.spec = spec
        self._calls = calls
        self.refuse_stop: Unavailable | None = None

    def start(self) -> None:
        self._calls.append(f"replicate {self.spec.item_id} epoch {self.spec.epoch}")

    def status(self) -> ReplicationStatus:
        return ReplicationStatus(
            item_id=self.spec.item_id,
            epoch=self.spec.epoch,
            state=ReplicationState.STREAMING,
            initial_done=True,
        )

    def share(self, attempt: SharedAttempt) -> None:
        self._calls.append(f"share {attempt.mark.id} of {self.spec.item_id}")

    def let_go(self, disk: str) -> None:
        self._calls.append(f"let go of {disk}")

    def drain(self, *, seconds: float) -> int:
        self._calls.append(f"drain {self.spec.item_id}")
        return 42

    def freeze(self, *, seconds: float) -> FreezeReport:
        self._calls.append(f"freeze {self.spec.item_id}")
        return FreezeReport(
            number=1,
            epoch=self.spec.epoch,
            time_ns=1,
            sequence=42,
            consistency=Consistency.APPLICATION,
        )

    def stop(self, *, detach: bool) -> None:
        if self.refuse_stop and detach:
            raise self.refuse_stop
        self._calls.append(f"{'detach' if detach else 'leave'} {self.spec.item_id}")


class FakeExport:
    """An export that lives in its FakeExports."""

    def __init__(self, export_id: str, owner: FakeExports) -> None:
        self.export_id = export_id
        self._owner = owner
        self.is_running = True

    @property
    def socket(self) -> Path:
        return Path(f"/run/{self.export_id}.sock")

    def first_read_ns(self) -> int:
        return 7

    def ensure_running(self) -> None:
        self.is_running = True

    def wait_open(self) -> None:
        if self._owner.refuse_open:
            raise self._owner.refuse_open

    def stop(self) -> None:
        self._owner.open.pop(self.export_id, None)
        self._owner.calls.append(f"end export {self.export_id}")


class FakeExports:
    """Exports by id."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.open: dict[str, FakeExport] = {}
        self.refuse_open: LeewardError | None = None

    def start(self, export_id: str, boot: BootSpec) -> FakeExport:
        self.calls.append(f"export {export_id} at {boot.point_id}")
        return self.open.setdefault(export_id, FakeExport(export_id, self))

    def disk_sizes(self, boot: BootSpec) -> dict[str, int]:
        return {"d": 1 << 20}

    def find(self, export_id: str) -> FakeExport | None:
        return self.open.get(export_id)


class FakeHydrator:
    """Is done when it is told so."""

    def __init__(self, vm_id: str, calls: list[str]) -> None:
        self._calls = calls
        self.state = HydrationStatus(vm_id=vm_id, bytes_done=1, bytes_total=10, done=False)

    def start(self) -> None:
        self._calls.append(f"hydrate {self.state.vm_id}")

    def status(self) -> HydrationStatus:
        return self.state

    def finish(self) -> None:
        self.state = replace(self.state, bytes_done=10, done=True, first_read_ns=7)

    def stop(self) -> None:
        self._calls.append(f"stop hydrating {self.state.vm_id}")


def vm_spec(vm_id: str = "web-1") -> VmSpec:
    """Return a small VM."""
    disk = DiskSpec(name="d", directory="/disks", format="raw", size_bytes=1 << 20)
    return VmSpec(
        vm_id=vm_id, name=vm_id, vcpus=1, memory_mib=64, firmware="bios", disks=(disk,), nics=()
    )


def replication_spec(epoch: int = 1) -> ReplicationSpec:
    """Return a replication of web-1."""
    return ReplicationSpec(
        item_id="item-1", epoch=epoch, vm_id="web-1", disks=("d",), cache_url="memory://cache"
    )


def boot_spec(point: str = "rp-1-5") -> BootSpec:
    """Return a boot of web-1 from a point."""
    replica = ReplicaDisk(disk="d", size_bytes=1 << 20, target_url="memory://target")
    return BootSpec(
        item_id="item-1",
        epoch=2,
        point_id=point,
        catalog_url="memory://target",
        replicas=(replica,),
        vm=vm_spec(),
        networks=(NetworkSpec(network_id="n1", name="corp", subnets=()),),
    )
