"""Lanes: tasks of one key run one after the other, of different keys side by side.

Owns: order and bounds of a node's work. Must not know: what the tasks do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from leeward.observability.log import get_logger

log = get_logger()


class Lanes:
    """At most `workers` tasks run at once and at most `queued_max` wait."""

    def __init__(self, *, workers: int, queued_max: int, name: str = "lane") -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._queued_max = queued_max
        self._queued = 0
        self._lock = threading.Lock()
        self._lanes: dict[str, deque[Callable[[], None]]] = {}  # a lane present is being run

    def submit(self, key: str, task: Callable[[], None]) -> bool:
        """Queue `task` behind its lane's others; False if too many wait or the lanes are closed."""
        with self._lock:
            if self._queued >= self._queued_max:
                return False
            self._queued += 1
            lane = self._lanes.get(key)
            if lane is not None:
                lane.append(task)
                return True
            self._lanes[key] = deque([task])
        return self._go_on(key)

    def close(self) -> None:
        """Start nothing more; return at once, whatever still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, key: str) -> None:
        with self._lock:
            task = self._lanes[key].popleft()
            self._queued -= 1
        try:
            task()
        except Exception as error:
            log.exception("lane_task_failed", lane=key, error=str(error))
        with self._lock:
            if not self._lanes[key]:
                del self._lanes[key]
                return
        self._go_on(key)

    def _go_on(self, key: str) -> bool:
        try:
            self._pool.submit(self._run, key)
        except RuntimeError:
            return False  # closed meanwhile: what waits here is delivered again by the service
        return True
