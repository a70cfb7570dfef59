"""Lanes: order within a key, side by side between keys, bounded."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from functools import partial

import structlog

from leeward.agent.lanes import Lanes
from leeward.observability.log import configure_logging, get_logger


def test_tasks_of_one_key_run_in_order_while_other_keys_go_on() -> None:
    lanes = Lanes(workers=2, queued_max=100)
    done: list[int] = []
    gate, other, finished = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        gate.wait(60)

    lanes.submit("a", hold)
    for number in range(20):
        lanes.submit("a", partial(done.append, number))
    lanes.submit("a", finished.set)
    lanes.submit("b", other.set)
    assert other.wait(60), "a lane that waits must not hold up another"
    assert done == []
    gate.set()
    assert finished.wait(60)
    assert done == list(range(20))
    lanes.close()


def test_more_than_the_bound_is_refused() -> None:
    lanes = Lanes(workers=1, queued_max=2)
    gate, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait(60)

    assert lanes.submit("a", hold)
    assert begun.wait(60)
    assert lanes.submit("a", lambda: None)
    assert lanes.submit("b", lambda: None)
    assert not lanes.submit("c", lambda: None)
    gate.set()
    lanes.close()


def test_tasks_that_take_long_take_nobodys_turn() -> None:
    """Else eight scrubs, which take hours, would hold up a failover."""
    lanes = Lanes(workers=2, queued_max=10, patience_seconds=0.02)
    gate, reached = threading.Event(), threading.Event()

    def hold() -> None:
        gate.wait(60)

    for key in ("a", "b", "c"):
        assert lanes.submit(key, hold)
    assert lanes.submit("d", reached.set)
    assert reached.wait(60)
    assert not gate.is_set()
    gate.set()
    lanes.close()


def test_no_more_begin_at_once_than_there_are_workers() -> None:
    lanes = Lanes(workers=2, queued_max=100, patience_seconds=3600)
    lock, running, most, done = threading.Lock(), set[int](), [0], threading.Semaphore(0)

    def work(number: int) -> None:
        with lock:
            running.add(number)
            most[0] = max(most[0], len(running))
        time.sleep(0.005)
        with lock:
            running.discard(number)
        done.release()

    for number in range(20):
        assert lanes.submit(str(number), partial(work, number))
    for _ in range(20):
        assert done.acquire(timeout=60)
    assert most == [2]
    lanes.close()


def test_closed_lanes_begin_nothing_and_wait_for_what_runs() -> None:
    lanes = Lanes(workers=1, queued_max=10)
    gate, begun, ended, late = (threading.Event() for _ in range(4))

    def hold() -> None:
        begun.set()
        gate.wait(60)
        ended.set()

    assert lanes.submit("a", hold)
    assert lanes.submit("a", late.set)
    assert begun.wait(60)
    lanes.close()
    threading.Timer(0.05, gate.set).start()
    lanes.close(grace_seconds=60)
    assert ended.is_set()
    assert not late.is_set()
    assert not lanes.submit("b", late.set)


def test_a_task_that_fails_does_not_stop_its_lane() -> None:
    lanes = Lanes(workers=1, queued_max=10)
    reached = threading.Event()

    def fail() -> None:
        raise RuntimeError("on purpose")

    lanes.submit("a", fail)
    lanes.submit("a", reached.set)
    assert reached.wait(60)
    lanes.close()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_cannot_be_written_stops_no_lane() -> None:
    """Else a fence would wait for as long as a disk is full, and in that lane for ever."""
    before = structlog.get_config()
    configure_logging(stream=FullDisk())
    try:
        lanes = Lanes(workers=1, queued_max=10)
        reached = threading.Event()

        def fail() -> None:
            raise RuntimeError("on purpose")

        def log_and_set() -> None:
            get_logger().info("command_started")
            reached.set()

        lanes.submit("a", fail)
        lanes.submit("a", log_and_set)
        assert reached.wait(60)
        lanes.close()
    finally:
        structlog.configure(**before)
