"""QEMU's command line for a VM whose disks, networks and sockets are settled. Pure.

Owns: which devices a guest sees and under which names. Must not know: who makes images or taps.
Used by fabric. A VM has the same devices in the same order wherever it runs.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from leeward.qemu.overlay import overlay_nodes

QEMU = "qemu-system-x86_64"
DISPLAYS = ("none", "vga")
DISK_NAME_MAX = 20
"""The guest sees the name as the disk's serial number, which virtio-blk cuts at 20 characters."""
AGENT_CHARDEV = "agent"
"""The character device behind which the guest's agent listens, if it runs one."""
SPARE_PORTS = 4
"""Disks that can be added while a VM runs; started again, it has them in places of their own."""
_MACHINE_IDS = uuid.UUID("5d0f4b52-6a5e-4a3c-9b1e-1ee3a2d0c0de")


class Accelerator(Enum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineDisk:
    """is_overlay: it began as a recovery point; `base_socket` is the export it still reads from."""

    name: str
    path: Path
    format: str
    is_direct: bool = False
    is_overlay: bool = False
    base_socket: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineNic:
    """backend: QEMU's -netdev options but for the id ("tap,fd=9")."""

    name: str
    mac: str
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM ready to be started. It boots from disks[0]."""

    name: str
    vcpus: int
    memory_mib: int
    accelerator: Accelerator
    disks: tuple[MachineDisk, ...]
    nics: tuple[MachineNic, ...]
    qmp_socket: Path
    spare_qmp_socket: Path
    agent_socket: Path
    console_log: Path
    display: str = "none"


def command_line(machine: Machine) -> list[str]:
    """Return the argv. The VM stands before its first instruction until it is told to go on."""
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-name", f"guest={_escape(machine.name)}"),
        *("-uuid", str(uuid.uuid5(_MACHINE_IDS, machine.name))),
        *("-machine", "q35,usb=off,vmport=off,dump-guest-core=off"),
        *accelerator_arguments(machine.accelerator),
        *("-m", f"{machine.memory_mib}M", "-smp", str(machine.vcpus)),
        *("-rtc", "base=utc,driftfix=slew", "-boot", "strict=on"),
        *_monitor("qmp", machine.qmp_socket),
        *_monitor("spare", machine.spare_qmp_socket),
        *("-chardev", f"file,id=console,path={_escape(str(machine.console_log))},append=on"),
        *("-serial", "chardev:console"),
        *("-device", "virtio-rng-pci,id=rng"),
        *_disk(machine.disks[0], is_first=True),
        *(part for index, nic in enumerate(machine.nics) for part in _nic(nic, index)),
        *_guest_agent(machine.agent_socket),
        # before disks that come and go: it keeps its place
        *(("-device", "VGA,id=display") if machine.display == "vga" else ()),
        # disks come and go: those before them keep the places that guests know them by
        *(part for disk in machine.disks[1:] for part in _disk(disk, is_first=False)),
        *(part for index in range(SPARE_PORTS) for part in _spare_port(index)),
    ]


def spare_port(index: int) -> str:
    """Return the name of the place, and of its bus, for a disk added while the VM runs."""
    return f"spare-{index}"


def _spare_port(index: int) -> list[str]:
    return ["-device", f"pcie-root-port,id={spare_port(index)},chassis={index + 1}"]


def accelerator_arguments(accelerator: Accelerator) -> list[str]:
    """Return the accelerator and the processor that goes with it."""
    if accelerator is Accelerator.KVM:
        return ["-accel", "kvm", "-cpu", "host"]
    # five-level page tables only make the emulated processor slower
    return ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]


def _monitor(name: str, socket: Path) -> list[str]:
    chardev = f"socket,id={name},path={_escape(str(socket))},server=on,wait=off"
    return ["-chardev", chardev, "-mon", f"chardev={name},mode=control"]


def nodes_of(disk: MachineDisk) -> list[dict[str, object]]:
    """Return the disk's nodes as blockdev-add takes them, each after those it stands on."""
    if disk.is_overlay:
        return overlay_nodes(disk.name, disk.path, disk.base_socket)
    return _image_nodes(disk)


def device_of(disk: MachineDisk) -> dict[str, object]:
    """Return the device through which a guest sees the disk, as device_add takes it."""
    # an overlay waits for its base rather than tell the guest of an error
    on_error = "stop" if disk.is_overlay else "report"
    return {
        "driver": "virtio-blk-pci",
        "id": f"dev-{disk.name}",
        "drive": nodes_of(disk)[-1]["node-name"],
        "serial": disk.name,
        "werror": on_error,
        "rerror": on_error,
    }


def _disk(disk: MachineDisk, *, is_first: bool) -> list[str]:
    device = {**device_of(disk), **({"bootindex": 1} if is_first else {})}
    blockdevs = [part for node in nodes_of(disk) for part in ("-blockdev", json.dumps(node))]
    return [*blockdevs, "-device", json.dumps(device)]


def _image_nodes(disk: MachineDisk) -> list[dict[str, object]]:
    file: dict[str, object] = {
        "driver": "file",
        "node-name": f"file-{disk.name}",
        "filename": str(disk.path),
        # images are sparse: native AIO would block QEMU's main loop whenever a block is allocated
        "aio": "threads",
        "cache": {"direct": disk.is_direct, "no-flush": False},
        "discard": "unmap",
    }
    image: dict[str, object] = {
        "driver": disk.format,
        "node-name": f"disk-{disk.name}",
        "file": f"file-{disk.name}",
        "cache": {"direct": disk.is_direct, "no-flush": False},
        "discard": "unmap",
    }
    return [file, image]


def _nic(nic: MachineNic, index: int) -> list[str]:
    # without a boot ROM: firmware would load and try it before the disk
    device = f"virtio-net-pci,id=nic-{nic.name},netdev=net{index},mac={nic.mac},romfile="
    return ["-netdev", f"{nic.backend},id=net{index}", "-device", device]


def _guest_agent(socket: Path) -> list[str]:
    chardev = f"socket,id={AGENT_CHARDEV},path={_escape(str(socket))},server=on,wait=off"
    port = f"virtserialport,bus=serial.0,chardev={AGENT_CHARDEV},name=org.qemu.guest_agent.0"
    return ["-chardev", chardev, "-device", "virtio-serial-pci,id=serial", "-device", port]


def _escape(value: str) -> str:
    """Return `value` as QEMU's option syntax wants it: commas doubled."""
    return value.replace(",", ",,")
