"""The taps of one VM over time: the living one, and the journals of those before it.

Owns: replacing a tap that is gone or does not answer, and the order in which journals become cuts.
Must not know: QEMU, stores. Between tap_client.py and the replicator.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import numpy as np

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, Unavailable
from leeward.mobility.journal import FLAG_FROZEN, KIND_MARK, JournalReader
from leeward.mobility.tap_client import (
    Mark,
    Tap,
    TapConfig,
    TapStatus,
    drop_journal,
    end_left,
    ensure_watchdog,
    unreleased_journals,
)

LEFTOVERS_MAX = 3
"""Journals of dead taps that may wait for the cache; then no further tap is started."""
LOOK_SECONDS = 2.0
"""How often the tap is asked whether it is well."""
GUARD_SECONDS = 1.0
"""How often the host's watchdog is asked, for all VMs together."""


class Taps:
    """Used by one thread, except that cuts are built from the journals elsewhere."""

    def __init__(self, config: TapConfig, *, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._tap: Tap | None = None
        self._retired: list[Tap] = []
        self._taken_to: dict[int, int] = {}
        self._found: set[int] = set()
        self._leftovers: deque[JournalReader] = deque()
        self._look_for_leftovers()
        self._looked = float("-inf")
        self._status: TapStatus | None = None
        self._is_mute = False

    @property
    def tap(self) -> Tap:
        """The living tap. Raises: Unavailable before `ensure` has found or started one."""
        if self._tap is None:
            raise Unavailable(f"there is no tap for {self.config.item_id}")
        return self._tap

    @property
    def instances(self) -> frozenset[int]:
        """All taps whose journals this object has found, whether taken since or not."""
        return frozenset(self._found)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Earlier taps whose journals have not been taken."""
        return tuple(journal.instance for journal in self._leftovers)

    def ensure(self) -> bool:
        """Have a tap that answers, and a watchdog; say whether it is another than before.

        Raises: Unavailable, also while too many journals wait.
        """
        if self._tap is not None and self._is_well(self._tap):
            return False
        if len(self._leftovers) >= LEFTOVERS_MAX:
            raise Unavailable(
                f"the journals of {len(self._leftovers)} earlier taps are not uploaded yet"
            )
        before = self._tap
        tap = Tap.start_or_adopt(self.config)
        self._is_mute = False
        if before is not None and tap.instance == before.instance:
            tap.close()
            return False
        self._tap = tap
        self._found.add(tap.instance)
        if before is not None:
            self._retired.append(before)  # cuts may still be built from its mapped journal
        self._look_for_leftovers()  # also at first: the one to adopt may have died just now
        return True

    def _is_well(self, tap: Tap) -> bool:
        if self._is_mute or not tap.is_alive():
            return False
        now = self._clock.monotonic()
        try:
            ensure_watchdog(
                self.config.run_dir, self.config.data_dir, age_seconds_max=GUARD_SECONDS
            )
            if now - self._looked >= LOOK_SECONDS:
                self._looked = now
                self.status()
        except Unavailable:
            return False
        return True

    def status(self) -> TapStatus:
        """Return what the living tap says of itself now. Raises: Unavailable."""
        try:
            self._status = self.tap.status()
        except Unavailable:
            self._is_mute = True  # `ensure` replaces it without asking once more
            raise
        return self._status

    @property
    def detached_reason(self) -> str:
        """Why the tap refused connections when it was last asked, "" if it did not."""
        return self._status.detached_reason if self._status is not None else ""

    def _look_for_leftovers(self) -> None:
        known = {journal.instance for journal in self._leftovers}
        for journal in unreleased_journals(self.config):
            if journal.instance in known or self._is_exhausted(journal):
                journal.close()
            else:
                self._leftovers.append(journal)
                self._found.add(journal.instance)

    def _is_exhausted(self, journal: JournalReader) -> bool:
        """Say whether all of a dead tap's journal has been taken (its last cut may be on its way:
        the cutter drops the files then)."""
        return self._taken_to.get(journal.instance, -1) == _END

    def next_leftover(self) -> tuple[JournalReader, int, int] | None:
        """Return the oldest dead tap's journal and the range of it that is not taken, perhaps
        empty; None when there is none. It is taken by this call: cut it, with `is_last`."""
        if not self._leftovers:
            return None
        journal = self._leftovers.popleft()
        stop = journal.position()
        start = min(max(journal.released(), self._taken_to.get(journal.instance, 0)), stop)
        self._taken_to[journal.instance] = _END
        return journal, start, stop

    @property
    def has_leftovers(self) -> bool:
        return bool(self._leftovers)

    def forget(self, instance: int) -> None:
        """Let go of a dead tap, all of whose journal is in the cache."""
        for tap in [tap for tap in self._retired if tap.instance == instance]:
            self._retired.remove(tap)
            tap.close()

    def drop_leftovers(self) -> None:
        """Make the journals of earlier taps not exist: they belong to no stream of ours."""
        while self._leftovers:
            drop_journal(self._leftovers.popleft())

    def taken_to(self) -> int:
        """Return the position up to which the living tap's journal has been taken for cuts."""
        journal = self.tap.journal
        return max(journal.released(), self._taken_to.get(self.tap.instance, 0))

    def take(self, to: int) -> None:
        """Note that the living tap's journal is taken up to there."""
        self._taken_to[self.tap.instance] = to

    def has_fresh(self) -> bool:
        """Say whether the living tap's journal holds writes that have not been taken."""
        journal = self.tap.journal
        start, stop = self.taken_to(), journal.position()
        if start == stop:
            return False
        try:
            return bool(np.any(journal.records(start, stop)["kind"] != KIND_MARK))
        except Conflict:  # released beneath us
            return False

    def frozen_mark(self) -> Mark | None:
        """Return the first mark, of those not taken, that was set while the guest was frozen."""
        journal = self.tap.journal
        start, stop = self.taken_to(), journal.position()
        try:
            records = journal.records(start, stop)
        except Conflict:  # released beneath us
            return None
        is_frozen = (records["kind"] == KIND_MARK) & ((records["flags"] & FLAG_FROZEN) != 0)
        if not is_frozen.any():
            return None
        index = int(is_frozen.argmax())
        found = records[index]
        return Mark(start + index, int(found["time_ns"]), int(found["offset"]))

    def mark(self) -> Mark | None:
        """Return a mark at the stream's present end; None when the tap has no room for one.

        Raises: Unavailable when it does not answer.
        """
        try:
            return self.tap.mark()
        except Unavailable:
            self.status()
            return None

    def hold(self) -> Mark | None:
        """As `mark`, with nothing acknowledged from the mark on until `end_hold`."""
        try:
            return self.tap.hold()
        except Unavailable:
            self.status()
            return None

    def end_hold(self, mark: Mark) -> bool:
        """End the hold that began with `mark`; say whether it has lasted until now."""
        try:
            return self.tap.end_hold(mark)
        except Unavailable:
            return False

    def close(self) -> None:
        """Let go of everything; the tap goes on. Idempotent. No cut may be on its way."""
        for tap in (*self._retired, *((self._tap,) if self._tap is not None else ())):
            tap.close()
        for journal in self._leftovers:
            journal.close()
        self._leftovers.clear()
        self._retired.clear()
        self._tap = None

    def stop(self) -> None:
        """Make the tap not run, nor one that was started before this object was made, and no
        journal exist."""
        if self._tap is not None:
            self._tap.stop()
            self._tap = None
        end_left(self.config)
        self.close()
        for journal in unreleased_journals(self.config):
            drop_journal(journal)
        with suppress(OSError):
            self.config.journals_dir.rmdir()


_END = 1 << 62
"""Taken up to the end, wherever that was."""
