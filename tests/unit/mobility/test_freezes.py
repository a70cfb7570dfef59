"""When a guest is frozen, what its mark may be called, and what an attempt ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from leeward.core.errors import Unavailable
from leeward.mobility.cutter import Cutter, Portion
from leeward.mobility.freezes import Freezes
from leeward.mobility.portions import Portions, Standing
from leeward.mobility.settings import Tuning
from leeward.mobility.tap_client import Mark
from leeward.mobility.taps import Taps
from leeward.mobility.thaw_client import ThawGuard, Verdict
from leeward.model.recovery import Consistency, FrozenTime
from leeward.qemu.session import QmpSession

GOOD = Verdict(instance=3, position=40, frozen_ns=120_000_000, ours_ns=300_000)
TAP = Path("/run/tap")


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Guard:
    """A guard that says what it is told to."""

    def __init__(self) -> None:
        self.is_busy = False
        self.starts = 0
        self.said: tuple[Verdict | None, bool] = (None, False)
        self.error: Unavailable | None = None

    def start(self, agent: Path, tap: Path) -> None:
        if self.error:
            raise self.error
        self.starts += 1
        self.is_busy, self.said = True, (None, False)

    def look(self) -> tuple[Verdict | None, bool]:
        self.is_busy = not self.said[1]
        return self.said

    def leave(self) -> None:
        self.is_busy = False


class Session:
    """A QEMU with or without somebody at the guest's end of the agent channel."""

    def __init__(self, devices: list[dict[str, object]] | None = None) -> None:
        self.devices = devices or [{"label": "agent", "frontend-open": True}]

    def execute(self, command: str) -> object:
        assert command == "query-chardev"
        return self.devices


class Host:
    """What freezes one VM, and what it is made of."""

    def __init__(self, directory: Path) -> None:
        self.clock, self.guard, self.directory = Clock(), Guard(), directory

    def freezes(self, *, every_seconds: int = 0) -> Freezes:
        return Freezes(
            cast(ThawGuard, self.guard),
            self.directory / "freeze.json",
            1,
            every_seconds=every_seconds,
            agent_socket=lambda: Path("/run/agent"),
            clock=self.clock,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def begin(freezes: Freezes, **session: Any) -> None:
    freezes.begin(cast(QmpSession, Session(**session)), TAP)


def end(host: Host, freezes: Freezes, consistency: Consistency = Consistency.APPLICATION) -> None:
    host.guard.said = (GOOD, True)
    assert freezes.look()
    assert not freezes.look(), "a verdict is new once"
    freezes.end(freezes.number, sequence=7, consistency=consistency)


def test_by_policy_the_first_is_due_at_once_and_the_next_when_its_time_has_come(host: Host) -> None:
    freezes = host.freezes(every_seconds=60)
    assert freezes.is_due
    begin(freezes)
    assert not freezes.is_due
    assert freezes.verdict is None
    end(host, freezes)
    host.clock.seconds += 59
    assert not freezes.is_due
    assert not host.freezes(every_seconds=60).is_due, "another agent remembers"
    host.clock.seconds += 2
    assert freezes.is_due


def test_without_a_policy_it_is_due_when_it_is_asked_for(host: Host) -> None:
    freezes = host.freezes()
    assert not freezes.is_due
    freezes.asked = 1
    assert freezes.is_due
    begin(freezes)
    freezes.asked = 2  # too late for this one
    end(host, freezes)
    assert (freezes.answered, freezes.is_due) == (1, True)


def test_a_clock_that_was_set_back_does_not_keep_guests_from_being_frozen(host: Host) -> None:
    freezes = host.freezes(every_seconds=60)
    begin(freezes)
    end(host, freezes)
    host.clock.seconds -= 500
    assert freezes.is_due


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([{"label": "agent", "frontend-open": False}], "no guest agent runs in the VM"),
        ([{"label": "console", "frontend-open": True}], "without a channel to its guest agent"),
    ],
)
def test_a_guest_without_an_agent_is_not_frozen(
    host: Host, devices: list[dict[str, object]], said: str
) -> None:
    freezes = host.freezes()
    begin(freezes, devices=devices)
    assert host.guard.starts == 0
    assert freezes.look()
    freezes.end(freezes.number, sequence=9, consistency=Consistency.CRASH)
    assert freezes.report is not None
    assert said in freezes.report.problem
    assert (freezes.report.sequence, freezes.report.point_id) == (9, "rp-0001-00000009")


def test_a_guard_that_cannot_be_started_is_a_reason_too(host: Host) -> None:
    host.guard.error = Unavailable("cannot start python3: no memory")
    freezes = host.freezes()
    begin(freezes)
    assert freezes.look()
    assert freezes.verdict is not None
    assert "no memory" in freezes.verdict.problem


def test_a_guest_that_does_not_answer_its_thaw_is_a_problem_until_it_does(host: Host) -> None:
    freezes = host.freezes()
    begin(freezes)
    host.guard.said = (Verdict(problem="the guest did not thaw at once"), False)
    assert freezes.look()
    assert "the guest may be frozen" in freezes.problem
    freezes.end(freezes.number, sequence=7, consistency=Consistency.CRASH)
    freezes.asked = 5
    assert not freezes.is_due, "one guard at a time"
    host.guard.said = (host.guard.said[0], True)
    freezes.look()
    assert freezes.problem == ""
    assert freezes.is_due


def test_an_interrupted_stream_is_the_reason_where_the_freeze_itself_was_good(host: Host) -> None:
    freezes = host.freezes()
    begin(freezes)
    end(host, freezes, Consistency.CRASH)
    assert freezes.report is not None
    assert freezes.report.problem == "replication was interrupted meanwhile"


def test_what_an_earlier_agent_began_is_seen_to_its_end_and_not_believed(host: Host) -> None:
    host.guard.is_busy = True
    freezes = host.freezes()
    assert freezes.is_under_way
    host.guard.said = (GOOD, True)
    assert freezes.look()
    assert freezes.verdict is not None
    assert "agent was restarted" in freezes.verdict.problem


# -- what becomes of the mark


class FakeCutter:
    """Takes portions."""

    has_room = True

    def __init__(self) -> None:
        self.portions: list[Portion] = []

    def submit(self, portion: Portion) -> None:
        self.portions.append(portion)


class FakeTaps:
    """A tap at position 50 of its journal, with a mark at 40 that was set in the frozen guest."""

    has_leftovers = False

    def __init__(self) -> None:
        self.tap = self
        self.journal = self
        self.config = self
        self.disks = (("sys", 1 << 20),)
        self.instance = 3
        self.taken = 10
        self.frozen: Mark | None = Mark(40, 1234, 1)

    def next_leftover(self) -> None:
        return None

    def frozen_mark(self) -> Mark | None:
        return self.frozen if self.taken <= 40 else None

    def mark(self) -> Mark:
        return Mark(50, 5678, 2)

    def taken_to(self) -> int:
        return self.taken

    def take(self, to: int) -> None:
        self.taken = to

    def has_fresh(self) -> bool:
        return True


STANDING = Standing(
    is_whole=True,
    confirm=lambda: True,
    lineage=1,
    newest_generation=2,
    sweep_offsets=None,
    is_freezing=True,
    frozen=GOOD,
)


def cut(standing: Standing, *, times: int = 1) -> list[Portion]:
    """Return what was submitted in so many rounds, an attempt's verdict being known."""
    cutter, taps = FakeCutter(), FakeTaps()
    portions = Portions(cast(Cutter, cutter), interval_seconds=0.0, tuning=Tuning(), clock=Clock())
    portions.end_freeze(8)
    for _ in range(times):
        portions.cut_if_due(cast(Taps, taps), standing)
    return cutter.portions


def test_the_cut_ends_at_the_mark_and_the_next_begins_behind_it() -> None:
    first, second = cut(STANDING, times=2)
    assert (first.start, first.stop, first.time_ns) == (10, 40, 1234)
    assert (first.consistency, first.freeze) == (Consistency.APPLICATION, 8)
    assert first.frozen == FrozenTime(total_ns=120_000_000, ours_ns=300_000)
    assert (second.start, second.stop) == (41, 50)
    assert (second.consistency, second.freeze) == (Consistency.CRASH, 0)


def test_nothing_is_cut_while_nobody_knows_what_the_mark_is_worth() -> None:
    assert cut(replace(STANDING, frozen=None), times=3) == []


Change = Callable[[Standing], Standing]


@pytest.mark.parametrize(
    ("change", "consistency"),
    [
        (lambda s: replace(s, frozen=replace(GOOD, problem="thawed late")), Consistency.CRASH),
        (lambda s: replace(s, frozen=replace(GOOD, position=39)), Consistency.CRASH),
        (lambda s: replace(s, frozen=replace(GOOD, instance=2)), Consistency.CRASH),
        (lambda s: replace(s, whole_from=41), Consistency.NONE),
        (lambda s: replace(s, is_whole=False), Consistency.NONE),
        (lambda s: replace(s, confirm=lambda: False), Consistency.NONE),
    ],
    ids=["thawed late", "another mark", "another tap", "not whole before", "not whole", "failed"],
)
def test_a_mark_is_called_no_more_than_is_known(change: Change, consistency: Consistency) -> None:
    (only,) = cut(change(STANDING))
    assert (only.stop, only.consistency) == (40, consistency)
    assert only.frozen is None
    assert only.freeze == (8 if consistency is Consistency.CRASH else 0)
