"""Something done every so often in a thread of its own, whatever goes wrong with it.

Owns: the thread, its end, and that an error is told and ends nothing. Must not know: what is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from leeward.core.errors import LeewardError
from leeward.observability.log import get_logger

log = get_logger()


class Ticking:
    """Calls `tick` every `seconds` from `start` to `stop`. name: of the thread and in the log.
    pause_seconds: longer wait after an error nobody foresaw."""

    def __init__(
        self, name: str, tick: Callable[[], None], *, seconds: float, pause_seconds: float = 0.0
    ) -> None:
        self._name = name
        self._tick = tick
        self._seconds = seconds
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """It is done from now on. Call it once."""
        self._thread.start()

    def stop(self) -> None:
        """It is done no more. Idempotent; waits 5 s at most for a tick under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        event = self._name.replace("-", "_")
        while not self._stopping.wait(self._seconds):
            try:
                self._tick()
            except LeewardError as error:
                log.warning(f"{event}_failed", error=str(error))
            except Exception:
                log.exception(f"{event}_broken")
                self._stopping.wait(self._pause_seconds)
