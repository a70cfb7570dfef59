"""Lanes: tasks of one key run one after the other, of different keys side by side.

Owns: order and bounds of a node's work. Must not know: what the tasks do.

So many tasks begin at once that a host is not swamped; one that has run for a while is waiting for
something rather than working, and takes nobody's turn: a script, a scrub, a QEMU that hangs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from leeward.observability.log import get_logger

log = get_logger()

PATIENCE_SECONDS = 5.0
NO_THREAD_SECONDS = 1.0
"""Before the next attempt when the system has no thread to give."""

Task = Callable[[], None]


class Lanes:
    """At most `workers` tasks that have begun within `patience_seconds` run at once, and at most
    `queued_max` wait. The threads do not keep the process from ending."""

    def __init__(
        self,
        *,
        workers: int,
        queued_max: int,
        name: str = "lane",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._workers = workers
        self._queued_max = queued_max
        self._name = name
        self._patience_seconds = patience_seconds
        self._turn = threading.Condition()
        self._lanes: dict[str, deque[Task]] = {}
        """A lane present has a task that runs or is about to."""
        self._ready: deque[str] = deque()
        self._begun: dict[str, float] = {}
        self._queued = 0
        self._is_closed = False
        self._dispatcher = threading.Thread(target=self._dispatch, name=name, daemon=True)

    def submit(self, key: str, task: Task) -> bool:
        """Queue `task` behind its lane's others; False if too many wait or the lanes are closed."""
        with self._turn:
            if self._is_closed or self._queued >= self._queued_max:
                return False
            if self._dispatcher.ident is None:
                self._dispatcher.start()
            self._queued += 1
            lane = self._lanes.get(key)
            if lane is not None:
                lane.append(task)
                return True
            self._lanes[key] = deque([task])
            self._ready.append(key)
            self._turn.notify_all()
            return True

    def close(self, *, grace_seconds: float = 0.0) -> None:
        """Start nothing more; return when nothing runs, or after `grace_seconds`."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: not self._begun, grace_seconds)

    def _dispatch(self) -> None:
        with self._turn:
            while not self._is_closed:
                self._turn.wait(self._begin_one())

    def _begin_one(self) -> float | None:
        """Begin what is next, if there is room; return how long to wait for more, None: until
        something changes."""
        if not self._ready:
            return None
        now = time.monotonic()
        young = [begun for begun in self._begun.values() if now - begun < self._patience_seconds]
        if len(young) >= self._workers:
            return min(young) + self._patience_seconds - now
        key = self._ready[0]
        thread = threading.Thread(
            target=self._run, args=(key, self._lanes[key][0]), name=self._name, daemon=True
        )
        try:
            thread.start()  # it waits for our lock before it does anything
        except RuntimeError as error:
            log.warning("no_thread_for_lane", lane=key, error=str(error))
            return NO_THREAD_SECONDS
        self._ready.popleft()
        self._lanes[key].popleft()
        self._queued -= 1
        self._begun[key] = now
        return 0.0

    def _run(self, key: str, task: Task) -> None:
        with self._turn:  # until we are noted as begun
            pass
        try:
            task()
        except Exception as error:
            log.exception("lane_task_failed", lane=key, error=str(error))
        with self._turn:
            del self._begun[key]
            if self._lanes[key]:
                self._ready.append(key)
            else:
                del self._lanes[key]
            self._turn.notify_all()


def run_all(tasks: Iterable[Task]) -> None:
    """Return when all tasks have ended, run side by side: each may wait for something else."""
    threads = [threading.Thread(target=task, name="one-of-all", daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
