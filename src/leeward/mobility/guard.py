"""The tap's link to its watchdog: heartbeats out, connections in.

Owns: staying linked, handing connections over after the watchdog was replaced, knowing how long it
has been silent. Must not know: NBD, the journal, the agent. Standard library only; run by tap.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from leeward.mobility import link

MESSAGES_PER_WAKE_MAX = 64


class Guard:
    """A link to the watchdog that is remade when it breaks. `socket` is None meanwhile."""

    def __init__(self, path: Path, *, item: str, nbd_path: str) -> None:
        self.socket: socket.socket | None = None
        self._path = path
        self._hello: link.Message = {"op": "tap", "item": item, "path": nbd_path}
        self._heard = time.monotonic()
        self._answered = False

    @property
    def is_present(self) -> bool:
        """Say whether a watchdog is linked and has answered."""
        return self.socket is not None and self._answered

    def silent_seconds(self, now: float) -> float:
        """Return how long no watchdog has been heard."""
        return now - self._heard

    def excuse(self, now: float) -> None:
        """Count silence from now: we were not running ourselves and could not hear."""
        self._heard = now

    def connect(self, connections: Iterable[socket.socket]) -> bool:
        """Try to be linked and have `connections` guarded; False if there is no watchdog."""
        try:
            guard = link.connect(self._path, timeout_seconds=None)
        except OSError:
            return False
        try:
            link.send(guard, self._hello)
            for connection in connections:
                link.send(guard, {"op": "hold"}, [connection.fileno()])
        except OSError:
            guard.close()
            return False
        self.socket = guard
        self._answered = False
        return True

    def beat(self) -> None:
        """Tell the watchdog that the main loop runs."""
        if self.socket is not None:
            with suppress(OSError):  # a watchdog that does not read has its silence held against it
                self.socket.send(link.BEAT)

    def take_arrivals(self) -> list[socket.socket]:
        """Return the connections that the watchdog has passed on. Raises: LinkClosed."""
        arrivals: list[socket.socket] = []
        guard = self.socket
        for _ in range(MESSAGES_PER_WAKE_MAX if guard is not None else 0):
            try:
                _, descriptors = link.receive(guard)  # type: ignore[arg-type]
            except BlockingIOError:
                break
            self._heard = time.monotonic()
            self._answered = True
            arrivals += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        return arrivals

    def close(self) -> None:
        """Be without a link. Idempotent."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
