"""The stream divided into portions: when the next cut is due, and what goes into it.

Owns: marks, the rule by which a cut counts, reads that wait for their cut. Must not know: how
mirrors are mended, how cuts are sent. Between taps.py and cutter.py, driven by stream.py.

Idle VMs: a cut without content is made only every `idle_cut_seconds`: each costs stores a dozen
requests. What keeps their recovery points from being called old is `current_time_ns` of the status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leeward.core.clock import Clock
from leeward.mobility.cut import CutDisk, SweepRead
from leeward.mobility.cutter import Cutter, Portion
from leeward.mobility.journal import JournalReader
from leeward.mobility.settings import Tuning
from leeward.mobility.shared_cut import SharedAttempt, hold_with_others, why_not
from leeward.mobility.tap_client import Mark
from leeward.mobility.taps import Taps
from leeward.mobility.thaw_client import Verdict
from leeward.model.recovery import Consistency, FrozenTime, SharedMark
from leeward.replica.manifest import DigestRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the stream stands when a cut is made.

    is_whole: cuts may count. confirm: says, asked after the mark, whether they still do.
    lineage, newest_generation, sweep_offsets: as in Portion. whole_from: the position in the living
    tap's journal since which cuts may count without a break. is_freezing: the guest is being frozen
    or was; frozen: what that came to, None while it is not known.
    """

    is_whole: bool
    confirm: Callable[[], bool]
    lineage: int
    newest_generation: int
    sweep_offsets: Mapping[str, int] | None
    whole_from: int = 0
    is_freezing: bool = False
    frozen: Verdict | None = None


class Portions:
    """Used by the replicator's thread."""

    def __init__(
        self, cutter: Cutter, *, interval_seconds: float, tuning: Tuning, clock: Clock
    ) -> None:
        self._cutter = cutter
        self._interval_seconds = interval_seconds
        self._tuning = tuning
        self._clock = clock
        self._reads: list[SweepRead] = []
        self._digests: tuple[DigestRequest, ...] = ()
        self._next_cut = 0.0
        self._last_cut = float("-inf")
        self.last_was_point = False
        """True when the newest portion, if nothing damages it, is a recovery point."""
        self._demand = 0
        self._is_unshared = True
        self._freeze = 0
        self.has_flowed = False
        """True when content was cut since this was last set to False."""

    @property
    def seconds_left(self) -> float:
        """Time until the next cut is due; negative when it is overdue."""
        return self._next_cut - self._clock.monotonic()

    def hurry(self) -> None:
        """Have the next cut due now."""
        self._next_cut = 0.0

    def demand(self, number: int) -> None:
        """Have a recovery point made of what comes next, content or not, and told from others by
        this number, higher than any before."""
        self._demand = number
        self.hurry()

    def end_freeze(self, number: int) -> None:
        """Have an attempt at an application-consistent point ended by the next recovery point."""
        self._freeze = number
        self.hurry()

    @property
    def sweep_room(self) -> int:
        """Data bytes a sweep may still put into the next cut; 0 while the cutter is behind."""
        if not self._cutter.has_room:
            return 0
        held = sum(read.length for read in self._reads if read.data is not None)
        return max(self._tuning.sweep_cut_bytes - held, 0)

    def add_reads(self, reads: list[SweepRead]) -> None:
        """Put what a sweep has read into the next cut."""
        self._reads += reads

    def ask(self, digests: tuple[DigestRequest, ...]) -> None:
        """Have the next cut, due at once, ask the target for them; () withdraws the question."""
        self._digests = digests
        if digests:
            self.hurry()

    def drop_reads(self) -> None:
        """Forget reads that wait for their cut: their journal has ended, or their sweep."""
        self._reads.clear()

    def cut_if_due(self, taps: Taps, standing: Standing) -> None:
        """Submit the next portion, if it is time and the cutter has room."""
        if not self._cutter.has_room or self._cut_leftover(taps, standing.lineage):
            return
        mark = taps.frozen_mark() if standing.is_freezing else None
        if mark is not None:
            if standing.frozen is not None:
                self._cut_frozen(taps, standing, mark, standing.frozen)
            return  # nothing that lies behind the mark may be cut before
        now = self._clock.monotonic()
        if now < self._next_cut and self.sweep_room > 0:
            return
        self._next_cut = now + self._interval_seconds
        has_content = bool(self._reads) or taps.has_fresh()
        is_stale = now - self._last_cut >= self._tuning.idle_cut_seconds
        is_wanted = not self.last_was_point or is_stale or bool(self._demand or self._freeze)
        wants_point = standing.is_whole and is_wanted
        if has_content or wants_point or self._digests:
            self._cut(taps, standing)
            self._last_cut = now
            self.has_flowed = self.has_flowed or has_content
            self._is_unshared = self._is_unshared or has_content

    def _cut(self, taps: Taps, standing: Standing) -> None:
        """Mark the stream and submit what lies before the mark.

        The order is the point: first the mark, then the question whether everything is passed on.
        A tap without room for a mark has broken its connections: what it holds is no point.
        """
        mark = taps.mark()
        is_point = mark is not None and standing.is_whole and standing.confirm()
        self._cut_at(taps, standing, mark, Consistency.CRASH if is_point else Consistency.NONE)

    def cut_shared(self, taps: Taps, standing: Standing, attempt: SharedAttempt) -> None:
        """Submit what lies before a mark at which the VMs of a group all hold, as a point that they
        share; as one of this VM's own if they did not. Nothing is held or cut if it cannot be."""
        if not standing.is_whole or not self._cutter.has_room or taps.has_leftovers:
            attempt.gate.end("it does not stream, or its cache is behind")
            return
        if standing.is_freezing:  # a mark may be set that has to be cut first
            attempt.gate.end("it is being frozen for a point of its own")
            return
        is_changed = self._is_unshared or taps.has_fresh()
        held = hold_with_others(taps, attempt.gate, is_changed=is_changed)
        if held is None:
            return
        is_point = standing.confirm()
        problem = why_not(held, is_point=is_point)
        shared = None if problem else attempt.mark
        consistency = Consistency.CRASH if is_point else Consistency.NONE
        self._cut_at(taps, standing, held.mark, consistency, shared=shared)
        self._is_unshared = shared is None
        self._last_cut = self._clock.monotonic()
        self.has_flowed = True
        attempt.gate.end(problem)

    def _cut_frozen(self, taps: Taps, standing: Standing, mark: Mark, frozen: Verdict) -> None:
        """Submit what lies before a mark that was set, by the thaw guard, in the frozen guest."""
        is_point = (
            standing.is_whole
            and mark.position >= standing.whole_from
            and not self._reads
            and standing.confirm()
        )
        is_same = (frozen.instance, frozen.position) == (taps.tap.instance, mark.position)
        consistency = Consistency.NONE
        if is_point:
            is_application = is_same and not frozen.problem
            consistency = Consistency.APPLICATION if is_application else Consistency.CRASH
        time = FrozenTime(total_ns=frozen.frozen_ns, ours_ns=frozen.ours_ns)
        is_application = consistency is Consistency.APPLICATION
        self._cut_at(taps, standing, mark, consistency, frozen=time if is_application else None)
        self._last_cut, self.has_flowed = self._clock.monotonic(), True
        self._is_unshared = True

    def _cut_at(
        self,
        taps: Taps,
        standing: Standing,
        mark: Mark | None,
        consistency: Consistency,
        *,
        shared: SharedMark | None = None,
        frozen: FrozenTime | None = None,
    ) -> None:
        """Submit what lies before the mark; without one, all there is."""
        start = taps.taken_to()
        stop = mark.position if mark is not None else taps.tap.journal.position()
        is_point = consistency is not Consistency.NONE
        taps.take(stop + 1 if mark is not None else stop)
        self._submit(
            Portion(
                journal=taps.tap.journal,
                disks=_disks(taps.tap.journal),
                start=start,
                stop=stop,
                release_to=taps.taken_to(),
                time_ns=mark.time_ns if mark is not None else self._clock.now_ns(),
                consistency=consistency,
                lineage=standing.lineage,
                newest_generation=standing.newest_generation,
                sweep=tuple(self._reads),
                sweep_offsets=standing.sweep_offsets,
                digests=self._digests,
                demand=self._demand if is_point else 0,
                shared=shared,
                freeze=self._freeze if is_point else 0,
                frozen=frozen,
            )
        )
        self._demand = 0 if is_point else self._demand
        self._freeze = 0 if is_point else self._freeze
        self._reads.clear()
        self._digests = ()

    def _cut_leftover(self, taps: Taps, lineage: int) -> bool:
        """Submit what a dead tap's journal still holds, as data only; False if there is none."""
        leftover = taps.next_leftover()
        if leftover is None:
            return False
        journal, start, stop = leftover
        self._submit(
            Portion(
                journal=journal,
                disks=_disks(journal),
                start=start,
                stop=stop,
                release_to=stop,
                time_ns=self._clock.now_ns(),
                consistency=Consistency.NONE,
                lineage=lineage,
                is_last=True,
            )
        )
        return True

    def _submit(self, portion: Portion) -> None:
        self.last_was_point = portion.consistency is not Consistency.NONE
        self._cutter.submit(portion)


def _disks(journal: JournalReader) -> tuple[CutDisk, ...]:
    """Return the disks that the journal is of: others than now, or smaller, in an earlier tap's."""
    return tuple(CutDisk(name, size) for name, size in journal.disks)
