"""Wake-ups inside the service: "something under this key has changed, look again".

Owns: threads and coroutines waiting for a key. Must not know: what keys stand for. A signal carries
nothing and may come for nothing; the vault is the truth.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ServiceStopping(BaseException):
    """The process is about to end: leave at once and record nothing, so that the work goes on after
    the next start. Not an Exception, or a workflow engine would take it for the work's outcome."""


class Listener:
    """A thread's ear on one key. Signals between two waits are not lost."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._event = threading.Event()

    def wake(self) -> None:
        """The next `wait`, or the one under way, returns."""
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Return when signalled since the last return, or after `seconds`. Raises:
        ServiceStopping."""
        self._event.wait(seconds)
        self._event.clear()
        if self._signals.is_closed:
            raise ServiceStopping


class Signals:
    """All keys. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ears: dict[str, list[Callable[[], None]]] = {}
        self.is_closed = False

    def notify(self, key: str) -> None:
        """Everybody listening to the key wakes."""
        with self._lock:
            ears = list(self._ears.get(key, ()))
        for wake in ears:
            wake()

    def close(self) -> None:
        """Everybody wakes, and threads that wait are told to leave."""
        with self._lock:
            self.is_closed = True
            ears = [wake for ears in self._ears.values() for wake in ears]
        for wake in ears:
            wake()

    @contextmanager
    def listen(self, key: str) -> Iterator[Listener]:
        """Give a listener; look at the vault after this and before waiting."""
        listener = Listener(self)
        with self.subscribe(key, listener.wake):
            yield listener

    @contextmanager
    def listen_async(self, key: str) -> Iterator[asyncio.Event]:
        """Give an event of the running loop that is set at each signal."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self.subscribe(key, lambda: _set_soon(loop, event)):
            yield event

    @contextmanager
    def subscribe(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """While the block lasts, `wake` is called at each signal, in the thread that signals."""
        with self._lock:
            self._ears.setdefault(key, []).append(wake)
            is_closed = self.is_closed
        try:
            if is_closed:
                wake()
            yield
        finally:
            with self._lock:
                self._ears[key].remove(wake)
                if not self._ears[key]:
                    del self._ears[key]


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
