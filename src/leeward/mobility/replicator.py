"""Replication of one VM: the thread that steps its stream, and what an agent may ask of it.

Owns: the thread, back-off, the status. Must not know: how the stream is kept whole (stream.py), the
cache's backend. The agent holds one per protected VM.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from leeward.core.clock import Clock, SystemClock
from leeward.core.errors import Fenced, LeewardError, Unavailable
from leeward.mobility.chain import ChainNote
from leeward.mobility.cutter import Cutter
from leeward.mobility.freezes import Freezes
from leeward.mobility.pacing import Throttle
from leeward.mobility.record import RecordFile
from leeward.mobility.settings import Places, Tuning
from leeward.mobility.shared_cut import SharedAttempt
from leeward.mobility.stream import Stream
from leeward.mobility.thaw_client import guard_of
from leeward.mobility.upload import Uploader
from leeward.model.recovery import FreezeReport, ReplicationState, bandwidth_at
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ReplicationSpec
from leeward.protocol.messages import ReplicationStatus
from leeward.qemu.session import QmpSession
from leeward.replica.frame_codec import known_compression

__all__ = ["Places", "Replicator", "Tuning"]

BACK_OFF_SECONDS_MIN = 0.25
BACK_OFF_SECONDS_MAX = 5.0
STOP_SECONDS = 30.0


class Replicator:
    """Replicates one VM from `start` to `stop`, whatever dies meanwhile.

    Only its own thread touches QEMU and tap; `status` may be called from any.
    """

    def __init__(
        self,
        spec: ReplicationSpec,
        *,
        open_session: Callable[[], QmpSession],
        open_store: Callable[[str], ObjectStore],
        on_news: Callable[[], None] = lambda: None,
        places: Places,
        tuning: Tuning | None = None,
        clock: Clock | None = None,
    ) -> None:
        """open_session: the VM's QMP session now; Conflict when the VM does not run. It is asked
        again in every round and never closed here. on_news: called, in a thread of ours, when the
        first cut after a while is in the cache."""
        tuning, clock = tuning or Tuning(), clock or SystemClock()
        self.spec = spec
        self._clock = clock
        self._open_store = open_store
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self._record = RecordFile(
            places.data_dir / "replication" / f"{spec.item_id}.json", spec.epoch
        )
        self._note = ChainNote(
            places.data_dir / "replication" / f"{spec.item_id}.sequence", spec.epoch
        )
        self._clock = clock
        self._wake = threading.Event()
        self._throttle = Throttle(self._bandwidth, clock)
        self._cutter = Cutter(
            self._open_uploader,
            spec.vm_config,
            applied_seconds=tuning.applied_seconds,
            on_news=on_news,
            on_outcome=self._wake.set,
            clock=clock,
        )
        self._freezes = Freezes(
            guard_of(places.run_dir, places.data_dir, spec.item_id, clock),
            places.data_dir / "replication" / f"{spec.item_id}.freeze.json",
            spec.epoch,
            every_seconds=spec.app_consistent_seconds,
            agent_socket=places.agent_socket,
            clock=clock,
        )
        self._stream = Stream(
            spec,
            self._cutter,
            self._record,
            self._freezes,
            open_session=open_session,
            open_cache=lambda: self._open_store(spec.cache_url),
            places=places,
            tuning=tuning,
            clock=clock,
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"replicator-{spec.item_id}", daemon=True
        )

    def start(self) -> None:
        """Begin, or go on where an earlier replicator of the same item and epoch stopped."""
        self._thread.start()

    def stop(self, *, detach: bool) -> None:
        """End the thread. detach: and leave nothing in QEMU, no tap, no journal, no record;
        without it the tap goes on receiving until its buffers are full, for a successor to adopt.

        Raises: Unavailable or HypervisorRefused when QEMU cannot be freed now; call it again.
        """
        self._stopping.set()
        self._wake.set()
        self._throttle.end()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        self._cutter.close()
        if detach:
            self._stream.detach()
            self._note.delete()
        self._stream.close()
        self._stream.state = ReplicationState.STOPPED

    def let_go(self, disk: str) -> None:
        """Have the disk's writes passed to nobody, so that the disk can be changed; bitmaps go on.
        The replicator must have been stopped, without detaching; the next one makes up for it.

        Raises: Unavailable or HypervisorRefused when QEMU does not let go now.
        """
        self._stream.let_go(disk)

    def drain(self, *, seconds: float) -> int:
        """Return the sequence of a recovery point in the cache that holds all the VM had written
        when this was called. The VM must write no more, and still be there.

        Raises: Unavailable when there is none within `seconds`, with what is in the way.
        """
        wanted = self._stream.demanded = self._stream.demanded + 1
        self._wake.set()
        deadline = self._clock.monotonic() + seconds
        while self._stream.answered[0] < wanted:
            if self._clock.monotonic() > deadline or not self._thread.is_alive():
                problem = self._cutter.fenced or self._stream.problem or self._cutter.problem
                raise Unavailable(
                    f"not all that {self.spec.vm_id} wrote is in the cache"
                    + (f": {problem}" if problem else "")
                )
            self._clock.sleep(0.05)
        return self._stream.answered[1]

    def share(self, attempt: SharedAttempt) -> None:
        """Have the VM take part in the attempt, at once unless it cannot; an earlier one it had no
        time for is forgotten."""
        self._stream.offered = attempt
        self._wake.set()

    def freeze(self, *, seconds: float) -> FreezeReport:
        """Return what a new attempt at an application-consistent point came to: where the guest
        cannot be frozen the point is crash-consistent, and the report says why.

        Raises: Unavailable when there is no new point of either kind within `seconds`.
        """
        freezes = self._freezes
        wanted = freezes.asked = freezes.asked + 1
        self._wake.set()
        deadline = self._clock.monotonic() + seconds
        while freezes.answered < wanted or freezes.report is None:
            if self._clock.monotonic() > deadline or not self._thread.is_alive():
                problem = self.status().problem or f"it is {self._stream.state.value}"
                raise Unavailable(
                    f"{self.spec.vm_id} gave no new recovery point within {seconds:g} s: {problem}"
                )
            self._clock.sleep(0.05)
        return freezes.report

    def status(self) -> ReplicationStatus:
        """Return how replication stands now."""
        stream, cutter, sweep = self._stream, self._cutter, self._stream.sweep
        sequence, time_ns = cutter.uploaded
        return ReplicationStatus(
            item_id=self.spec.item_id,
            epoch=self.spec.epoch,
            state=stream.state,
            initial_done=self._record.value.initial_done,
            sweep_bytes_done=sweep.bytes_done if sweep is not None else 0,
            sweep_bytes_total=sweep.bytes_total if sweep is not None else 0,
            uploaded_sequence=sequence,
            uploaded_time_ns=time_ns,
            bytes_written=cutter.bytes_written,
            bytes_shipped=cutter.bytes_shipped,
            bandwidth_bytes_per_second=self._bandwidth(),
            uploads_at_once=cutter.uploads_at_once,
            current_time_ns=stream.current_time_ns,
            problem=cutter.fenced or self._freezes.problem or stream.problem or cutter.problem,
            freeze=self._freezes.report,
        )

    def _bandwidth(self) -> int:
        """Return the bytes a second that may be sent now, 0 for any amount."""
        if not self.spec.bandwidth:
            return 0
        now = time.localtime(self._clock.now_ns() / 1e9)
        return bandwidth_at(self.spec.bandwidth, now.tm_hour * 60 + now.tm_min)

    def _run(self) -> None:
        pause = BACK_OFF_SECONDS_MIN
        while not self._stopping.is_set():
            try:
                wait = self._stream.step()
                pause = BACK_OFF_SECONDS_MIN
            except Fenced as error:
                self._stream.fall_to(ReplicationState.STOPPED, str(error))
                return
            except LeewardError as error:
                self._stream.fall_to(ReplicationState.TRACKING, str(error))
                wait, pause = pause, min(2 * pause, BACK_OFF_SECONDS_MAX)
            except Exception as error:  # a bug must not end a VM's protection for good
                self._log.exception("replication_step_failed")
                self._stream.fall_to(ReplicationState.TRACKING, f"internal error: {error}")
                wait, pause = pause, min(2 * pause, BACK_OFF_SECONDS_MAX)
            self._wake.wait(wait)
            self._wake.clear()

    def _open_uploader(self) -> Uploader:
        if self.spec.is_held:
            raise Unavailable("the item is going over to another cache account")
        return Uploader(
            self._open_store(self.spec.cache_url),
            self.spec.item_id,
            self.spec.epoch,
            compression=known_compression(self.spec.compression),
            throttle=self._throttle,
            note=self._note,
        )
