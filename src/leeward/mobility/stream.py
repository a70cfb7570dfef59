"""One VM's stream of writes, kept whole: what is made, mended, swept and cut, one step at a time.

Owns: the VM's state (tracking, resyncing, streaming) and what to do next in each. Must not know:
threads, the cache's backend, how VMs are made. Stepped by replicator.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, Fenced, LeewardError, NotFound, Unavailable
from leeward.core.memory import return_free_memory
from leeward.mobility.baseline import Baseline, Found, plan_baseline
from leeward.mobility.bookkeeping import (
    after_outcome,
    is_point,
    suffices,
)
from leeward.mobility.capture import Capture, Look
from leeward.mobility.cutter import Cutter, Outcome
from leeward.mobility.disk_set import added_disks, release_dropped
from leeward.mobility.due_sweep import DueSweep
from leeward.mobility.freezes import Freezes
from leeward.mobility.portions import Portions, Standing
from leeward.mobility.record import RecordFile
from leeward.mobility.release import free_vm
from leeward.mobility.rotation import Rotation
from leeward.mobility.settings import Places, Tuning, tap_config
from leeward.mobility.shared_cut import SharedAttempt
from leeward.mobility.sweep import Sweep, SweepKind, remove_exports
from leeward.mobility.tap_client import control_socket, forget_taps
from leeward.mobility.taps import Taps
from leeward.model.recovery import ReplicationState
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ReplicationSpec
from leeward.qemu import mirror
from leeward.qemu.session import QmpSession

ABSENT_SECONDS = 0.5
"""Between two looks for a VM that does not run."""
RESUME_SECONDS_MIN = 0.25
RESUME_SECONDS_MAX = 10.0
"""Between two attempts to resume; grows while streaming is not reached."""
LOOK_SECONDS = 0.2
"""Between two looks at the mirrors while not streaming."""
FREEZE_LOOK_SECONDS = 0.05
"""Between two steps while the guest is being frozen; what thaws it does not wait for them."""
STEP_SECONDS_MAX = 1.0
"""A quiet VM is looked at so often."""
WATCH_SECONDS = 4.0
"""Between two looks while streaming, where no cut looks anyway."""


class Stream:
    """Used by one thread; `state`, `problem`, `sweep` may be looked at from any."""

    def __init__(
        self,
        spec: ReplicationSpec,
        cutter: Cutter,
        record: RecordFile,
        freezes: Freezes,
        *,
        open_session: Callable[[], QmpSession],
        open_cache: Callable[[], ObjectStore],
        places: Places,
        tuning: Tuning,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._cutter = cutter
        self._record = record
        self._freezes = freezes
        self._open_session = open_session
        self._open_cache = open_cache
        self._places = places
        self._tuning = tuning
        self._clock = clock
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self.state = ReplicationState.TRACKING
        self.problem = ""
        self.current_time_ns = 0
        """As in ReplicationStatus."""
        self._has_swept = False
        self._clean_ns = 0
        self._capture: Capture | None = None
        self._taps: Taps | None = None
        self._portions = Portions(
            cutter, interval_seconds=spec.cut_interval_seconds, tuning=tuning, clock=clock
        )
        self._due = DueSweep(
            spec,
            record,
            self._portions,
            open_cache=open_cache,
            nbd_socket=places.nbd_socket,
            digests_seconds=tuning.digests_seconds,
            clock=clock,
        )
        self._rotation = Rotation(
            record,
            cutter,
            self._portions,
            item=spec.item_id,
            every_seconds=tuning.rotate_seconds,
            clock=clock,
        )
        self._write_failed = threading.Event()
        self._settled_at: int | None = None
        self._next_look = self._next_resume = 0.0
        self.demanded = 0
        """Number of the newest demand for a recovery point; set from any thread, only upwards."""
        self.answered = (0, 0)
        """Number of the newest demand that was answered, and the sequence of the answer."""
        self.offered: SharedAttempt | None = None
        """The attempt at a shared point to take part in next; set from any thread."""
        self._passed_on = 0
        self._resume_pause = RESUME_SECONDS_MIN

    @property
    def sweep(self) -> Sweep | None:
        """The sweep under way."""
        return self._due.sweep

    def step(self) -> float:
        """Do what is due; return how long nothing will be. Raises: LeewardError: fall back, wait,
        step again; Fenced: never again."""
        self._take_outcomes()
        if self._has_swept:
            self._has_swept = False
            return_free_memory()
        if self._freezes.look():
            self._portions.end_freeze(self._freezes.number)
        if self._cutter.fenced:
            raise Fenced(self._cutter.fenced)
        if self._cutter.broken_after is not None:
            self._replace_lost_cuts(self._cutter.broken_after)
        try:
            session = self._open_session()
        except LeewardError as error:
            return self._step_without_vm(error)
        if self._capture is None or self._capture.session is not session:
            self._establish(session)
        if self._guarded().ensure():
            self._go_on_with_new_tap()
        if self._clock.monotonic() >= self._next_look:
            self._mend()
        self._sweep_on()
        self._tend_generations()
        if self.demanded > self._passed_on:
            self._passed_on = self.demanded
            self._portions.demand(self._passed_on)
        self._share_if_asked()
        self._freeze_if_due(session)
        self._portions.cut_if_due(self._guarded(), self._standing())
        self.problem = self._tracking_reason()
        self._note_current()
        return self._pause()

    def _freeze_if_due(self, session: QmpSession) -> None:
        """Have the guest frozen for a moment, if it is time and nothing is in the way."""
        cutter = self._cutter
        is_clear = self._is_settled and self.sweep is None and cutter.has_room
        if is_clear and not cutter.problem and self._freezes.is_due:
            self._freezes.begin(session, control_socket(self._guarded().config))

    def _note_current(self) -> None:
        """Note until when nothing has been written that the newest recovery point lacks."""
        is_all = (
            self.state is ReplicationState.STREAMING
            and self._portions.last_was_point
            and self._cutter.is_idle
            and not self._guarded().has_fresh()
        )
        self.current_time_ns = self._clean_ns if is_all else 0

    def fall_to(self, state: ReplicationState, problem: str) -> None:
        """Note that the stream is, for now, no better than `state`."""
        if state is not self.state or problem != self.problem:
            self._log.warning("replication_degraded", state=state.value, problem=problem)
        self.state, self.problem = state, problem
        self._settled_at = None
        self.current_time_ns = 0

    def close(self) -> None:
        """Let go of QEMU and tap; both go on as they are. Idempotent."""
        with suppress(LeewardError):  # what is not written down is only done once more
            self._take_outcomes()
        self._drop_capture()
        if self._taps is not None:
            self._taps.close()
            self._taps = None

    def _pause(self) -> float:
        if self.sweep is not None and not self.sweep.is_finished and self._cutter.has_room:
            is_blocked = self.state is ReplicationState.TRACKING or self.sweep.is_waiting
            return LOOK_SECONDS / 4 if is_blocked else 0.0
        if self._freezes.is_under_way:
            return FREEZE_LOOK_SECONDS
        due = min(self._portions.seconds_left, self._next_look - self._clock.monotonic())
        return min(max(due, 0.01), STEP_SECONDS_MAX)

    def _step_without_vm(self, error: LeewardError) -> float:
        """Send what the tap had received before the VM went away; it is data, no point."""
        self._drop_capture()
        stopped = isinstance(error, Conflict)
        self.fall_to(ReplicationState.STOPPED if stopped else ReplicationState.TRACKING, str(error))
        if self._record.value.disk_sizes:
            with suppress(Unavailable):
                self._guarded().ensure()
                self._portions.cut_if_due(self._guarded(), self._standing())
        return ABSENT_SECONDS

    def _tracking_reason(self) -> str:
        """Return one sentence while writes are only tracked, else ""."""
        if self.state is not ReplicationState.TRACKING:
            return ""
        reason = self._guarded().detached_reason
        return self._cutter.problem or (
            f"writes are only tracked: {reason}" if reason else "writes are only tracked"
        )

    # ------------------------------------------------------------------ beginning, and again

    def _establish(self, session: QmpSession) -> None:
        """Have the stream flow from this QEMU, and the sweep begun that closes its holes.

        Whatever is written down is written down before the act, so that a crash in between leads
        to a larger sweep, never to a smaller one.
        """
        self._drop_capture()
        disks = self._spec.disks
        release_dropped(session, self._record.value, disks)
        added = added_disks(self._record.value, disks)
        capture = Capture(session, disks, self._spec.epoch, self._write_failed, added=added)
        try:
            taps = self._taps_for(capture.sizes)
            is_met_first = not capture.look().is_attached
            baseline = self._plan(capture, taps)
            if is_met_first and not capture.ledger.may_note_start:
                baseline = Baseline.FULL
            self._log.info("replication_established", baseline=baseline.value, added=added)
            if baseline is not Baseline.KEEP:
                self._due.write_down(baseline, added)
                capture.forget_sweep_bitmap()
            if not capture.ledger.live or baseline is Baseline.FULL:
                capture.start_over()
            elif is_met_first:  # disks put back to the time before this QEMU will lack it
                capture.rotate()
            capture.take_in(added)
            self._rotation.note(capture)
            taps.ensure()
            self._note_tap(taps, capture.sizes)
            capture.attach(taps.tap.socket)
            if baseline is Baseline.CHANGED:
                capture.merge()
            self._due.open(capture)
        except LeewardError:
            capture.close()
            raise
        self._capture = capture
        self._next_look = 0.0

    def _plan(self, capture: Capture, taps: Taps) -> Baseline:
        """Return what this QEMU and what is left of earlier taps allow to build upon."""
        if not self._record.is_known:
            taps.drop_leftovers()
        taps.ensure()
        found = Found(
            newest_generation=capture.ledger.newest,
            has_mirrors=capture.look().is_attached,
            has_journals=taps.instances.issuperset(self._record.value.journals),
            has_sweep_bitmap=capture.has_sweep_bitmap,
        )
        record = self._record.value if self._record.is_known else None
        return plan_baseline(record, self._spec.epoch, found)

    def _taps_for(self, sizes: dict[str, int]) -> Taps:
        """Return the taps of disks of these sizes; at first, or after a resize, new ones."""
        disks = tuple((disk, sizes[disk]) for disk in self._spec.disks)
        if self._taps is not None and self._taps.config.disks == disks:
            return self._taps
        if self._taps is not None:
            if not self._cutter.is_idle:
                raise Unavailable("cuts of disks that had other sizes are on their way")
            self._taps.close()
        config = tap_config(self._spec.item_id, disks, self._places, self._tuning)
        self._taps = Taps(config, clock=self._clock)
        return self._taps

    def _guarded(self) -> Taps:
        """Return the taps, whether the VM is there or not."""
        sizes = self._record.value.disk_sizes
        return self._taps_for(self._capture.sizes if self._capture is not None else sizes)

    def _go_on_with_new_tap(self) -> None:
        """QEMU knows what the old one missed; reads not yet cut are read again."""
        taps = self._guarded()
        self._log.warning("tap_replaced", instance=taps.tap.instance)
        self._settled_at = None
        self._portions.drop_reads()
        self._due.rewind()
        self._note_tap(taps, self._record.value.disk_sizes)

    def _note_tap(self, taps: Taps, sizes: dict[str, int]) -> None:
        """Write down whose journals may hold what is in no cut, before writes reach the tap."""
        record = self._record.value
        waiting = taps.instances.intersection(record.journals)
        journals = tuple(sorted({*waiting, *taps.waiting, taps.tap.instance}))
        self._record.save(replace(record, journals=journals, disk_sizes=dict(sizes)))

    def _drop_capture(self) -> None:
        self._settled_at = None
        self._portions.drop_reads()
        self._due.close()
        if self._capture is not None:
            self._capture.close()
            self._capture = None

    # ------------------------------------------------------------------ staying whole

    def _captured(self) -> Capture:
        if self._capture is None:
            raise Unavailable("the VM is not attached")
        return self._capture

    def _mend(self) -> None:
        """Bring the mirrors one step closer to clean, and say which state that is."""
        capture = self._captured()
        pause = WATCH_SECONDS if self._is_settled else LOOK_SECONDS
        self._next_look = self._clock.monotonic() + pause
        looked_ns = self._clock.now_ns()
        look = capture.look()
        if not look.is_attached:
            self._drop_capture()  # a job is lost: look at everything anew
            raise Unavailable("a mirror job is gone")
        if look.standing_by:
            self._settled_at = None
            self._resume(capture, look)
            return
        if not look.is_clean or not self._due.is_read:
            self._settled_at = None
        elif not self._is_settled:
            if capture.settle().is_clean:
                self._settled_at = self._guarded().tap.journal.position()
                if self.sweep is not None:
                    self._portions.hurry()  # its last cut came too early to be a point
            self._rotation.note(capture)
        if self._is_settled:
            self._clean_ns = looked_ns
        self._enter(ReplicationState.STREAMING if self._is_settled else ReplicationState.RESYNCING)

    def _resume(self, capture: Capture, look: Look) -> None:
        """Resume what stands by, unless tap or cache could not bear it now."""
        now, taps = self._clock.monotonic(), self._guarded()
        self._enter(ReplicationState.TRACKING)
        if now < self._next_resume or self._cutter.problem or taps.waiting:
            return
        if taps.status().detached_reason:
            return
        capture.resume(look.standing_by)
        self._next_resume = now + self._resume_pause
        self._resume_pause = min(2 * self._resume_pause, RESUME_SECONDS_MAX)
        self._next_look = now  # it may have been a trifle

    def _enter(self, state: ReplicationState) -> None:
        if state is not self.state:
            self._log.info("replication_state", state=state.value)
        self.state = state
        if state is ReplicationState.STREAMING:
            self._resume_pause = RESUME_SECONDS_MIN

    @property
    def _is_settled(self) -> bool:
        """True while every mirror is clean with nothing in flight, as far as is known."""
        return self._settled_at is not None

    def _sweep_on(self) -> None:
        """Read on, as far as the next cut has room for."""
        if self._write_failed.is_set():
            self._sweep_again("a guest write failed")
            self._write_failed.clear()  # a later one is in the bitmaps before they are merged
            raise Unavailable("a guest write failed")
        if self._due.is_lost:
            self._drop_capture()  # it could not be opened: begin with it anew
            raise Unavailable("the sweep is not open")
        if self.state is ReplicationState.TRACKING:
            return
        if self._due.read_on(self._guarded().tap.journal.position):
            self._next_look = 0.0

    def _sweep_again(self, reason: str, *, at_least: Baseline = Baseline.CHANGED) -> None:
        """Have a sweep begun, in the next step, that makes up for a hole in the stream nobody else
        knows of. A full one stays a full one."""
        is_full = self._record.value.sweep is SweepKind.FULL
        baseline = Baseline.FULL if is_full else at_least
        self._log.warning("sweep_begun", reason=reason, baseline=baseline.value)
        self._due.write_down(baseline)
        self._drop_capture()

    def _replace_lost_cuts(self, applied: int) -> None:
        """Have swept what the target lacks that has applied up to there and will nothing else of
        what was sent; then let the chain go on."""
        is_known = suffices(self._record.value, applied)
        at_least = Baseline.CHANGED if is_known else Baseline.FULL
        self._sweep_again("cuts were lost", at_least=at_least)
        self._cutter.restart(self._due.lineage)

    def _tend_generations(self) -> None:
        """Add a generation now and then, and retire those the target has made needless."""
        capture = self._captured()
        self._cutter.awaits_application = capture.ledger.awaits_application
        if self._is_settled and not self._freezes.is_under_way:  # no mark has been set already
            self._rotation.tend(capture)

    # ------------------------------------------------------------------ cuts

    def _standing(self) -> Standing:
        capture = self._capture
        return Standing(
            is_whole=capture is not None and self._is_settled and self._due.is_read,
            confirm=self._is_still_whole,
            lineage=self._due.lineage,
            newest_generation=capture.ledger.newest if capture is not None else 0,
            sweep_offsets=self._due.offsets,
            whole_from=self._settled_at or 0,
            is_freezing=self._freezes.is_under_way,
            frozen=self._freezes.verdict,
        )

    def _is_still_whole(self) -> bool:
        """Say whether the mark just set is a moment the VM can be recovered to.

        Settled means that everything was clean once, with nothing in flight; only a failure can
        have changed that since, and a failure shows: in a job standing by, or gone.
        """
        capture, looked_ns = self._captured(), self._clock.now_ns()
        if capture.look().is_clean and not self._write_failed.is_set():
            self._next_look = self._clock.monotonic() + WATCH_SECONDS
            self._clean_ns = looked_ns
            return True
        self.fall_to(ReplicationState.RESYNCING, "")
        self._next_look = 0.0
        return False

    def _share_if_asked(self) -> None:
        """Take part in the newest attempt at a shared point, if others still wait for it. Nothing
        else is asked of QEMU meanwhile: what drains it would freeze the guest for the whole hold.
        """
        attempt, self.offered = self.offered, None
        if attempt is not None and self._clock.monotonic() < attempt.expires_at:
            self._portions.cut_shared(self._guarded(), self._standing(), attempt)

    def _take_outcomes(self) -> None:
        """Write down what the cache now holds; what could not be written down is kept."""
        while (outcome := self._cutter.oldest_outcome()) is not None:
            if outcome.sequence == 0:
                self._take_damage(outcome)
            self._take_outcome(outcome)
            self._cutter.drop_outcome()

    def _take_damage(self, outcome: Outcome) -> None:
        """Have swept what a damaged journal held, before it is given up."""
        if outcome.portion.lineage == self._due.lineage:
            self._sweep_again("a journal was damaged")
        outcome.portion.give_back()

    def _take_outcome(self, outcome: Outcome) -> None:
        portion = outcome.portion
        is_current = portion.lineage == self._due.lineage
        record = after_outcome(self._record.value, outcome, is_current=is_current)
        self._record.save(record)
        self._due.take(outcome)
        if portion.is_last and self._taps is not None:
            self._taps.forget(portion.journal.instance)
        if self._due.end():
            self._has_swept = True
            if self._capture is not None:
                self._capture.forget_sweep_bitmap()
        if portion.freeze and is_point(outcome):
            self._freezes.end(
                portion.freeze, sequence=outcome.sequence, consistency=outcome.consistency
            )
        elif portion.freeze:
            self._portions.end_freeze(portion.freeze)
        if is_point(outcome) and portion.demand > self.answered[0]:
            self.answered = (portion.demand, outcome.sequence)
        if is_point(outcome) and is_current and self._capture is not None:
            self._capture.ledger.consistent_cut(
                sequence=outcome.sequence, newest_at_mark=portion.newest_generation
            )

    # ------------------------------------------------------------------ the end

    def let_go(self, disk: str) -> None:
        """Leave the disk without mirror, if the VM runs. Raises: Unavailable, HypervisorRefused."""
        try:
            session = self._open_session()
        except (Conflict, NotFound):
            return
        mirror.detach(session, disk)
        remove_exports(session, [disk])

    def detach(self) -> None:
        """Leave nothing of ours in QEMU, then nothing on the host. The cutter must have ended.

        Raises: Unavailable or HypervisorRefused when QEMU cannot be freed now.
        """
        with suppress(LeewardError):  # now, lest `close` writes the record once more
            self._take_outcomes()
        self._drop_capture()
        try:
            session = self._open_session()
        except (Conflict, NotFound):
            session = None  # the VM does not run, or is gone: there is nothing to detach from
        if session is not None:
            capture = Capture(session, self._spec.disks, self._spec.epoch, self._write_failed)
            try:
                free_vm(capture, self._taps_for(capture.sizes), clock=self._clock)
            finally:
                capture.close()
        taps = self._taps or self._taps_for(dict.fromkeys(self._spec.disks, 0))
        taps.stop()
        self._taps = None
        self._freezes.delete()
        self._record.delete()
        places = self._places
        forget_taps(self._spec.item_id, run_dir=places.run_dir, data_dir=places.data_dir)
