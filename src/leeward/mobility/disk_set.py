"""A VM's disks come and go while it is replicated: which are new to the stream, which have left it.

Owns: what that means for the record, and that a disk that has left keeps nothing of ours. Must not
know: cuts, taps, how the VM got or lost the disk. Called by stream.py when it meets a QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leeward.mobility.record import ReplicationRecord
from leeward.mobility.sweep import remove_exports
from leeward.qemu import bitmaps, mirror
from leeward.qemu.nodes import block_nodes
from leeward.qemu.session import QmpSession


def added_disks(record: ReplicationRecord, disks: Sequence[str]) -> tuple[str, ...]:
    """Return those of `disks` that the stream has never had: no bitmap knows what is on them. None
    when the stream has only begun, and everything is swept."""
    known = record.disk_sizes
    return tuple(disk for disk in disks if known and disk not in known)


def after_adding(record: ReplicationRecord, added: Sequence[str]) -> ReplicationRecord:
    """Return the record of a stream in which those disks have to be swept whole before anything
    counts; what a target lacks that has none of them, the generations do not know."""
    if not added:
        return record
    unswept = tuple(sorted({*record.unswept, *added}))
    return replace(record, unswept=unswept, needs_sequence=0)


def release_dropped(session: QmpSession, record: ReplicationRecord, disks: Sequence[str]) -> None:
    """Make no mirror, export or bitmap of ours exist on disks that the stream had and `disks` has
    not. The tap they are mirrored to had better be there still.

    Raises: Unavailable, HypervisorRefused.
    """
    nodes = block_nodes(session)
    for disk in sorted(record.disk_sizes.keys() - set(disks)):
        node = nodes.get(f"disk-{disk}")
        if node is not None:
            mirror.detach(session, disk)
            remove_exports(session, [disk])
            bitmaps.remove_all(session, [node])
