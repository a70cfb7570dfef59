"""Telling the source what has been applied, and clearing the cache of it.

Owns: when that is tried again: a cache that cannot take a marker holds nothing else up. Must not
know: catalogs. Called by item.py after the catalog has taken the cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError
from leeward.observability.log import get_logger
from leeward.processor.drain import MARKERS_KEPT, ArrivedCut, Cache, ChainHead

LEFTOVERS_SECONDS = 600.0
"""How often, while cuts come, the cache is looked through for what dead uploaders have left."""
QUIET_SECONDS = 3600.0
"""How often while nothing comes: a marker that has been damaged keeps the source from sending
anything until it is written anew."""
RETRY_SECONDS = 5.0


class Acknowledgements:
    """What has been said to the source of one item. Used by one thread at a time."""

    def __init__(self, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock
        self._markers: list[int] = []
        self._clean_at = 0.0
        self._quiet_until = 0.0
        self._has_news = True

    def doubt(self) -> None:
        """Look through the whole cache at the next `clean`."""
        self._clean_at = 0.0
        self._quiet_until = 0.0
        self._has_news = True

    def acknowledge(self, head: ChainHead, cuts: Sequence[ArrivedCut]) -> None:
        """Mark everything up to `head` applied and remove `cuts`; what fails is left to `clean`."""
        self._has_news = True
        try:
            self._cache.mark_applied(head)
            self._cache.remove_cuts(cuts)
            self._markers.append(head.sequence)
            while len(self._markers) > MARKERS_KEPT:
                self._cache.remove_marker(self._markers[0])
                del self._markers[0]
        except LeewardError as error:
            self.doubt()
            get_logger().warning("acknowledgement_failed", problem=str(error))

    def clean(self, head: ChainHead) -> None:
        """Remove what is left in the cache of everything up to `head`, and write its marker anew
        where it is damaged: at first, after a failed acknowledgement, every LEFTOVERS_SECONDS in
        which something has come and every QUIET_SECONDS in which nothing has."""
        now = self._clock.monotonic()
        if now < (self._clean_at if self._has_news else self._quiet_until):
            return
        try:
            self._markers = self._cache.remove_leftovers(head)
            self._clean_at, self._quiet_until = now + LEFTOVERS_SECONDS, now + QUIET_SECONDS
            self._has_news = False
        except LeewardError as error:
            self._clean_at = self._quiet_until = now + RETRY_SECONDS
            get_logger().warning("cache_not_cleaned", problem=str(error))
