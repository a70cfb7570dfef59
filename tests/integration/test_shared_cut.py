"""Two storage daemons replicated side by side: cuts that are one moment of both."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from tests.integration.replication_rig import ITEM, Rig, replication_rig
from tests.integration.storage_daemon import wait_until

from leeward.core.units import MIB
from leeward.mobility.shared_cut import SharedAttempt
from leeward.mobility.tap import HOLD_SECONDS_MAX
from leeward.model.recovery import Consistency, ReplicationState, SharedMark
from leeward.nbd.client import NbdClient
from leeward.replica.manifest import CutManifest

pytestmark = pytest.mark.integration

RECORD = struct.Struct("<Q")
DISKS = {"sys": 4 * MIB, "data": 4 * MIB}
READY_SECONDS = 60.0
HELD_SECONDS = 3.0


@dataclass
class Meeting:
    """Where the members of one attempt wait for each other, as the service would let them."""

    count: int
    hold_seconds: float = HELD_SECONDS
    problems: list[str] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ready = threading.Barrier(self.count)
        self._held = threading.Barrier(self.count)

    def ready(self, *, is_changed: bool) -> bool:
        self.changed.append(is_changed)
        is_complete = _waited(self._ready, READY_SECONDS)
        if not is_complete:
            self.problems.append("not all were ready")
        return is_complete

    def held(self) -> bool:
        return _waited(self._held, self.hold_seconds)

    def end(self, problem: str) -> None:
        self.problems.append(problem)


class NoMeeting(Meeting):
    """Says that all hold although nobody has asked the others."""

    def held(self) -> bool:
        return True


class LateMeeting(Meeting):
    """Says that all hold when the tap has already let go."""

    def held(self) -> bool:
        time.sleep(HOLD_SECONDS_MAX + 0.1)
        return True


def _waited(barrier: threading.Barrier, seconds: float) -> bool:
    try:
        barrier.wait(seconds)
    except threading.BrokenBarrierError:
        return False
    return True


class Chain(threading.Thread):
    """Writes record n to the second VM only after the first has acknowledged n."""

    def __init__(self, rigs: tuple[Rig, Rig]) -> None:
        super().__init__()
        self.rigs = rigs
        self.acknowledged = 0
        self.max_stall_seconds = 0.0
        self._ending = threading.Event()

    def run(self) -> None:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(NbdClient.connect(rig.daemon.nbd_socket, "sys"))
                for rig in self.rigs
            ]
            while not self._ending.wait(0.0005):
                for client in clients:
                    began = time.monotonic()
                    client.write(0, RECORD.pack(self.acknowledged + 1) * 64)
                    stall = time.monotonic() - began
                    self.max_stall_seconds = max(self.max_stall_seconds, stall)
                self.acknowledged += 1

    def progress(self) -> None:
        before = self.acknowledged
        wait_until(lambda: self.acknowledged > before + 3, "records are written")

    def stop(self) -> None:
        self._ending.set()
        self.join()


@contextmanager
def chained() -> Iterator[tuple[tuple[Rig, Rig], Chain]]:
    """Give two VMs that stream, and the workload that joins them."""
    with ExitStack() as stack:
        rigs = (
            stack.enter_context(replication_rig(disks=DISKS)),
            stack.enter_context(replication_rig(disks=DISKS)),
        )
        chain = Chain(rigs)
        chain.start()
        stack.callback(chain.stop)
        for rig in rigs:
            rig.start()
        for rig in rigs:
            rig.wait_state(ReplicationState.STREAMING)
        yield rigs, chain


def share(rigs: tuple[Rig, ...], meetings: tuple[Meeting, ...], number: int) -> SharedMark:
    """Have the VMs take part in an attempt, and return its mark when all have ended it."""
    mark = SharedMark(id=f"sp-{number}", group="cg-1", members=(ITEM,), time_ns=number)
    for rig, meeting in zip(rigs, meetings, strict=True):
        assert rig.replicator is not None
        expires_at = time.monotonic() + 60
        rig.replicator.share(SharedAttempt(mark, meeting, expires_at))
    all_meetings = {id(meeting): meeting for meeting in meetings}.values()
    wait_until(
        lambda: sum(len(meeting.problems) for meeting in all_meetings) == len(rigs),
        "the attempt has ended",
    )
    return mark


def shared_records(rig: Rig) -> dict[str, int]:
    """Return, by shared point, the record that the VM's first disk has in it."""
    rig.wait_point()
    target, found = rig.target(), {}
    while (cut := target.apply_next()) is not None:
        if cut.shared is not None:
            assert cut.consistency is Consistency.CRASH
            found[cut.shared.id] = RECORD.unpack_from(target.images["sys"])[0]
    return found


def shared_cuts(rig: Rig) -> list[CutManifest]:
    return [cut for cut in rig.cuts(1) if cut.shared is not None]


def test_invariant_2_points_shared_by_two_vms_are_one_moment_of_both() -> None:
    with chained() as (rigs, chain):
        wanted = 8
        for number in range(100):  # a busy machine makes some of them come to nothing
            meeting = Meeting(2)
            share(rigs, (meeting, meeting), number)
            wanted -= meeting.problems == ["", ""]
            chain.progress()
            if not wanted:
                break
        first, second = (shared_records(rig) for rig in rigs)
        both = first.keys() & second.keys()
        assert len(both) >= 8, (first, second)
        for point in both:
            assert second[point] <= first[point] <= second[point] + 1, point
        assert len({second[point] for point in both}) == len(both)
        assert chain.max_stall_seconds < 10


def test_points_of_vms_that_did_not_meet_are_not_one_moment() -> None:
    with chained() as (rigs, chain):
        for number in range(6):
            for rig in rigs:
                share((rig,), (NoMeeting(1),), number)
                chain.progress()
        first, second = (shared_records(rig) for rig in rigs)
        assert any(second[point] > first[point] for point in first.keys() & second.keys())


def test_a_vm_that_waits_in_vain_has_a_point_of_its_own_only() -> None:
    with chained() as (rigs, _):
        meeting = Meeting(2, hold_seconds=0.05)
        late = Meeting(1)
        late._ready = meeting._ready  # it gets ready, and then does not hold in time
        share(rigs, (meeting, late), 1)
        assert meeting.problems == ["its hold ended before all members held"]
        rigs[0].wait_point()
        lame = LateMeeting(1)  # all held, and this one hears of it when its tap has let go
        share(rigs[:1], (lame,), 2)
        assert lame.problems == ["its hold ended before all members held"]
        assert shared_cuts(rigs[0]) == []


def test_an_attempt_that_expired_is_not_taken_part_in() -> None:
    with chained() as (rigs, _):
        replicator = rigs[0].replicator
        assert replicator is not None
        meeting = Meeting(1)
        mark = SharedMark(id="sp-1", group="cg-1", members=(ITEM,), time_ns=1)
        replicator.share(SharedAttempt(mark, meeting, time.monotonic() - 1))
        rigs[0].wait_point()
        assert meeting.changed == []


def test_a_vm_that_does_not_stream_says_so() -> None:
    with replication_rig(disks=DISKS) as rig:
        rig.start()
        rig.wait_state(ReplicationState.STREAMING)
        rig.store.refusal = "full"
        rig.daemon.fill("sys", 0, MIB)

        def is_refused() -> bool:
            meeting = Meeting(1)
            share((rig,), (meeting,), 1)
            return meeting.problems == ["it does not stream, or its cache is behind"]

        wait_until(is_refused, "a refusal while the cache is behind")


def test_a_vm_that_wrote_nothing_since_says_so() -> None:
    with replication_rig(disks=DISKS) as rig:
        rig.start()
        rig.wait_state(ReplicationState.STREAMING)
        for number in range(10):  # an attempt that comes to nothing leaves the VM changed
            rig.daemon.fill("sys", 0, MIB)
            meetings = [Meeting(1), Meeting(1)]
            for meeting in meetings:
                share((rig,), (meeting,), number)
            if all(meeting.problems == [""] for meeting in meetings):
                assert [meeting.changed for meeting in meetings] == [[True], [False]]
                return
        raise AssertionError("no two attempts in a row")
