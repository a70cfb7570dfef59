"""Disks put into and taken from a running VM, and made larger, while its guest runs.

Owns: the order of QMP commands and waiting for the guest. Must not know: image files, mirrors: who
takes a disk away or makes it larger has freed it of both. Used by fabric.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.qemu.machine import SPARE_PORTS, MachineDisk, device_of, nodes_of, spare_port
from leeward.qemu.nodes import block_nodes, disk_root
from leeward.qemu.session import QmpSession

UNPLUG_SECONDS = 30.0
"""How long the guest may take to let a disk go."""
RESIZE_SECONDS = 30.0


def plug(session: QmpSession, disk: MachineDisk) -> None:
    """Have the guest see the disk. Idempotent.

    Raises: HypervisorRefused, also when the VM has no free place for one more; then there is
    nothing of it.
    """
    if _has_device(session, disk.name):
        return
    try:
        known = block_nodes(session)
        for node in nodes_of(disk):
            if node["node-name"] not in known:
                session.execute("blockdev-add", node)
        session.execute("device_add", {**device_of(disk), "bus": _free_port(session)})
    except (HypervisorRefused, Unavailable):
        with suppress(HypervisorRefused, Unavailable):
            drop_nodes(session, disk)
        raise


def unplug(session: QmpSession, disk: str) -> None:
    """Have the guest see the disk no more; its nodes stay. Idempotent.

    Raises: HypervisorRefused when the guest does not let it go: it may still, later.
    """
    if not _has_device(session, disk):
        return

    def is_ours(event: dict[str, Any]) -> bool:
        return bool(event["data"].get("device") == f"dev-{disk}")

    with session.expect("DEVICE_DELETED", is_ours) as deleted:
        try:
            session.execute("device_del", {"id": f"dev-{disk}"})
        except HypervisorRefused as error:
            if "already in the process" not in error.message:
                raise
        try:
            deleted.wait(timeout_seconds=UNPLUG_SECONDS)
        except Unavailable as error:
            if not session.is_connected:
                raise
            raise HypervisorRefused(
                f"the guest did not let disk {disk} go within {UNPLUG_SECONDS:g} s",
                hint="unmount it in the guest; a guest that has not booted cannot answer",
            ) from error


def drop_nodes(session: QmpSession, disk: MachineDisk) -> None:
    """Make none of the disk's nodes exist; no device and no job may use them. Idempotent."""
    known = block_nodes(session)
    for node in reversed(nodes_of(disk)):
        if node["node-name"] in known:
            session.execute("blockdev-del", {"node-name": node["node-name"]})


def grow(session: QmpSession, disk: str, size_bytes: int) -> None:
    """Make the disk so large, for the guest as well. Idempotent. Raises: HypervisorRefused while
    somebody mirrors or exports it."""
    root = disk_root(block_nodes(session), disk)
    if root.size_bytes < size_bytes:
        arguments = {"node-name": root.name, "size": size_bytes}
        session.execute("block_resize", arguments, timeout_seconds=RESIZE_SECONDS)


def _free_port(session: QmpSession) -> str:
    """Return the bus of a place that holds no device. Raises: HypervisorRefused."""
    ports = {
        device["qdev_id"]: device["pci_bridge"].get("devices", [])
        for root in session.execute("query-pci")
        for device in root["devices"]
        if "pci_bridge" in device
    }
    for index in range(SPARE_PORTS):
        port = spare_port(index)
        if port in ports and not ports[port]:
            return port
    raise HypervisorRefused(
        f"the VM has no free place for one more disk (of {SPARE_PORTS})",
        hint="stop and start the VM: disks it has are moved to places of their own then",
    )


def _has_device(session: QmpSession, disk: str) -> bool:
    devices = session.execute("qom-list", {"path": "/machine/peripheral"})
    return any(device["name"] == f"dev-{disk}" for device in devices)
