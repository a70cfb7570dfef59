"""When generations of dirty bitmaps are added, and when they are retired.

Owns: that the record names the newest one, and that none goes before the target has applied what it
covers. Must not know: how bitmaps are made (capture.py), when it is no time for it. Part of
stream.py, whose thread uses it.
"""

from __future__ import annotations

from dataclasses import replace

from leeward.core.clock import Clock
from leeward.mobility.bookkeeping import after_retiring
from leeward.mobility.capture import Capture
from leeward.mobility.cutter import Cutter
from leeward.mobility.portions import Portions
from leeward.mobility.record import RecordFile
from leeward.observability.log import get_logger


class Rotation:
    """Used by one thread."""

    def __init__(
        self,
        record: RecordFile,
        cutter: Cutter,
        portions: Portions,
        *,
        item: str,
        every_seconds: float,
        clock: Clock,
    ) -> None:
        self._record = record
        self._cutter = cutter
        self._portions = portions
        self._every_seconds = every_seconds
        self._clock = clock
        self._log = get_logger(item=item)
        self._last = float("-inf")

    def tend(self, capture: Capture) -> None:
        """Retire what the target has made needless, and add one if it is time and something has
        been written. The mirrors must be settled, and no mark set that is not cut yet."""
        applied, now = self._cutter.applied_sequence, self._clock.monotonic()
        if capture.ledger.retirable(applied):
            self._record.save(after_retiring(self._record.value, applied))
            self._log.info("generations_retired", numbers=capture.retire(applied))
        is_due = now - self._last >= self._every_seconds
        if is_due and self._portions.has_flowed and capture.ledger.may_grow:
            capture.rotate()
            self.note(capture)
            self._last, self._portions.has_flowed = now, False

    def note(self, capture: Capture) -> None:
        """Write down the newest generation: whoever meets these disks without it must not believe
        the others."""
        self._record.save(replace(self._record.value, newest_generation=capture.ledger.newest))
