"""A disk that begins as a recovery point: an empty qcow2 over an NBD base, filled by reading.

Owns: the four block nodes of such a disk, its bitmap, and taking the base away. Must not know: who
serves the base, when it is no longer needed. Used by fabric (machine) and export (hydration).

root-<disk>  copy-on-read: what the device uses
└ disk-<disk>  qcow2 overlay: where bitmaps attach
  ├ file-<disk>  the overlay's file
  └ base-<disk>  nbd, read-only
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.qemu.bitmaps import granularity_for
from leeward.qemu.nodes import BlockNode, block_nodes
from leeward.qemu.session import QmpSession

OVERLAY_BITMAP = "lw-overlay"
"""Records every write of the guest since it began to run on the overlay (not what copy-on-read
fills in): what a failback has to bring home."""
RECONNECT_SECONDS = 60
"""How long QEMU holds requests while the base's server is away. After that they fail, and
rerror=stop pauses the guest; it cannot be for ever, because QEMU's own exit waits for them too."""
OPEN_SECONDS = 10
CREATE_SECONDS = 30.0


def create_overlay(path: Path, size_bytes: int, *, held: BinaryIO | None = None) -> None:
    """Make `path` an empty qcow2 of that size, naming no backing file: the base is given as a
    node, for changing a backing file's name is refused while a mirror is attached. held: a file
    that what does it keeps open, so that its lock tells of it.

    Raises: Unavailable when it cannot be written; InvalidRequest when qemu-img is not installed.
    """
    argv = ("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes))
    try:
        done = subprocess.run(
            argv,
            stdin=held or subprocess.DEVNULL,
            capture_output=True,
            timeout=CREATE_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise InvalidRequest("qemu-img is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"creating {path} took longer than {CREATE_SECONDS:g} s") from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip()
        raise Unavailable(f"cannot create {path}: {reason}")


def overlay_nodes(disk: str, overlay: Path, base_socket: Path | None) -> list[dict[str, object]]:
    """Return the disk's nodes as blockdev-add takes them, in the order to add them.

    base_socket: of the export; None for an overlay that holds all its data already.
    """
    base: list[dict[str, object]] = [] if base_socket is None else [_base_node(disk, base_socket)]
    return [
        *base,
        {
            "driver": "file",
            "node-name": f"file-{disk}",
            "filename": str(overlay),
            "discard": "unmap",
        },
        _overlay_node(disk, backing=None if base_socket is None else f"base-{disk}"),
        {
            "driver": "copy-on-read",
            "node-name": f"root-{disk}",
            "file": f"disk-{disk}",
            "discard": "unmap",
        },
    ]


def _base_node(disk: str, base_socket: Path) -> dict[str, object]:
    return {
        "driver": "nbd",
        "node-name": f"base-{disk}",
        "server": {"type": "unix", "path": str(base_socket)},
        "export": disk,
        "read-only": True,
        "reconnect-delay": RECONNECT_SECONDS,
        "open-timeout": OPEN_SECONDS,
    }


def _overlay_node(disk: str, *, backing: str | None) -> dict[str, object]:
    """Return the overlay's options; reopening has to repeat them, all but the backing."""
    return {
        "driver": "qcow2",
        "node-name": f"disk-{disk}",
        "file": f"file-{disk}",
        "backing": backing,
        "discard": "unmap",
    }


def add_overlay_bitmaps(session: QmpSession, disks: Sequence[str]) -> None:
    """Record the guest's writes to each overlay from now on, surviving QEMU's clean exit.
    Idempotent.

    Call it before the guest's first instruction, and never for an overlay that a guest has run on:
    what came before is not in the bitmap, and one that is missing tells that it cannot be known.
    """
    nodes = block_nodes(session)
    missing = [disk for disk in disks if nodes[f"disk-{disk}"].bitmap(OVERLAY_BITMAP) is None]
    if missing:
        session.transaction(
            [
                {
                    "type": "block-dirty-bitmap-add",
                    "data": {
                        "node": f"disk-{disk}",
                        "name": OVERLAY_BITMAP,
                        "granularity": granularity_for(nodes[f"disk-{disk}"].size_bytes),
                        "persistent": True,
                    },
                }
                for disk in missing
            ]
        )


def has_overlay_bitmap(node: BlockNode) -> bool:
    """Say whether the node's bitmap knows every write of the guest since its first boot."""
    bitmap = node.bitmap(OVERLAY_BITMAP)
    return bitmap is not None and bitmap.is_recording and not bitmap.is_inconsistent


def disks_with_base(session: QmpSession, disks: Sequence[str]) -> list[str]:
    """Return those of `disks` that still have a base node."""
    nodes = block_nodes(session)
    return [disk for disk in disks if f"base-{disk}" in nodes]


def release_base(session: QmpSession, disk: str) -> None:
    """Make the overlay stand alone and its base node not exist; the guest does not notice.

    The overlay must hold all the base's data: from here on what it lacks reads as zeros.
    Idempotent, also when interrupted between its two steps.
    """
    if disks_with_base(session, [disk]):
        session.execute("blockdev-reopen", {"options": [_overlay_node(disk, backing=None)]})
        session.execute("blockdev-del", {"node-name": f"base-{disk}"})
