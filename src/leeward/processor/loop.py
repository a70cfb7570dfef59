"""A thread that keeps one item's replica up to date, and what it says of itself.

Owns: how often to look, how long to wait after a failure, the once-a-minute retention. Must not
know: how a step works, who reads the status. One per item in the worker daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from leeward.core.clock import Clock
from leeward.core.errors import ChainBroken, Conflict, DataIntegrity, Fenced, LeewardError
from leeward.model.recovery import RecoveryPoint
from leeward.observability.log import get_logger
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ProcessingSpec
from leeward.protocol.messages import ProcessingStatus, ScrubReport, SpaceReport

POLL_SECONDS_MIN = 0.05
POLL_SECONDS_MAX = 0.25
"""Between looks while cuts arrive: half of it is added to the age of a new recovery point."""
IDLE_SECONDS = 1.0
IDLE_AFTER_SECONDS = 10.0
ANNOUNCED_SECONDS = 10.0
"""A source not heard of for longer is silent: the cache is looked at every IDLE_SECONDS."""
UNASKED_SECONDS = 900.0
"""How often the cache is looked at although the source has just said that nothing is there."""
REST_SECONDS = 2.0
"""Between two thoughts on whether the source is still heard of."""
RETRY_SECONDS_MIN = 0.25
RETRY_SECONDS_MAX = 5.0
INTEGRITY_SECONDS = 10.0
RETENTION_SECONDS = 60.0
SCRUB_SECONDS = 24 * 3600.0
"""How often everything stored is read and verified."""
SCRUB_AGAIN_SECONDS = 6 * 3600.0
"""How soon again when a step has met damage: the first time at once, for nothing else heals it."""
SPACE_SECONDS = 60.0
SPACE_SHARE = 4
"""Between two looks for space to reclaim, at least; and so many times as long as the last took."""
STOP_SECONDS = 10.0

PlanRetention = Callable[[Sequence[RecoveryPoint]], Sequence[str]]


class ItemLoop:
    """Drives one ItemProcessor until stopped, sealed or fenced. Thread-safe."""

    def __init__(
        self,
        spec: ProcessingSpec,
        processor: ItemProcessor,
        plan_retention: PlanRetention,
        clock: Clock,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """on_change: called in the loop's thread when there is something new to be posted."""
        self.spec = spec
        self._processor = processor
        self._plan_retention = plan_retention
        self._clock = clock
        self._on_change = on_change
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._announced = 0
        self._announced_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"item-{spec.item_id}", daemon=True)
        self._lock = threading.Lock()
        self._bytes_applied = 0
        self._points_told: tuple[RecoveryPoint, ...] = ()
        self._problem = ""
        self._is_sealed = False
        self._failures = 0
        self._wait_seconds = POLL_SECONDS_MIN
        self._busy_at = clock.monotonic()
        self._retention_at = clock.monotonic()
        self._scrub_at = clock.monotonic() + SCRUB_SECONDS
        self._scrubbed_at = float("-inf")
        self._scrubbing = threading.Lock()
        self._space_at = clock.monotonic() + SPACE_SECONDS

    # -------------------------------------------------------------------------- life

    def start(self) -> None:
        """Begin. Called once."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop, waiting STOP_SECONDS at most for a step that hangs in a store. Everything
        is left so that another worker can go on. Idempotent."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self._processor.close()

    def seal(self, new_epoch: int, drain_seconds: float) -> RecoveryPoint:
        """Stop polling and return the newest point after `ItemProcessor.seal`. Idempotent.

        If there is nothing to fail over to, or a store is gone, replication goes on.
        """
        point = self._processor.seal(new_epoch, drain_seconds)
        with self._lock:
            self._is_sealed = True
        self._stopping.set()
        self._wake.set()
        self._on_change()
        return point

    def hand_over(self, cache_url: str, seconds: float) -> None:
        """As `ItemProcessor.hand_over`; the loop goes on."""
        self._processor.hand_over(cache_url, seconds)
        self._on_change()

    def announce(self, epoch: int, sequence: int) -> None:
        """The item's source says that this cut is in the cache, and none later."""
        if epoch != self.spec.epoch or sequence < 1:
            return
        self._announced, self._announced_at = sequence, self._clock.monotonic()
        if self._has_announced:
            self._wake.set()

    @property
    def _has_announced(self) -> bool:
        """True when cuts are in the cache, as far as one hears."""
        return self._announced > self._processor.applied_sequence

    def scrub(self, *, dry_run: bool) -> ScrubReport:
        """Return what of everything stored is damaged, as `ItemProcessor.scrub`, while the loop
        goes on. Raises: Conflict while another scrub reads."""
        if not self._scrubbing.acquire(blocking=False):
            raise Conflict("a scrub of this item is under way already", hint="wait for its end")
        try:
            report = self._processor.scrub(dry_run=dry_run, is_stopping=self._stopping.is_set)
        finally:
            self._scrubbing.release()
        self._log.info(
            "item_scrubbed",
            objects=report.objects,
            bytes=report.bytes,
            damaged=len(report.damaged),
            quarantined=len(report.quarantined),
        )
        self._wake.set()
        self._on_change()
        return report

    def _scrub_when_due(self, now: float) -> None:
        if now < self._scrub_at:
            return
        self._scrub_at, self._scrubbed_at = now + SCRUB_SECONDS, now

        def run() -> None:
            try:
                self.scrub(dry_run=False)
            except LeewardError as error:
                self._log.warning("scrub_failed", problem=str(error))

        threading.Thread(target=run, name=f"scrub-{self.spec.item_id}", daemon=True).start()

    def reclaim(self, *, dry_run: bool) -> SpaceReport:
        """Free all the space that can be, as `ItemProcessor.reclaim`, while the loop goes on.

        Raises: Conflict while it is being done already.
        """
        return self._processor.reclaim(
            is_thorough=True, dry_run=dry_run, is_stopping=self._stopping.is_set
        )

    def _reclaim_when_due(self, now: float) -> None:
        if now < self._space_at or not self._processor.is_space_due:
            return
        self._space_at = float("inf")

        def run() -> None:
            began = self._clock.monotonic()
            try:
                self._processor.reclaim(is_stopping=self._stopping.is_set)
            except LeewardError as error:
                self._log.warning("space_not_reclaimed", problem=str(error))
            finally:
                ended = self._clock.monotonic()
                self._space_at = ended + max(SPACE_SECONDS, SPACE_SHARE * (ended - began))

        threading.Thread(target=run, name=f"space-{self.spec.item_id}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # -------------------------------------------------------------------------- status

    def status(self) -> ProcessingStatus:
        """Return how the item stands; `points_added` are all its points, oldest first."""
        points = self._processor.points
        with self._lock:
            return ProcessingStatus(
                item_id=self.spec.item_id,
                epoch=self.spec.epoch,
                applied_sequence=self._processor.applied_sequence,
                newest_point_time_ns=points[-1].time_ns if points else 0,
                bytes_applied=self._bytes_applied,
                points_added=points,
                quarantined=tuple(sorted(self._processor.quarantined)),
                problem="" if self._is_sealed else self._problem or self._damage(),
            )

    def _damage(self) -> str:
        """Return what is to be said of damage that is being healed, "" if there is none."""
        if not self._processor.awaits_restart:
            return ""
        return (
            f"what is stored is damaged ({len(self._processor.quarantined)} recovery points are "
            "quarantined); the source is asked for what was lost"
        )

    # -------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Fenced as error:
                self._note_problem(str(error))
                return
            except LeewardError as error:
                self._failed(error)
            except Exception as error:
                self._log.exception("item_step_failed")
                self._failed(LeewardError(f"processing failed: {error}"))
            self._scrub_when_due(self._clock.monotonic())
            self._rest()

    def _rest(self) -> None:
        """Wait until the next look is due, which may be long if one hears that nothing is there."""
        began, has_looked_away = self._clock.monotonic(), not self._has_announced
        while not self._stopping.is_set():
            now = self._clock.monotonic()
            seconds = UNASKED_SECONDS if self._is_told_of_nothing(now) else self._wait_seconds
            left = began + seconds - now
            if left <= 0 or (has_looked_away and self._has_announced):
                return
            self._wake.wait(min(left, REST_SECONDS))
            self._wake.clear()

    def _is_told_of_nothing(self, now: float) -> bool:
        """Say whether the cache need not be looked at: nothing came for a while, and the source was
        heard just now."""
        return (
            self._wait_seconds == IDLE_SECONDS
            and not self._problem
            and not self._has_announced
            and now - self._announced_at <= ANNOUNCED_SECONDS
        )

    def _turn(self) -> None:
        """Do one step, retention when it is due, and decide when to look again."""
        result = self._processor.step()
        now = self._clock.monotonic()
        with self._lock:
            self._bytes_applied += result.bytes
        self._failures = 0
        if now >= self._retention_at:
            self._retention_at = now + RETENTION_SECONDS
            self._processor.retire_points(self._plan_retention)
        self._reclaim_when_due(now)
        told, self._points_told = self._points_told, self._processor.points
        if told != self._points_told:
            self._on_change()
        self._note_problem("")
        if not result.idle:
            if result.bytes:
                self._busy_at = now  # a cut without content is made because nobody writes
            self._wait_seconds = 0.0
        elif now - self._busy_at < IDLE_AFTER_SECONDS:
            self._wait_seconds = min(
                max(self._wait_seconds * 2, POLL_SECONDS_MIN), POLL_SECONDS_MAX
            )
        else:
            self._wait_seconds = IDLE_SECONDS

    def _failed(self, error: LeewardError) -> None:
        self._failures += 1
        if isinstance(error, DataIntegrity) and not isinstance(error, ChainBroken):
            self._scrub_at = min(self._scrub_at, self._scrubbed_at + SCRUB_AGAIN_SECONDS)
        self._wait_seconds = (
            INTEGRITY_SECONDS
            if isinstance(error, DataIntegrity)
            else min(RETRY_SECONDS_MIN * 2 ** min(self._failures - 1, 8), RETRY_SECONDS_MAX)
        )
        self._note_problem(str(error))

    def _note_problem(self, problem: str) -> None:
        with self._lock:
            changed, self._problem = problem != self._problem, problem
        if not changed:
            return
        if problem:
            self._log.warning("item_problem", problem=problem)
        else:
            self._log.info("item_healthy")
        self._on_change()
