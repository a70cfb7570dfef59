"""Running until told to stop.

Owns: SIGTERM and SIGINT. Must not know: which daemon it is.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from leeward.fabric.processes import reap


class StopSignal:
    """Set by SIGTERM or SIGINT. Make it in the main thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def is_set(self) -> bool:
        """Say whether it is time to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Stop as if told to."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Return after `seconds`, or at once when told to stop; say which (True: stop)."""
        return self._event.wait(seconds)

    def wait_for_end(self) -> None:
        """Return when told to stop; children that end meanwhile are collected."""
        while not self._event.wait(1.0):
            reap()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
