"""Freeing a VM of its tap: detach while the tap takes everything and keeps nothing.

Owns: that a soft cancel finds the live tap it needs. Must not know: cuts, records. Used when
protection of a VM ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError, Unavailable
from leeward.mobility.capture import Capture
from leeward.mobility.taps import Taps

RESUME_SECONDS = 10.0
_DRAIN_SECONDS = 0.02


def free_vm(capture: Capture, taps: Taps, *, clock: Clock) -> None:
    """Make no mirror, node or bitmap of ours exist in this QEMU.

    Raises: Unavailable, HypervisorRefused; then some may be left: call it again.
    """
    with suppress(Unavailable):  # without one, a QEMU with a guest to stop can still be freed
        taps.ensure()
    with _drained(taps):
        _wait_live(capture, clock)
        capture.detach()


@contextmanager
def _drained(taps: Taps) -> Iterator[None]:
    """Release all the tap receives at once, so that it never runs out of buffers."""
    ended = threading.Event()

    def drain() -> None:
        while not ended.wait(_DRAIN_SECONDS):
            with suppress(LeewardError):
                journal = taps.tap.journal
                journal.release(journal.position())

    thread = threading.Thread(target=drain, name="drain", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_live(capture: Capture, clock: Clock) -> None:
    """Resume what stands by until nothing does, for a while."""
    deadline = clock.monotonic() + RESUME_SECONDS
    while clock.monotonic() < deadline:
        look = capture.look()
        if not look.standing_by:
            return
        with suppress(LeewardError):
            capture.resume(look.standing_by)
        clock.sleep(0.1)
