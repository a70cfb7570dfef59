"""How fast and how many at once: the pace at which segments go into the cache.

Owns: the bandwidth limit, and finding out how many requests in flight the store rewards. Must not
know: segments, cuts, policies. Between upload.py's threads and the store.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from leeward.core.clock import Clock, SystemClock
from leeward.core.errors import Unavailable
from leeward.core.units import MIB

BURST_SECONDS = 1.0
"""How much of an unused limit may be made up for at once."""
LOOK_SECONDS_MAX = 0.5
"""Between two looks at what the limit is by now."""
AT_ONCE_START = 2.0
AT_ONCE_MAX = 8.0
REFERENCE_BYTES = 4 * MIB
"""A request of less is as slow as one of so much; a longer one may take longer in proportion."""
FLAT, STEEP = 1.5, 3.0
"""A request that takes less than FLAT times the quickest says that more at once cost nothing; one
that takes more than STEEP times as long says that they only wait for each other."""


def _no_limit() -> int:
    return 0


class Throttle:
    """Lets bytes pass at no more than the rate that `rate` gives now, bytes a second; 0: any.

    Thread-safe. What passes may exceed the rate for a moment, its average does not.
    """

    def __init__(self, rate: Callable[[], int] = _no_limit, clock: Clock | None = None) -> None:
        self.rate = rate
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._left = 0.0
        self._filled_at = self._clock.monotonic()
        self._is_ended = False

    def take(self, count: int) -> None:
        """Return when `count` bytes may pass. Raises: Unavailable once ended."""
        while (wait := self._wait(count)) > 0:
            if self._is_ended:
                raise Unavailable("uploading has ended")
            self._clock.sleep(min(wait, LOOK_SECONDS_MAX))

    def _wait(self, count: int) -> float:
        """Return 0 if the bytes may pass, having counted them; else seconds until they may."""
        rate = self.rate()
        if not rate:
            return 0.0
        with self._lock:
            now = self._clock.monotonic()
            self._left += (now - self._filled_at) * rate
            self._left, self._filled_at = min(self._left, rate * BURST_SECONDS), now
            if self._left < 0:
                return -self._left / rate
            self._left -= count
            return 0.0

    def end(self) -> None:
        """Let nobody wait any more."""
        self._is_ended = True


class Concurrency:
    """How many requests are sent at once: one more for each round that shows more to cost nothing,
    a fifth less for one in which they wait for each other, half for one that fails.

    Thread-safe.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._limit = AT_ONCE_START
        self._in_flight = 0
        self._waiting: deque[object] = deque()
        self._quickest = float("inf")
        self._reduced_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places; who waits longest is next."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: self._waiting[0] is ticket and self._in_flight < self.limit
            )
            self._waiting.popleft()
            self._in_flight += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    @contextmanager
    def timed(self, count: int) -> Iterator[None]:
        """Learn from a request that sends `count` bytes."""
        began = self._clock.monotonic()
        try:
            yield
        except Unavailable:
            self.failed()
            raise
        self.took(self._clock.monotonic() - began, count)

    def took(self, seconds: float, count: int) -> None:
        """Learn from a request that took so long for so many bytes."""
        cost = seconds / max(1.0, count / REFERENCE_BYTES)
        with self._changed:
            alone = self._limit < 2  # a store may become slower for good: by itself nothing waits
            self._quickest = cost if alone else min(self._quickest, cost)
            if cost > STEEP * self._quickest:
                self._reduce(0.8, seconds)
            elif cost <= FLAT * self._quickest and self._waiting:
                self._limit = min(self._limit + 1 / self._limit, AT_ONCE_MAX)
                self._changed.notify_all()

    def failed(self) -> None:
        """Learn from a request that the store did not answer well."""
        with self._changed:
            self._reduce(0.5, 1.0)

    def _reduce(self, factor: float, seconds: float) -> None:
        """Send fewer, once for all that were in flight together."""
        now = self._clock.monotonic()
        if now - self._reduced_at >= seconds:
            self._limit, self._reduced_at = max(1.0, self._limit * factor), now
