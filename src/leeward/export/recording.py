"""Recording what a guest reads in its first minute, and bringing it to the target store.

Owns: which reads count, when the trace is stored. Must not know: NBD, how a trace is replayed.
Beside the devices of one export; whatever happens here, they go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from leeward.core.errors import LeewardError
from leeward.core.units import CHUNK
from leeward.observability.log import get_logger

RECORD_SECONDS = 60.0
"""From the first read on. What a guest reads later is its work, not its boot."""
STORE_AFTER_SECONDS = (15.0, RECORD_SECONDS)
"""When the trace is stored: what an export that is killed had recorded by then is not lost."""
ANNOUNCED_MAX = 256
CHUNKS_MAX = 8192
"""Recorded of one disk: 512 MiB."""


class BootRecorder:
    """The chunks read of every disk of one export, in order. Thread-safe, cheap once it is over."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._chunks: dict[str, dict[int, None]] = {}
        self._announced: dict[tuple[str, int, int], None] = {}
        self._ends = 0.0
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """True once the minute is over."""
        return self._is_over

    def begin(self, elapsed_seconds: float) -> None:
        """Record from now on until the minute is over, so much of which has passed already."""
        with self._lock:
            self._ends = self._clock() + RECORD_SECONDS - elapsed_seconds

    def announce(self, disk: str, offset: int, length: int) -> None:
        """Leave out what is read within this range: it is read for hydration, not for the guest."""
        if self._is_over:
            return
        with self._lock:
            self._announced[disk, offset, offset + length] = None
            if len(self._announced) > ANNOUNCED_MAX:
                del self._announced[next(iter(self._announced))]

    def note(self, disk: str, offset: int, length: int) -> None:
        """Record a read that has been answered."""
        if self._is_over or not length:
            return
        with self._lock:
            if not self._ends:
                self._ends = self._clock() + RECORD_SECONDS
            if self._clock() > self._ends:
                self._is_over = True
                self._announced.clear()
                return
            end = offset + length
            if any(d == disk and low <= offset and end <= high for d, low, high in self._announced):
                return
            chunks = self._chunks.setdefault(disk, {})
            for chunk in range(offset // CHUNK, -(-end // CHUNK)):
                if len(chunks) < CHUNKS_MAX:
                    chunks[chunk] = None

    def chunks(self) -> dict[str, Sequence[int]]:
        """Return every disk's chunks recorded so far, in the order of their first reads."""
        with self._lock:
            return {disk: tuple(chunks) for disk, chunks in self._chunks.items()}


class TraceKeeper:
    """A thread that stores what a recorder has recorded, at the times of STORE_AFTER_SECONDS.

    store: does it; may raise. It is called by one thread at a time.
    """

    def __init__(
        self, recorder: BootRecorder, store: Callable[[dict[str, Sequence[int]]], None]
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._lock = threading.Lock()
        self._stored = 0
        self._began = threading.Event()
        self._ended = threading.Event()
        self._elapsed = 0.0
        self._thread = threading.Thread(target=self._run, name="boot-trace", daemon=True)

    def begin(self, elapsed_seconds: float = 0.0) -> None:
        """Start counting: the guest has read for the first time, so long ago. Idempotent."""
        if not self._began.is_set():
            self._began.set()
            self._elapsed = elapsed_seconds
            self._thread.start()

    def flush(self) -> None:
        """Have what has been recorded stored, if it can be, and store nothing any more."""
        self._ended.set()
        with self._lock, _advice():
            self._store_news()

    def _run(self) -> None:
        for after in STORE_AFTER_SECONDS:
            pause = after - self._elapsed
            if pause > 0 and self._ended.wait(pause):
                return
            self._elapsed = max(after, self._elapsed)
            with self._lock, _advice():
                self._store_news()

    def _store_news(self) -> None:
        chunks = self._recorder.chunks()
        count = sum(map(len, chunks.values()))
        if count > self._stored:
            self._store(chunks)
            self._stored = count


@contextmanager
def _advice() -> Iterator[None]:
    """Whatever goes wrong is logged and forgotten: a trace is advice."""
    try:
        yield
    except (LeewardError, OSError) as error:
        get_logger().warning("boot_trace_not_stored", reason=str(error))
