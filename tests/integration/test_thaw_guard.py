"""The thaw guard against guest agents that do what a real one cannot be made to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.integration.storage_daemon import wait_until

from leeward.core.clock import SystemClock
from leeward.mobility import link, thaw_guard
from leeward.mobility.standby import start_standby
from leeward.mobility.thaw_client import guard_of, thaw_left_guests
from leeward.mobility.thaw_guard import Guard

pytestmark = pytest.mark.integration
Answer = Callable[[str], object]
"""Command → what is answered: a value, an Exception for an error, None for nothing at all."""


class Channel:
    """A VM's agent channel and its tap, in one thread each."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.agent, self.tap = directory / "agent", directory / "tap"
        self.result = directory / "result.json"
        self.asked: list[str] = []
        self.marks = 0
        self._answer = answer
        self._listener = link.listen(self.agent, socket.SOCK_STREAM)
        self._tap = link.listen(self.tap, socket.SOCK_SEQPACKET)
        for each in (self._listener, self._tap):
            each.setblocking(True)
        threading.Thread(target=self._serve, daemon=True).start()
        threading.Thread(target=self._serve_tap, daemon=True).start()

    def close(self) -> None:
        """Be gone, as a QEMU that has ended."""
        for each in (self._listener, self._tap):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def guard(self, **changes: object) -> Guard:
        config: dict[str, Any] = {
            "agent": str(self.agent),
            "tap": str(self.tap),
            "result": str(self.result),
            "freeze_seconds": 0.3,
            "thaw_seconds": 0.3,
        }
        return Guard(config | changes)

    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.result.read_text()))

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line.lstrip(b"\xff"))
                command = request["execute"]
                if command == "guest-sync-delimited":
                    body = {"return": request["arguments"]["id"]}
                    connection.sendall(b"\xff" + json.dumps(body).encode() + b"\n")
                    continue
                self.asked.append(command.removeprefix("guest-fsfreeze-"))
                answer = self._answer(self.asked[-1])
                if answer is None:
                    continue
                failed = {"error": {"desc": str(answer)}}
                body = failed if isinstance(answer, Exception) else {"return": answer}
                connection.sendall(json.dumps(body).encode() + b"\n")

    def _serve_tap(self) -> None:
        with suppress(OSError):
            while True:
                control, _ = self._tap.accept()
                with control, suppress(OSError, link.LinkClosed):
                    while True:
                        request, _ = link.receive(control)
                        assert request == {"op": "mark", "is_frozen": True}
                        self.marks += 1
                        link.send(control, {"position": 7, "instance": 3})


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("SYNC_SECONDS", "INSIST_SECONDS", "MARK_SECONDS"):
        monkeypatch.setattr(thaw_guard, limit, 0.3)


@pytest.fixture
def make() -> Iterator[Callable[[Answer], Channel]]:
    made: list[Channel] = []
    with TemporaryDirectory(prefix="lw", dir="/tmp") as directory:

        def channel(answer: Answer) -> Channel:
            made.append(Channel(Path(directory), answer))
            return made[-1]

        yield channel
        for each in made:
            each.close()


Make = Callable[[Answer], Channel]


def test_frozen_marked_thawed(make: Make) -> None:
    channel = make(lambda command: 2)
    channel.guard().freeze()
    said = channel.said()
    assert (said["position"], said["instance"], said["is_over"]) == (7, 3, True)
    assert 0 < said["ours_ns"] < said["frozen_ns"]
    assert channel.asked == ["freeze", "thaw"]


def test_a_guest_that_cannot_freeze_is_thawed_and_gets_no_mark(make: Make) -> None:
    channel = make(lambda command: OSError("not supported") if command == "freeze" else 0)
    channel.guard().freeze()
    assert channel.said() == {
        "problem": "the guest agent cannot freeze: not supported",
        "is_over": True,
        "frozen_ns": channel.said()["frozen_ns"],
        "ours_ns": channel.said()["ours_ns"],
    }
    assert (channel.asked, channel.marks) == (["freeze", "thaw"], 0)


def test_a_guest_that_somebody_else_thawed_is_not_application_consistent(make: Make) -> None:
    channel = make(lambda command: {"freeze": 2, "thaw": 1}[command])
    channel.guard().freeze()
    assert "somebody else thawed" in channel.said()["problem"]


def test_a_freeze_without_an_answer_is_followed_by_thaws_until_one_is_answered(make: Make) -> None:
    asked = []

    def answer(command: str) -> object:
        asked.append(command)
        return 2 if asked.count("thaw") == 3 else None

    channel = make(answer)
    channel.guard().freeze()
    assert asked == ["freeze", "thaw", "thaw", "thaw"]
    assert channel.said()["is_over"]
    assert "did not freeze within 0.3 s" in channel.said()["problem"]
    assert channel.marks == 0


def test_a_tap_that_is_gone_costs_the_guest_nothing(make: Make) -> None:
    channel = make(lambda command: 2)
    channel.guard(tap=str(channel.tap) + "-gone").freeze()
    assert "tap does not answer" in channel.said()["problem"]
    assert channel.asked == []


def test_a_vm_that_goes_away_while_it_is_frozen_ends_the_guard(make: Make) -> None:
    channel = make(lambda command: 2 if command == "freeze" else channel.close())
    channel.guard().freeze()
    assert channel.said()["is_over"]
    assert "did not thaw" in channel.said()["problem"]


def test_a_guard_that_only_thaws_says_at_once_that_it_is_alive(make: Make) -> None:
    channel = make(lambda command: 0)
    channel.guard().thaw({"problem": "the thaw guard died"})
    assert channel.said() == {"problem": "the thaw guard died", "is_over": True}


# -------------------------------------------------------------------------- as processes


@contextmanager
def process(
    channel: Channel, log: Path = Path("/dev/stderr"), **changes: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the guard as it is run; afterwards neither of its processes is there."""
    config = channel.result.with_name("config.json")
    said = {
        "agent": str(channel.agent),
        "tap": str(channel.tap),
        "result": str(channel.result),
        "freeze_seconds": 60,
        "thaw_seconds": 60,
        "silent_seconds": 60,
        "only_thaw": "",
    }
    config.write_text(json.dumps(said | changes))
    argv = [sys.executable, "-m", "leeward.mobility.thaw_guard", str(config)]
    with log.open("ab") as stderr:
        guard = subprocess.Popen(argv, start_new_session=True, stderr=stderr)
    with guard:
        try:
            yield guard
            wait_until(lambda: not guards_of(config), "no guard is left", seconds=60)
        finally:
            for pid in guards_of(config):
                os.kill(pid, signal.SIGKILL)


def guards_of(config: Path) -> list[int]:
    """Return the processes that run with that configuration."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(config).encode() in (
                (entry / "cmdline").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
    return sorted(found)


def is_over(channel: Channel) -> bool:
    with suppress(FileNotFoundError):
        return bool(channel.said()["is_over"])
    return False


def freezing(channel: Channel, times: int = 1) -> bool:
    return channel.asked.count("freeze") == times


def answer_thaws(command: str) -> object:
    return 2 if command == "thaw" else None  # a hook script holds the freeze up


def test_a_guard_and_its_second_process_end_together(make: Make) -> None:
    channel = make(lambda command: 2)
    with process(channel) as guard:
        assert guard.wait(60) == 0
    assert channel.said()["position"] == 7
    assert channel.asked == ["freeze", "thaw"]


@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its group"])
def test_a_guard_that_is_killed_has_its_guest_thawed_with_no_agent_about(
    make: Make, group: bool
) -> None:
    channel = make(answer_thaws)
    with process(channel) as guard:
        wait_until(partial(freezing, channel), "the guest is being frozen", seconds=60)
        (os.killpg if group else os.kill)(guard.pid, signal.SIGKILL)
        guard.wait(60)
        wait_until(partial(is_over, channel), "the guest is thawed", seconds=60)
    assert channel.asked == ["freeze", "thaw"]
    assert channel.said() == {"problem": "the thaw guard died", "is_over": True}


def test_the_second_process_is_out_of_the_group_when_the_guest_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However late it gets its turn: what is sent to the group in between would end both."""
    setsid = os.setsid

    def late() -> None:
        time.sleep(0.5)
        setsid()

    monkeypatch.setattr(os, "setsid", late)
    second = start_standby(lambda problem: None, silent_seconds=60)
    try:
        assert os.getpgid(second.pid) == second.pid
    finally:
        second.end()


def test_a_second_process_that_ends_at_once_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError

    monkeypatch.setattr(os, "setsid", fail)
    with pytest.raises(OSError, match="it has ended"):
        start_standby(lambda problem: None, silent_seconds=60)


def test_a_full_disk_leaves_no_guest_frozen(make: Make) -> None:
    """Neither result nor log can be written: the guest is thawed all the same, by the first process
    when the freeze takes too long, and by the second one when that was killed."""
    channel = make(answer_thaws)
    channel.result.with_suffix(".new").symlink_to("/dev/full")
    full = Path("/dev/full")
    with process(channel, log=full, freeze_seconds=0.3, thaw_seconds=0.3) as guard:
        assert guard.wait(60) == 0
    assert channel.asked == ["freeze", "thaw", "thaw"]  # the second one was answered
    with process(channel, log=full) as guard:
        wait_until(partial(freezing, channel, 2), "the guest is being frozen", seconds=60)
        guard.kill()
    assert channel.asked[3:] == ["freeze", "thaw"]
    assert not channel.result.exists()


def test_a_guard_that_hangs_has_its_guest_thawed_with_no_agent_about(make: Make) -> None:
    channel = make(answer_thaws)
    with process(channel, silent_seconds=1) as guard:
        wait_until(lambda: "freeze" in channel.asked or is_over(channel), "a freeze", seconds=60)
        guard.send_signal(signal.SIGSTOP)
        assert guard.wait(60) == -signal.SIGKILL
        wait_until(partial(is_over, channel), "the guest is thawed", seconds=60)
    assert channel.asked[-1] == "thaw"
    assert channel.said() == {"problem": "the thaw guard hung", "is_over": True}


def test_a_guard_whose_second_process_is_killed_goes_on_alone(make: Make) -> None:
    frozen = threading.Event()

    def answer(command: str) -> object:
        assert command != "freeze" or frozen.wait(60)
        return 2

    channel = make(answer)
    with process(channel) as guard:
        wait_until(partial(freezing, channel), "the guest is being frozen", seconds=60)
        (second,) = set(guards_of(channel.result.with_name("config.json"))) - {guard.pid}
        os.kill(second, signal.SIGKILL)
        frozen.set()
        assert guard.wait(60) == 0
    assert channel.said()["position"] == 7


def test_a_guest_is_not_frozen_without_a_second_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = make(lambda command: 2)

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(link, "raise_priority", lambda: None)
    config = channel.result.with_name("config.json")
    said = {
        "agent": str(channel.agent),
        "tap": str(channel.tap),
        "result": str(channel.result),
        "freeze_seconds": 1,
        "thaw_seconds": 1,
        "only_thaw": "",
    }
    config.write_text(json.dumps(said))
    monkeypatch.setattr(sys, "argv", ["thaw_guard", str(config)])
    monkeypatch.chdir(config.parent)
    thaw_guard.main()
    assert "no second thaw guard could be started" in channel.said()["problem"]
    assert channel.asked == []


# -------------------------------------------------------------------------- left by an agent


def left_frozen(channel: Channel, run_dir: Path) -> Path:
    """Return the configuration that an agent left behind which died together with both guards."""
    config = run_dir / "freeze" / "item-1" / "config.json"
    config.parent.mkdir(parents=True)
    said = {
        "agent": str(channel.agent),
        "tap": str(channel.tap),
        "result": str(config.with_name("result.json")),
        "freeze_seconds": 60,
        "thaw_seconds": 60,
        "silent_seconds": 60,
        "only_thaw": "",
    }
    config.write_text(json.dumps(said))
    return config


def test_protection_that_ends_leaves_no_guest_frozen_whose_guards_have_died(make: Make) -> None:
    channel = make(lambda command: 2)
    run_dir = channel.agent.parent
    config = left_frozen(channel, run_dir)
    guard = guard_of(run_dir, run_dir / "data", "item-1", SystemClock())
    guard.leave()
    wait_until(lambda: "thaw" in channel.asked, "the guest is thawed", seconds=60)
    wait_until(lambda: not guards_of(config), "no guard is left", seconds=60)
    assert json.loads(config.with_name("result.json").read_text())["is_over"]
    guard.leave()
    assert not config.exists()


def test_every_guest_left_frozen_is_thawed_once(make: Make) -> None:
    channel = make(lambda command: 2)
    run_dir = channel.agent.parent
    config = left_frozen(channel, run_dir)
    thaw_left_guests(run_dir, run_dir / "data", SystemClock())
    wait_until(lambda: "thaw" in channel.asked, "the guest is thawed", seconds=60)
    wait_until(lambda: not guards_of(config), "no guard is left", seconds=60)
    thaw_left_guests(run_dir, run_dir / "data", SystemClock())
    assert guards_of(config) == []
    assert channel.asked == ["thaw"]
