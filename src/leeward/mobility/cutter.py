"""Cuts on their way to the cache: one thread that builds, uploads, commits and only then releases.

Owns: the order of cuts, retries while the cache is away, when journal space is given back. Must not
know: QEMU, taps, sweeps. Takes portions from the replicator, uses cut.py and upload.py.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from leeward.core.clock import Clock
from leeward.core.errors import ChainBroken, Conflict, DataIntegrity, Fenced, LeewardError
from leeward.mobility.cut import CutDisk, SweepRead, build_cut
from leeward.mobility.journal import JournalReader
from leeward.mobility.tap_client import drop_journal
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import Consistency, FrozenTime, SharedMark
from leeward.observability.log import get_logger
from leeward.replica.manifest import DigestRequest

WAITING_MAX = 2
"""Portions behind the one being uploaded: of the next one segments are sent already."""
RETRY_SECONDS_MIN = 0.5
RETRY_SECONDS_MAX = 5.0
END_SECONDS = 10.0
ASK_SECONDS_MIN = 0.02
AHEAD_SECONDS = 5.0
NEWS_SECONDS = 5.0
"""A worker that has heard of a cut looks for the next ones by itself for longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """The part of one journal that becomes a cut: records [start, stop), and sweep reads in it.

    lineage: number of the baseline it builds upon; a damaged portion makes later ones of its
    lineage worthless as recovery points. newest_generation: the newest at the mark.
    sweep_offsets: how far cuts up to this one contain the sweep, None when there is none.
    release_to: where the journal may be reused up to; is_last: nothing of it is left then.
    digests: what the target is asked to tell of itself. demand: number of the demand that this
    recovery point answers, 0 for none. shared: set when it is a moment of other VMs as well.
    freeze: number of the attempt at an application-consistent point that it ends, 0 for none.
    frozen: how long the guest stood still for it, if it is one.
    """

    journal: JournalReader
    disks: tuple[CutDisk, ...]
    start: int
    stop: int
    release_to: int
    time_ns: int
    consistency: Consistency
    lineage: int
    newest_generation: int = 0
    sweep: tuple[SweepRead, ...] = ()
    sweep_offsets: Mapping[str, int] | None = None
    is_last: bool = False
    digests: tuple[DigestRequest, ...] = ()
    demand: int = 0
    shared: SharedMark | None = None
    freeze: int = 0
    frozen: FrozenTime | None = None

    def give_back(self) -> None:
        """Release the journal's space: from here on nobody but the cache has these writes."""
        self.journal.release(self.release_to)
        if self.is_last:
            drop_journal(self.journal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a portion. sequence 0: its records were damaged, nothing was uploaded, and its
    journal's space is to be given back once a sweep that makes up for it is written down."""

    portion: Portion
    consistency: Consistency
    sequence: int


@dataclass(slots=True)
class _Progress:
    outcomes: deque[Outcome] = field(default_factory=deque)
    problem: str = ""
    fenced: str = ""
    applied_sequence: int = 0
    sequence: int = 0
    time_ns: int = 0
    bytes_written: int = 0
    bytes_shipped: int = 0
    unfinished: int = 0


@dataclass(slots=True)
class _Begun:
    """A portion, and its cut once it has been built."""

    portion: Portion
    cut: Cut | None = None


class Cutter:
    """Uploads portions in the order in which they were submitted. Thread-safe."""

    def __init__(
        self,
        open_uploader: Callable[[], Uploader],
        vm_config: dict[str, object],
        *,
        applied_seconds: float,
        clock: Clock,
        on_news: Callable[[], None] = lambda: None,
        on_outcome: Callable[[], None] = lambda: None,
    ) -> None:
        """applied_seconds: how often the target's progress is asked for, while it could matter.
        on_news: called when the first cut after NEWS_SECONDS is in the cache. on_outcome: called
        when a portion has its outcome; both in the thread."""
        self._on_news = on_news
        self._on_outcome = on_outcome
        self._news_at = float("-inf")
        self._open_uploader = open_uploader
        self._vm_config = vm_config
        self._applied_seconds = applied_seconds
        self._clock = clock
        self._uploader: Uploader | None = None
        self._waiting: queue.Queue[Portion | None] = queue.Queue()
        self._ahead: _Begun | None = None
        self._lock = threading.Lock()
        self._progress = _Progress()
        self._sound_from = 0
        self._broken_after: int | None = None
        self._may_restart = False
        self._target_asked = 0.0
        self._ending = threading.Event()
        self._is_left = False
        self._log = get_logger()
        self.awaits_application = False
        """Set by the replicator: ask the cache now and then what the target has applied."""
        self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """True when another portion may be submitted."""
        with self._lock:
            return self._progress.unfinished <= WAITING_MAX

    @property
    def is_idle(self) -> bool:
        """True when every submitted portion has had its outcome."""
        with self._lock:
            return self._progress.unfinished == 0

    @property
    def problem(self) -> str:
        """Why cuts cannot be uploaded at the moment, "" if they can."""
        return self._progress.problem

    @property
    def fenced(self) -> str:
        """Why nothing may be uploaded ever again, "" normally."""
        return self._progress.fenced

    @property
    def applied_sequence(self) -> int:
        """The newest cut known to be durably applied by the target."""
        return self._progress.applied_sequence

    @property
    def uploaded(self) -> tuple[int, int]:
        """Sequence and time_ns of the newest cut uploaded; (0, 0) before the first."""
        return self._progress.sequence, self._progress.time_ns

    @property
    def uploads_at_once(self) -> int:
        """Segments that are sent at once; 0 before the first cut."""
        return self._uploader.concurrency.limit if self._uploader is not None else 0

    @property
    def bytes_written(self) -> int:
        return self._progress.bytes_written

    @property
    def bytes_shipped(self) -> int:
        return self._progress.bytes_shipped

    def submit(self, portion: Portion) -> None:
        """Upload the portion after all earlier ones. Ask `has_room` first."""
        with self._lock:
            self._progress.unfinished += 1
        self._waiting.put(portion)

    def oldest_outcome(self) -> Outcome | None:
        """Return what ended first and has not been dropped, None if there is nothing."""
        outcomes = self._progress.outcomes
        return outcomes[0] if outcomes else None

    def drop_outcome(self) -> None:
        """Forget the oldest outcome: what it means is written down."""
        self._progress.outcomes.popleft()

    @property
    def broken_after(self) -> int | None:
        """The cut after which the target lacks what was sent, None normally. Nothing is uploaded
        until a sweep that makes up for it is written down, and `restart` called."""
        return None if self._may_restart else self._broken_after

    def restart(self, lineage: int) -> None:
        """Go on with a new chain; only portions of `lineage` and later can be recovery points."""
        self._sound_from = lineage
        self._may_restart = True

    def close(self) -> None:
        """End the thread; portions not committed stay in their journals, also those that a store
        which hangs takes later: who sends them again may use another. Idempotent."""
        self._ending.set()
        self._wake()
        self._thread.join(END_SECONDS)
        with self._lock:
            self._is_left = self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        while not self._ending.is_set():
            if not self._finish_next():
                break
            self._ask_target()
        if self._uploader is not None:
            self._uploader.close()

    def _finish_next(self) -> bool:
        """Have the next portion's outcome, if there is one; False when the cutter is to end.

        What it held is held no longer when this returns: a sweep's reads are large.
        """
        begun = self._next()
        return begun is None or self._finish(begun)

    def _next(self) -> _Begun | None:
        """Return what comes next, None when it is time to ask the target or to end."""
        if self._ahead is not None:
            begun, self._ahead = self._ahead, None
            return begun
        try:
            portion = self._waiting.get(timeout=max(self._applied_seconds, ASK_SECONDS_MIN))
        except queue.Empty:
            return None
        return _Begun(portion) if portion is not None else None

    def _wake(self) -> None:
        """Have the thread look up from its queue."""
        self._waiting.put(None)

    def _finish(self, begun: _Begun) -> bool:
        """Have the portion's outcome; False when the cutter ends before there is one."""
        portion = begun.portion
        try:
            outcome = self._upload_with_retries(begun)
        except Fenced as error:
            self._progress.fenced = str(error)
            return False
        except DataIntegrity as error:
            self._log.error("portion_damaged", problem=str(error), journal=portion.journal.instance)
            self._sound_from = max(self._sound_from, portion.lineage + 1)
            outcome = Outcome(portion=portion, consistency=Consistency.NONE, sequence=0)
        if outcome is None:
            return False
        with self._lock:
            self._progress.unfinished -= 1
        self._progress.outcomes.append(outcome)
        self._on_outcome()
        return True

    def _upload_with_retries(self, begun: _Begun) -> Outcome | None:
        """Return the outcome, None when asked to end meanwhile. Raises: Fenced, DataIntegrity."""
        portion, pause = begun.portion, RETRY_SECONDS_MIN
        while not self._ending.is_set():
            try:
                if self._mend_chain():
                    self._forget(begun)
                cut = begun.cut = begun.cut or self._build(portion)
                sequence = self._upload(cut)
                self._note(cut, sequence)
                with self._lock:
                    if self._is_left:
                        return None
                    self._give_back(portion)
                return Outcome(portion=portion, consistency=cut.consistency, sequence=sequence)
            except ChainBroken as error:
                self._note_broken(error)
                self._forget(begun)  # as it was built it can be no recovery point any more
            except (Fenced, DataIntegrity):
                raise
            except Conflict as error:  # the stream goes on elsewhere than we thought
                self._progress.problem = f"cuts cannot be uploaded: {error}"
                self._log.warning("upload_resumes_elsewhere", problem=str(error))
                self._forget(begun)
            except LeewardError as error:
                self._progress.problem = f"cuts cannot be uploaded: {error}"
                self._log.warning("upload_failed", problem=str(error))
            except Exception as error:  # a bug must not end a VM's protection for good
                self._progress.problem = f"internal error: {error}"
                self._log.exception("upload_failed")
            self._ending.wait(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            self._ask_target()  # a full cache may be one that the target refuses
        return None

    def _forget(self, begun: _Begun) -> None:
        """Have the portion's cut built anew, and of the one that was begun after it."""
        begun.cut = None
        if self._ahead is not None:
            self._ahead.cut = None

    def _upload(self, cut: Cut) -> int:
        """Make the cut visible and return its sequence; send of the next one meanwhile."""
        uploader = self._opened()
        pending = uploader.begun(cut) or uploader.begin(cut)
        pending.when_stored(self._wake)
        while self._ahead is None and not (pending.is_stored or self._ending.is_set()):
            try:
                portion = self._waiting.get(timeout=AHEAD_SECONDS)
            except queue.Empty:
                break  # a store so slow is not made any faster by sending more
            if portion is not None:
                self._ahead = _Begun(portion)
                self._begin_ahead(uploader, self._ahead)
        return uploader.commit(pending).sequence

    def _begin_ahead(self, uploader: Uploader, begun: _Begun) -> None:
        """Send segments of a portion whose turn has not come; what fails now is met again then."""
        with suppress(LeewardError):
            begun.cut = self._build(begun.portion)
            uploader.begin(begun.cut)

    def _mend_chain(self) -> bool:
        """Restart a broken chain, if that is allowed by now; say whether that was done."""
        if not self._may_restart:
            return False
        self._opened().restart()
        self._broken_after, self._may_restart = None, False
        return True

    def _note_broken(self, error: ChainBroken) -> None:
        end = self._opened().broken_after
        if end is None or self._broken_after is not None:
            return
        self._log.warning("chain_broken", problem=str(error))
        self._progress.problem = str(error)
        # What is damaged is as good as never applied: no generation suffices for it.
        self._broken_after = -1 if end.is_damaged else end.sequence

    def _build(self, portion: Portion) -> Cut:
        records = portion.journal.records(portion.start, portion.stop)
        changes = build_cut(
            records,
            first_position=portion.start,
            buffer_of=portion.journal.buffer,
            sweep=portion.sweep,
            disks=portion.disks,
        )
        sound = portion.lineage >= self._sound_from
        return Cut(
            disks=changes,
            time_ns=portion.time_ns,
            consistency=portion.consistency if sound else Consistency.NONE,
            vm_config=self._vm_config,
            digests=portion.digests,
            shared=portion.shared if sound else None,
            frozen=portion.frozen if sound else None,
        )

    def _opened(self) -> Uploader:
        if self._uploader is None:
            self._uploader = self._open_uploader()
        return self._uploader

    def _note(self, cut: Cut, sequence: int) -> None:
        progress, uploader = self._progress, self._opened()
        progress.problem = ""
        progress.sequence, progress.time_ns = sequence, cut.time_ns
        now = self._clock.monotonic()
        if now - self._news_at > NEWS_SECONDS:
            self._on_news()
        self._news_at = now
        progress.bytes_written = uploader.bytes_written
        progress.bytes_shipped = uploader.bytes_shipped

    def _give_back(self, portion: Portion) -> None:
        try:
            portion.give_back()
        except Exception:  # memory that is never reused; sending the cut again would be worse
            self._log.exception("journal_not_given_back")

    def _ask_target(self) -> None:
        """Learn now and then what the target has applied, and whether it refuses what follows."""
        now, progress = self._clock.monotonic(), self._progress
        is_wanted = self.awaits_application or progress.sequence > progress.applied_sequence
        if not is_wanted or now - self._target_asked < self._applied_seconds:
            return
        self._target_asked = now
        try:
            progress.applied_sequence = self._opened().applied_sequence()
            self._opened().check_refused(progress.applied_sequence)
        except Fenced as error:
            progress.fenced = str(error)
        except ChainBroken as error:
            self._note_broken(error)
        except LeewardError:
            return  # the next upload finds the same and says so
        except Exception:  # a bug must not end a VM's protection for good
            self._log.exception("target_not_asked")
