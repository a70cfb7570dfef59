"""The sweep that one VM's record asks for: written down, opened, read, ended.

Owns: that it stands where the cuts in the cache end, and what it is told by the target. Must not
know: why a sweep is due, mirrors, threads. Part of stream.py, whose thread uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError
from leeward.mobility.baseline import Baseline
from leeward.mobility.bookkeeping import after_beginning
from leeward.mobility.capture import Capture
from leeward.mobility.cut import CutDisk
from leeward.mobility.cutter import Outcome
from leeward.mobility.digest_feed import DigestFeed
from leeward.mobility.disk_set import after_adding
from leeward.mobility.portions import Portions
from leeward.mobility.record import RecordFile
from leeward.mobility.sweep import Sweep, SweepKind
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ReplicationSpec


class DueSweep:
    """Used by one thread; `sweep` may be looked at from any."""

    def __init__(
        self,
        spec: ReplicationSpec,
        record: RecordFile,
        portions: Portions,
        *,
        open_cache: Callable[[], ObjectStore],
        nbd_socket: Path,
        digests_seconds: float,
        clock: Clock,
    ) -> None:
        """digests_seconds: how long the target may take to tell what it holds."""
        self._spec = spec
        self._record = record
        self._portions = portions
        self._open_cache = open_cache
        self._nbd_socket = nbd_socket
        self._digests_seconds = digests_seconds
        self._clock = clock
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self.sweep: Sweep | None = None
        """None while none is open."""
        self.lineage = 0
        """Number of the newest sweep: what was cut before it makes up for no hole since."""

    def write_down(self, baseline: Baseline, added: Sequence[str] = ()) -> None:
        """Write down that a sweep is due, from the start, and of which disks nothing is known."""
        self.lineage += 1
        self._portions.drop_reads()
        self.close()
        record = after_adding(self._record.value, added)
        self._record.save(after_beginning(record, baseline))

    def open(self, capture: Capture) -> None:
        """Have the sweep that the record asks for, if any, stand where the cuts in the cache end.
        Raises: LeewardError when it cannot be read yet."""
        self.close()
        kind = self._record.value.sweep
        if kind is not SweepKind.NONE:
            is_changed = kind is SweepKind.CHANGED or self._is_scoped(capture)
            sweep = capture.sweep(
                self._nbd_socket,
                changed_only=is_changed,
                whole=self._record.value.unswept,
                digests=None if is_changed else self._ask_digests(capture.sizes),
            )
            sweep.open(self._recorded_offsets())
            self.sweep = sweep

    def close(self) -> None:
        """Read no more for now. Idempotent."""
        if self.sweep is not None:
            self.sweep.close()
            self.sweep = None
        self._portions.ask(())

    @property
    def is_lost(self) -> bool:
        """Say whether one is due and not open."""
        return self.sweep is None and self._record.value.sweep is not SweepKind.NONE

    @property
    def is_read(self) -> bool:
        """True when no sweep is due or all of it has been read."""
        if self._record.value.sweep is SweepKind.NONE:
            return True
        return self.sweep is not None and self.sweep.is_finished

    @property
    def offsets(self) -> dict[str, int] | None:
        """Return up to which byte each disk has been read; None while no sweep is open."""
        if self.sweep is None:
            return None
        return dict(zip(self._spec.disks, self.sweep.offsets, strict=True))

    def read_on(self, position: Callable[[], int]) -> bool:
        """Read as much as the next cut has room for; say whether that was the last of it.

        position: the journal's, now. Raises: LeewardError; then it is closed, and begins again
        where the cuts in the cache end.
        """
        sweep, room = self.sweep, self._portions.sweep_room
        if sweep is None or sweep.is_finished or room == 0:
            return False
        try:
            reads = sweep.read(
                position, bytes_max=room, is_due=lambda: self._portions.seconds_left <= 0
            )
        except LeewardError:
            self._portions.drop_reads()
            self.close()
            raise
        self._portions.add_reads(reads)
        if sweep.is_finished:
            self._portions.hurry()
        return sweep.is_finished

    def rewind(self) -> None:
        """What was read and is in no cut is read again."""
        if self.sweep is not None:
            self.sweep.rewind(self._recorded_offsets())
            if self.sweep.digests is not None:  # they cannot be rewound
                self.sweep.compare_with(self._ask_digests(self._record.value.disk_sizes))

    def take(self, outcome: Outcome) -> None:
        """Go by what the cut, now in the cache and in the record, has asked the target."""
        if self.sweep is None:
            return
        feed, asked = self.sweep.digests, outcome.portion.digests
        if not self._record.value.compares:
            self.sweep.compare_with(None)
        elif feed is not None and asked and asked is feed.requests:
            feed.begin(outcome.sequence)

    def end(self) -> bool:
        """Say whether all of it is in the cache; then it is closed."""
        if self.sweep is None or self._record.value.sweep is not SweepKind.NONE:
            return False
        self.close()
        return True

    def _is_scoped(self, capture: Capture) -> bool:
        """Say whether a full sweep need read no more than what was written since the VM was booted
        from the point that the target has been seeded with."""
        is_scoped = self._spec.is_based and capture.merge_since_boot()
        if is_scoped:
            self._log.info("sweep_scoped")
        return is_scoped

    def _ask_digests(self, sizes: Mapping[str, int]) -> DigestFeed | None:
        """Have the target asked, by the next cut, what it holds of what is to be swept; None when
        it is known to hold nothing."""
        if not self._record.value.compares:
            return None
        feed = DigestFeed(
            self._open_cache,
            self._spec.item_id,
            self._spec.epoch,
            [CutDisk(disk, sizes[disk]) for disk in self._spec.disks],
            self._recorded_offsets(),
            patience_seconds=self._digests_seconds,
            clock=self._clock,
        )
        self._portions.ask(feed.requests)
        return feed

    def _recorded_offsets(self) -> list[int]:
        return [self._record.value.sweep_offsets.get(disk, 0) for disk in self._spec.disks]
