"""QmpSession against a scripted QMP server: errors, time limits, events, lost connections."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from leeward.core.errors import HypervisorRefused, LeewardError, Unavailable
from leeward.qemu.session import QmpSession

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
        "capabilities": [],
    }
}
Answer = Callable[["FakeQemu", dict[str, Any]], dict[str, Any] | None]


class FakeQemu:
    """Serves one QMP client; `answer` says what each command returns (None: nothing)."""

    def __init__(self, path: Path, answer: Answer, *, greet: bool = True) -> None:
        self._answer = answer
        self._greet = greet
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(2)
        self.connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        assert self.connection is not None
        self.connection.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve(self) -> None:
        try:
            self.connection, _ = self._listener.accept()
        except OSError:
            return
        with self.connection:
            if self._greet:
                self.send(GREETING)
            try:
                self._answer_all(self.connection)
            except (OSError, ValueError):
                return

    def _answer_all(self, connection: socket.socket) -> None:
        text = ""
        while received := connection.recv(65536):
            text += received.decode()  # the client puts nothing between two commands
            while text:
                command, end = json.JSONDecoder().raw_decode(text)
                text = text[end:].lstrip()
                is_hello = command["execute"] == "qmp_capabilities"
                reply = {"return": {}} if is_hello else self._answer(self, command)
                if reply is not None:
                    self.send({**reply, "id": command["id"]} if "id" in command else reply)

    def close(self) -> None:
        if self.connection is not None:
            with suppress(OSError):  # its own thread may just have closed it
                self.connection.shutdown(socket.SHUT_RDWR)
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._thread.join(60)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lw") as directory:
        yield Path(directory) / "qmp"


def echo(_qemu: FakeQemu, command: dict[str, Any]) -> dict[str, Any]:
    return {"return": command.get("arguments", {})}


@pytest.fixture
def echoing(socket_path: Path) -> Iterator[FakeQemu]:
    qemu = FakeQemu(socket_path, echo)
    yield qemu
    qemu.close()


def test_execute_returns_what_qemu_returns(echoing: FakeQemu, socket_path: Path) -> None:
    session = QmpSession.connect(socket_path)
    assert session.execute("any", {"a": 1}) == {"a": 1}
    assert session.is_connected
    session.close()
    assert not session.is_connected
    session.close()


def test_a_refusal_carries_qemus_own_sentence(socket_path: Path) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "Node is in use"}}
    qemu = FakeQemu(socket_path, lambda _q, _c: refusal)
    session = QmpSession.connect(socket_path)
    with pytest.raises(HypervisorRefused, match="Node is in use"):
        session.execute("blockdev-del")
    assert session.is_connected
    session.close()
    qemu.close()


def test_no_answer_in_time_is_unavailable_and_a_late_one_disturbs_nobody(
    socket_path: Path,
) -> None:
    late: list[dict[str, Any]] = []

    def answer(qemu: FakeQemu, command: dict[str, Any]) -> dict[str, Any] | None:
        if command["execute"] == "slow":
            late.append(command)
            return None
        for old in late:
            qemu.send({"return": "late", "id": old["id"]})
        return {"return": "fresh"}

    qemu = FakeQemu(socket_path, answer)
    session = QmpSession.connect(socket_path)
    with pytest.raises(Unavailable, match="slow"):
        session.execute("slow", timeout_seconds=0.05)
    assert session.execute("next") == "fresh"
    session.close()
    qemu.close()


def test_a_monitor_that_does_not_greet_is_unavailable(socket_path: Path) -> None:
    qemu = FakeQemu(socket_path, echo, greet=False)
    with pytest.raises(Unavailable, match="one client"):
        QmpSession.connect(socket_path, timeout_seconds=0.1)
    qemu.close()


def test_nobody_listening_is_unavailable(socket_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot reach QEMU"):
        QmpSession.connect(socket_path)


def test_qemu_dying_in_a_command_is_unavailable_at_once(socket_path: Path) -> None:
    def die(qemu: FakeQemu, _command: dict[str, Any]) -> None:
        assert qemu.connection is not None
        qemu.connection.shutdown(socket.SHUT_RDWR)

    qemu = FakeQemu(socket_path, die)
    session = QmpSession.connect(socket_path)
    with pytest.raises(Unavailable, match="went away"):
        session.execute("quit", timeout_seconds=30)
    with pytest.raises(Unavailable):
        session.execute("query-status", timeout_seconds=30)
    session.close()
    assert not session.is_connected
    qemu.close()


def test_events_reach_subscribers_and_a_broken_one_disturbs_nobody(
    echoing: FakeQemu, socket_path: Path
) -> None:
    session = QmpSession.connect(socket_path)
    seen: list[str] = []

    def broken(_event: dict[str, Any]) -> None:
        raise ValueError("no")

    def calls_back(_event: dict[str, Any]) -> None:
        with pytest.raises(LeewardError, match="callback"):
            session.execute("query-status")
        seen.append("refused")

    session.subscribe(broken)
    session.subscribe(lambda event: seen.append(event["event"]))
    session.subscribe(calls_back)
    with session.expect("STOP", lambda event: event["data"]["n"] == 2) as expected:
        for number in (1, 2):
            echoing.send({"event": "STOP", "data": {"n": number}, "timestamp": {}})
        assert expected.wait(timeout_seconds=5)["data"] == {"n": 2}
    session.execute("sync")
    assert seen == ["STOP", "refused", "STOP", "refused"]
    session.close()


def test_waiting_for_an_event_ends_with_the_connection(
    echoing: FakeQemu, socket_path: Path
) -> None:
    session = QmpSession.connect(socket_path)
    with session.expect("SHUTDOWN") as expected:
        echoing.close()
        with pytest.raises(Unavailable, match="went away"):
            expected.wait(timeout_seconds=30)
        with pytest.raises(Unavailable, match="went away"):
            expected.wait(timeout_seconds=30)
    with pytest.raises(Unavailable, match="went away"):
        session.wait_event("SHUTDOWN", timeout_seconds=30)
    session.close()


def test_waiting_for_an_event_is_bounded(echoing: FakeQemu, socket_path: Path) -> None:
    session = QmpSession.connect(socket_path)
    with pytest.raises(Unavailable, match="did not send RESET"):
        session.wait_event("RESET", timeout_seconds=0.02)
    session.close()


def test_many_threads_share_one_session(echoing: FakeQemu, socket_path: Path) -> None:
    session = QmpSession.connect(socket_path)
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(20):
            value = {"n": number * 100 + turn}
            if (got := session.execute("any", {**value})) != value:
                wrong.append(got)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    session.close()


def test_the_socket_is_never_inherited(echoing: FakeQemu, socket_path: Path) -> None:
    before = _sockets()
    session = QmpSession.connect(socket_path)
    ours = [number for number in _sockets() if number not in before]
    assert ours
    for number in ours:
        assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    session.close()


def _sockets() -> list[int]:
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            numbers.append(int(name))
    return numbers
