"""What a QEMU's block nodes and their dirty bitmaps are like now, as values.

Owns: reading query-named-block-nodes. Must not know: what the bitmaps are for. Under bitmaps.py,
mirror.py; works with QEMU and qemu-storage-daemon alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leeward.core.errors import HypervisorRefused
from leeward.qemu.session import QmpSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitmap:
    """A dirty bitmap; the mirror job's own has the name ""."""

    name: str
    dirty_bytes: int
    granularity: int
    is_recording: bool
    is_busy: bool
    is_inconsistent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNode:
    """A block node. size_bytes is what a guest would see of it."""

    name: str
    size_bytes: int
    bitmaps: tuple[Bitmap, ...]
    keeps_bitmaps: bool = False
    """True where a bitmap can survive a clean exit of QEMU: in a qcow2 image."""

    @property
    def unnamed_dirty_bytes(self) -> int:
        """What all mirror jobs on this node have still to copy."""
        return sum(bitmap.dirty_bytes for bitmap in self.bitmaps if not bitmap.name)

    def bitmap(self, name: str) -> Bitmap | None:
        """Return the bitmap of that name, if the node has it."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


def block_nodes(session: QmpSession, *, timeout_seconds: float = 5.0) -> dict[str, BlockNode]:
    """Return every named node by name."""
    answer = session.execute(
        "query-named-block-nodes", {"flat": True}, timeout_seconds=timeout_seconds
    )
    return {raw["node-name"]: _node(raw) for raw in answer}


def disk_root(nodes: Mapping[str, BlockNode], disk: str) -> BlockNode:
    """Return the node that the disk's device uses: root-<disk> where there is a copy-on-read
    filter, else disk-<disk>. Raises: HypervisorRefused if there is neither."""
    root = nodes.get(f"root-{disk}") or nodes.get(f"disk-{disk}")
    if root is None:
        raise HypervisorRefused(f"the VM's QEMU has no node disk-{disk}")
    return root


def _node(raw: Mapping[str, Any]) -> BlockNode:
    return BlockNode(
        name=raw["node-name"],
        size_bytes=raw.get("image", {}).get("virtual-size", 0),
        bitmaps=tuple(_bitmap(one) for one in raw.get("dirty-bitmaps", ())),
        keeps_bitmaps=raw.get("drv") == "qcow2",
    )


def _bitmap(raw: Mapping[str, Any]) -> Bitmap:
    return Bitmap(
        name=raw.get("name", ""),
        dirty_bytes=raw["count"],
        granularity=raw["granularity"],
        is_recording=raw.get("recording", True),
        is_busy=raw.get("busy", False),
        is_inconsistent=raw.get("inconsistent", False),
    )
