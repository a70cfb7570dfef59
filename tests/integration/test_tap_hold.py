"""A tap that holds acknowledgements: what its mark means, and that it lets go whatever happens."""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from tests.integration.tap_rig import (
    DISKS,
    StorageDaemon,
    freeze,
    running_tap,
    storage_daemon,
    wait_until,
)

from leeward.core.errors import LeewardError
from leeward.mobility.journal import KIND_WRITE
from leeward.mobility.tap_client import Mark, Tap
from leeward.nbd.client import NbdClient

pytestmark = pytest.mark.integration

RECORD = struct.Struct("<Q")
GUARD_SECONDS = 5.0


class Chain:
    """Writes record n to the second VM only after the first has acknowledged n."""

    def __init__(self, first: StorageDaemon, second: StorageDaemon) -> None:
        self.acknowledged = 0
        self.max_stall_seconds = 0.0
        self.error = ""
        self._daemons = (first, second)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Chain:
        self._thread.start()
        self.progress()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        assert self.error == ""

    def progress(self) -> None:
        before = self.acknowledged
        wait_until(lambda: self.acknowledged > before + 2, "records are written")

    def _run(self) -> None:
        clients = [NbdClient.connect(daemon.nbd_socket, "sys") for daemon in self._daemons]
        try:
            while not self._ending.is_set():
                for client in clients:
                    started = time.monotonic()
                    client.write(0, RECORD.pack(self.acknowledged + 1))
                    stall = time.monotonic() - started
                    self.max_stall_seconds = max(self.max_stall_seconds, stall)
                self.acknowledged += 1
        except (LeewardError, OSError) as error:
            self.error = repr(error)
        finally:
            for client in clients:
                client.close()


@contextmanager
def two_vms() -> Iterator[tuple[tuple[StorageDaemon, Tap], tuple[StorageDaemon, Tap]]]:
    with ExitStack() as stack:
        pairs = []
        for _ in range(2):
            daemon = stack.enter_context(storage_daemon(DISKS))
            tap = stack.enter_context(running_tap())
            daemon.attach(tap)
            pairs.append((daemon, tap))
        yield pairs[0], pairs[1]
        for daemon, _ in pairs:
            daemon.detach()


@contextmanager
def holder_of(*taps: Tap) -> Iterator[int]:
    """Give the pid of a process that holds the taps, as an agent does; end it afterwards."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        held = [Tap(tap.config, tap._process, tap.instance) for tap in taps]
        os.write(writer, bytes(len([tap.hold() for tap in held])))
        signal.pause()
        os._exit(0)
    try:
        assert select.select([reader], [], [], GUARD_SECONDS)[0]
        yield child
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def newest_record(tap: Tap, mark: Mark) -> int:
    """Return the newest record that lies below the mark, 0 if there is none."""
    records = tap.journal.records(0, mark.position)
    writes = [record for record in records if record["kind"] == KIND_WRITE]
    return int(RECORD.unpack_from(tap.journal.payload(writes[-1]))[0]) if writes else 0


def write_of(client: NbdClient, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.write, args=(0, data))
    thread.start()
    return thread


def test_marks_whose_holds_overlap_are_one_moment_of_both_vms() -> None:
    with two_vms() as ((first, tap_a), (second, tap_b)), Chain(first, second) as chain:
        newest = overlaps = 0
        for attempt in range(400):  # on a busy machine some of the holds run out
            taps = (tap_a, tap_b) if attempt % 2 else (tap_b, tap_a)
            marks = {}
            for tap in taps:
                marks[id(tap)] = tap.hold()
                time.sleep(0.02)  # long enough for many records, if they were acknowledged
            lasted = [tap.end_hold(marks[id(tap)]) for tap in taps]
            if not all(lasted):
                continue
            a = newest_record(tap_a, marks[id(tap_a)])
            b = newest_record(tap_b, marks[id(tap_b)])
            assert b <= a <= b + 1, f"the second VM has {b}, the first {a}"
            assert b >= newest
            newest = b
            chain.progress()
            overlaps += 1
            if overlaps == 20:
                break
        assert overlaps == 20
        assert newest > 0


def test_marks_without_a_hold_are_not() -> None:
    with two_vms() as ((first, tap_a), (second, tap_b)), Chain(first, second) as chain:
        mark = tap_a.mark()
        chain.progress()
        assert newest_record(tap_b, tap_b.mark()) > newest_record(tap_a, mark)


def test_nothing_is_acknowledged_between_mark_and_release() -> None:
    with running_tap() as tap, NbdClient.connect(tap.socket, "sys", contexts=()) as disk:
        disk.write(0, b"before")
        for _ in range(20):  # on a busy machine a hold may run out
            mark = tap.hold()
            writing = write_of(disk, b"during")
            writing.join(0.1)
            waits, position = writing.is_alive(), tap.journal.position()
            is_held = tap.end_hold(mark)
            writing.join(GUARD_SECONDS)
            assert not writing.is_alive()
            if is_held:
                assert waits
                assert position == mark.position + 1  # the mark itself
                after = tap.journal.records(position, position + 1)[0]
                assert bytes(tap.journal.payload(after)) == b"during"
                return
        raise AssertionError(_log(tap))


def test_a_hold_nobody_releases_ends_by_itself_and_does_not_count() -> None:
    with running_tap() as tap, NbdClient.connect(tap.socket, "sys", contexts=()) as disk:
        mark = tap.hold()
        disk.write(0, b"waits")  # until the tap has let go
        assert not tap.end_hold(mark)
        assert not tap.end_hold(tap.mark())
        assert any(_held_once(tap) for _ in range(20))


def test_a_hold_ends_with_its_holder() -> None:
    with running_tap() as tap, NbdClient.connect(tap.socket, "sys", contexts=()) as disk:
        for _ in range(5):  # a slow machine may let the hold run out before the holder is killed
            with holder_of(tap) as agent:
                writing = write_of(disk, b"waits")
                os.kill(agent, signal.SIGKILL)
                writing.join(GUARD_SECONDS)
                assert not writing.is_alive()
            if "its holder is gone" in _log(tap):
                return
        raise AssertionError(_log(tap))


def test_a_holder_that_is_stopped_stalls_nobody() -> None:
    with two_vms() as ((first, tap_a), (second, tap_b)), Chain(first, second) as chain:
        with holder_of(tap_a, tap_b) as agent:
            freeze(agent)
            chain.progress()
        assert "nobody released it" in _log(tap_a)
        assert chain.max_stall_seconds < GUARD_SECONDS


def test_a_tap_stopped_while_it_holds_stalls_nobody() -> None:
    with two_vms() as ((first, tap_a), (second, _)), Chain(first, second) as chain:
        mark = tap_a.hold()
        os.kill(tap_a.pid, signal.SIGSTOP)
        chain.progress()  # the watchdog cuts the connections
        os.kill(tap_a.pid, signal.SIGCONT)
        assert not tap_a.end_hold(mark)
        with NbdClient.connect(first.nbd_socket, "data") as idle:
            idle.write(0, b"so that QEMU finds this connection gone too")
        first.converge()


def test_a_connection_that_comes_voids_the_hold() -> None:
    with running_tap() as tap, NbdClient.connect(tap.socket, "sys", contexts=()) as disk:
        mark = tap.hold()
        with NbdClient.connect(tap.socket, "data", contexts=()) as other:
            other.write(0, b"new")
            assert not tap.end_hold(mark)
        disk.write(0, b"on")


def test_one_hold_at_a_time() -> None:
    with running_tap() as tap:
        for _ in range(20):  # on a busy machine the first may run out before the second comes
            mark, second = tap.hold(), None
            with suppress(LeewardError):
                second = tap.hold()
            if tap.end_hold(mark):
                assert second is None
                return
            assert second is None or not tap.end_hold(mark)
        raise AssertionError(_log(tap))


def _held_once(tap: Tap) -> bool:
    """Say whether a hold counted, which it does once; on a busy machine it may run out before."""
    mark = tap.hold()
    is_held = tap.end_hold(mark)
    assert not tap.end_hold(mark)
    return is_held


def _log(tap: Tap) -> str:
    return (tap.config.data_dir / "logs" / f"tap-{tap.config.item_id}.log").read_text()
