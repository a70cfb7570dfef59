"""Fetching ahead what the guest read in its earlier boots.

Owns: the order, what is fetched by one read, how many at once. Must not know: where traces come
from, NBD. Its reads warm the caches below the device they go through; their data goes nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from itertools import islice

from leeward.core.errors import LeewardError, Unavailable
from leeward.core.units import CHUNK, MIB
from leeward.export.patience import Patience
from leeward.nbd.handshake import ReadDevice
from leeward.observability.log import get_logger

WINDOW_CHUNKS = 8 * MIB // CHUNK
"""So much of the trace is sorted by place, so that neighbours are fetched by one read."""
GAP_CHUNKS = 1
READ_BYTES_MAX = MIB
IN_FLIGHT = 12
PATIENCE_SECONDS = 30.0


class Prefetch:
    """The chunks of one disk's trace being read through `device`, in threads of `executor`."""

    def __init__(self, device: ReadDevice, chunks: Iterable[int], executor: Executor) -> None:
        self._device = device
        self._reads = plan_reads(chunks, device.size_bytes)
        self._executor = executor
        self._lock = threading.Lock()
        self._patience = Patience(PATIENCE_SECONDS)
        self._is_over = False

    def start(self) -> None:
        """Begin. It ends by itself, at the latest when the store stays away for long."""
        for _ in range(IN_FLIGHT):
            self._submit()

    def stop(self) -> None:
        """Have no further read begun. Idempotent."""
        self._is_over = True
        self._patience.give_up()

    def _submit(self) -> None:
        with self._lock:
            read = None if self._is_over else next(self._reads, None)
        if read is not None:
            with suppress(RuntimeError):  # the executor has been shut down
                self._executor.submit(self._read, *read).add_done_callback(self._go_on)

    def _read(self, offset: int, length: int) -> None:
        try:
            self._patience.wait_for(lambda: self._device.read(offset, length))
        except Unavailable:
            self._is_over = True
        except LeewardError as error:  # whoever needs that place shall hear it
            get_logger().info("prefetch_skipped", offset=offset, reason=error.message)

    def _go_on(self, done: Future[None]) -> None:
        if done.exception() is None:
            self._submit()


def plan_reads(chunks: Iterable[int], size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of reads that cover the chunks, about in their order, and little
    else; what lies beyond the disk is left out."""
    limit = -(-size_bytes // CHUNK)
    remaining = (chunk for chunk in chunks if 0 <= chunk < limit)
    while window := sorted(set(islice(remaining, WINDOW_CHUNKS))):
        first = last = window[0]
        for chunk in window[1:]:
            if chunk - last > GAP_CHUNKS + 1 or (chunk + 1 - first) * CHUNK > READ_BYTES_MAX:
                yield _read_of(first, last, size_bytes)
                first = chunk
            last = chunk
        yield _read_of(first, last, size_bytes)


def _read_of(first: int, last: int, size_bytes: int) -> tuple[int, int]:
    return first * CHUNK, min((last + 1) * CHUNK, size_bytes) - first * CHUNK
