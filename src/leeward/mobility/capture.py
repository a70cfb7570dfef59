"""One running VM's side of the stream: bitmaps, mirrors and the barrier, through one QMP session.

Owns: the order in which they are made, and what QEMU says of them now. Must not know: cuts, stores,
the record. Between qemu/ and the replicator.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeward.core.errors import HypervisorRefused
from leeward.mobility.digest_feed import DigestFeed
from leeward.mobility.generations import GenerationLedger
from leeward.mobility.sweep import Sweep, SweepDisk, remove_exports
from leeward.qemu import bitmaps, mirror
from leeward.qemu.mirror import JobPhase, MirrorState
from leeward.qemu.nodes import BlockNode, block_nodes
from leeward.qemu.overlay import OVERLAY_BITMAP, has_overlay_bitmap
from leeward.qemu.session import QmpSession

_GONE = frozenset({"postmigrate", "finish-migrate", "inmigrate"})
"""Run states in which this QEMU is not, or no more, where the guest writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The VM's mirrors at one moment."""

    mirrors: tuple[MirrorState, ...]
    is_here: bool

    @property
    def is_clean(self) -> bool:
        """Every write of every disk is passed on, nothing is known to be missing."""
        return self.is_here and all(one.is_clean for one in self.mirrors)

    @property
    def is_live(self) -> bool:
        """Every disk's writes are passed on; something older may still be missing."""
        return self.is_here and all(one.phase is JobPhase.RUNNING for one in self.mirrors)

    @property
    def is_attached(self) -> bool:
        return all(one.phase in (JobPhase.RUNNING, JobPhase.STANDBY) for one in self.mirrors)

    @property
    def standing_by(self) -> tuple[str, ...]:
        return tuple(one.disk for one in self.mirrors if one.phase is JobPhase.STANDBY)


class Capture:
    """Taps, mirrors and bitmaps of one QEMU, as seen by one session. Used by one thread."""

    def __init__(
        self,
        session: QmpSession,
        disks: Sequence[str],
        epoch: int,
        write_failed: threading.Event,
        *,
        added: Sequence[str] = (),
    ) -> None:
        """Look at the VM's disks. write_failed: set whenever a guest's write fails: it may have
        changed the disk without reaching the tap. added: disks that no generation knows yet.

        Raises: HypervisorRefused when a disk is missing; Unavailable.
        """
        self.session = session
        self.disks = tuple(disks)
        self._epoch = epoch
        self.sizes = {node.name.removeprefix("disk-"): node.size_bytes for node in self._nodes()}
        known = [n for n in self._nodes() if n.name.removeprefix("disk-") not in added]
        found = bitmaps.list_generations(known)
        self.ledger = GenerationLedger(
            one.number for one in found if one.epoch == epoch and one.is_trustworthy
        )
        self._write_failed = write_failed
        session.subscribe(self._on_event)

    def _nodes(self) -> tuple[BlockNode, ...]:
        nodes = block_nodes(self.session)
        try:
            return tuple(nodes[f"disk-{disk}"] for disk in self.disks)
        except KeyError as error:
            raise HypervisorRefused(f"the VM's QEMU has no node {error}") from error

    def _on_event(self, event: dict[str, Any]) -> None:
        data = event.get("data", {})
        if event.get("event") == "BLOCK_IO_ERROR" and data.get("operation") == "write":
            self._write_failed.set()

    def close(self) -> None:
        """Listen to the session no more."""
        self.session.unsubscribe(self._on_event)

    def look(self) -> Look:
        """Return how the mirrors are now. Raises: Unavailable."""
        state = mirror.run_state(self.session)
        return Look(mirrors=mirror.inspect(self.session, self.disks), is_here=state not in _GONE)

    @property
    def has_sweep_bitmap(self) -> bool:
        name = bitmaps.sweep_name(self._epoch)
        return all(node.bitmap(name) is not None for node in self._nodes())

    def start_over(self) -> None:
        """Have one fresh generation and no other bitmap of ours."""
        remove_exports(self.session, self.disks)
        bitmaps.remove_all(self.session, self._nodes())
        self.ledger = GenerationLedger()
        self.rotate()

    def take_in(self, added: Sequence[str]) -> None:
        """Have every generation record on these disks, too, from now on."""
        nodes = [n for n in self._nodes() if n.name.removeprefix("disk-") in added]
        for number in self.ledger.live:
            bitmaps.add_missing(self.session, nodes, epoch=self._epoch, number=number)

    def forget_sweep_bitmap(self) -> None:
        """Make no merged bitmap exist; what it says is no longer the whole truth. Nobody may be
        reading it any more, but a sweep whose agent was killed."""
        remove_exports(self.session, self.disks)
        bitmaps.remove_sweep(self.session, self._nodes(), epoch=self._epoch)

    def attach(self, tap_socket: Path) -> None:
        """Have every disk's writes passed to the tap. The watchdog must guard it already."""
        for disk in self.disks:
            mirror.attach(self.session, disk, tap_socket)

    def resume(self, disks: Sequence[str]) -> None:
        """Have QEMU copy what it knows the tap has missed."""
        for disk in disks:
            mirror.resume(self.session, disk)

    def detach(self) -> None:
        """Make no job, node or bitmap of ours exist in this QEMU."""
        for disk in self.disks:
            mirror.detach(self.session, disk)
        remove_exports(self.session, self.disks)
        bitmaps.remove_all(self.session, self._nodes())

    def rotate(self) -> None:
        """Have one more generation; nothing issued before it is in flight any more."""
        number = self.ledger.newest + 1
        bitmaps.add_generation(self.session, self._nodes(), epoch=self._epoch, number=number)
        self.ledger.added(number)

    def settle(self) -> Look:
        """Wait until nothing is in flight, and return how the mirrors are then.

        The transaction's drain pauses the mirror jobs, which ends their background copies. A look
        that is clean after it means that the tap has everything; from then on only a failure, which
        leaves a job standing by, can make it miss something.
        """
        if self.ledger.may_grow:
            self.rotate()
        else:
            bitmaps.drain(self.session, self._nodes())
        return self.look()

    def retire(self, applied_sequence: int) -> tuple[int, ...]:
        """Remove the generations that the target no longer needs; return their numbers."""
        numbers = self.ledger.retirable(applied_sequence)
        if numbers:
            bitmaps.remove_generations(
                self.session, self._nodes(), epoch=self._epoch, numbers=numbers
            )
            self.ledger.removed(numbers)
        return numbers

    def merge(self) -> None:
        """Have the merged bitmap say what was written since the oldest generation."""
        bitmaps.merge_generations(
            self.session, self._nodes(), epoch=self._epoch, numbers=self.ledger.live
        )

    def merge_since_boot(self) -> bool:
        """Have the merged bitmap say what the guest wrote since it was first booted from its
        recovery point; False, and nothing is done, where a disk's bitmap does not know."""
        nodes = self._nodes()
        if not all(has_overlay_bitmap(node) for node in nodes):
            return False
        others, numbers = (OVERLAY_BITMAP,), self.ledger.live
        bitmaps.merge_generations(
            self.session, nodes, epoch=self._epoch, numbers=numbers, others=others
        )
        return True

    def sweep(
        self,
        nbd_socket: Path,
        *,
        changed_only: bool,
        whole: Sequence[str] = (),
        digests: DigestFeed | None = None,
    ) -> Sweep:
        """Return a sweep of the disks, not opened yet. whole: disks of which all is swept, whatever
        the bitmaps say."""
        return Sweep(
            self.session,
            nbd_socket,
            [
                SweepDisk(
                    index=index,
                    disk=disk,
                    node=f"disk-{disk}",
                    size_bytes=self.sizes[disk],
                    is_whole=disk in whole,
                )
                for index, disk in enumerate(self.disks)
            ],
            bitmap=bitmaps.sweep_name(self._epoch) if changed_only else "",
            digests=digests,
        )
