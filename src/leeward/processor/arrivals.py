"""Which of the cuts that wait in the cache come next, and what the source is asked when none can.

Owns: how many are taken at once, gaps, and when the source is to begin a new chain. Must not know:
segments, catalogs. Between the cache of drain.py and the steps of item.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from leeward.core.clock import Clock
from leeward.core.errors import ChainBroken, LeewardError
from leeward.observability.log import get_logger
from leeward.processor.drain import ArrivedCut, Cache, ChainHead

BATCH_CUTS_MAX = 32
BATCH_BYTES_MAX = 128 << 20
"""Stored bytes of the cuts that one catalog record takes, unless one cut alone has more."""
GAP_SECONDS = 30.0
RESTART_SECONDS = 1.0
"""Between looks for the cut with which the source begins anew."""


class Arrivals:
    """The chain of one item's cuts, as far as it has come. Used by one thread at a time."""

    def __init__(
        self,
        cache: Cache,
        disks: Collection[str],
        clock: Clock,
        on_restart: Callable[[ArrivedCut], None],
    ) -> None:
        """disks: those the target has replicas of. on_restart: called with the cut with which the
        source has restarted the chain behind a gap."""
        self._cache = cache
        self._disks = disks
        self._clock = clock
        self._on_restart = on_restart
        self._gap_at = 0.0
        self._broken_at: ChainHead | None = None

    def look_at_once(self) -> None:
        """Have the next look go beyond a gap, however short a time ago the last one did."""
        self._gap_at = 0.0

    def waiting(self, head: ChainHead, *, awaits_restart: bool) -> list[ArrivedCut]:
        """Return the cuts that wait behind `head`, each verified to follow the one before it; if a
        restart is awaited, none but the one that restarts the chain.

        Raises: as Cache.next_cut, about the first of them.
        """
        if awaits_restart:
            return self._restarting(head)
        cuts: list[ArrivedCut] = []
        stored_bytes = 0
        while len(cuts) < BATCH_CUTS_MAX and stored_bytes < BATCH_BYTES_MAX:
            try:
                cut = self._cache.next_cut(head, self._disks)
                if cut is None and not cuts:
                    cut = self._look_beyond_gap(head)
            except LeewardError:
                if cuts:
                    break  # met again, and reported, once these have been applied
                raise
            if cut is None:
                break
            cuts.append(cut)
            head = cut.head
            stored_bytes += cut.stored_bytes
        return cuts

    def refuse(self, head: ChainHead) -> None:
        """Ask the source for a new chain, once the same place was found broken twice: what was
        only read wrong costs no new sweep."""
        if self._broken_at != head:
            self._broken_at = head
            return
        try:
            self._cache.refuse(head)
        except LeewardError as error:
            get_logger().warning("refusal_failed", problem=str(error))

    def _restarting(self, head: ChainHead) -> list[ArrivedCut]:
        """Return the cut with which the source begins anew, if it has arrived: nothing else may
        follow a state that is damaged. Until then the source is asked for it."""
        now = self._clock.monotonic()
        if now < self._gap_at:
            return []
        self._gap_at = now + RESTART_SECONDS
        self._cache.refuse(head, is_damaged=True)
        try:
            cut = self._cache.next_beyond_gap(head, self._disks)
        except ChainBroken:
            return []  # what the source had sent before it heard of it
        return [cut] if cut is not None and cut.manifest.restarts else []

    def _look_beyond_gap(self, head: ChainHead) -> ArrivedCut | None:
        """Return the cut that restarts the chain behind a gap, if there is one; looked for now and
        then. Raises: ChainBroken if later cuts wait for one that is missing."""
        now = self._clock.monotonic()
        if now < self._gap_at and self._broken_at != head:
            return None
        self._gap_at = now + GAP_SECONDS
        cut = self._cache.next_beyond_gap(head, self._disks)
        if cut is not None:
            self._on_restart(cut)
        return cut
