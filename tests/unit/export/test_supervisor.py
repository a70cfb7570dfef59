"""The supervisor's decisions, with servers that end at once."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from leeward.export import supervisor
from leeward.export.supervisor import Supervisor


def _run(one: Supervisor) -> threading.Thread:
    thread = threading.Thread(target=one.run)
    thread.start()
    return thread


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_server_that_dies_is_replaced_until_stop(tmp_path: Path) -> None:
    note = tmp_path / "starts"
    script = f"open({str(note)!r}, 'a').write('x\\n'); import time; time.sleep(60)"
    read_end, write_end = os.pipe()
    one = Supervisor((sys.executable, "-SIc", script), read_end, tmp_path / "server.pid")
    thread = _run(one)
    for count in (1, 2):
        _wait_until(lambda count=count: _lines(note) == count)
        os.kill(int((tmp_path / "server.pid").read_text()), 9)
    _wait_until(lambda: _lines(note) == 3)
    one.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert _lines(note) == 3
    os.close(read_end)
    os.close(write_end)


def test_a_server_that_cannot_live_is_not_started_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_SECONDS_MIN", 0.001)
    monkeypatch.setattr(supervisor, "BACK_OFF_SECONDS_MAX", 0.001)
    monkeypatch.setattr(supervisor, "STARTS_PER_MINUTE_MAX", 5)
    note = tmp_path / "starts"
    read_end, write_end = os.pipe()
    argv = ("/bin/sh", "-c", f"echo x >> {note}; exit 1")
    one = Supervisor(argv, read_end, tmp_path / "server.pid")
    thread = _run(one)
    _wait_until(lambda: _lines(note) == 5)
    assert one._limit_seconds() > 50
    one.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert _lines(note) == 5
    os.close(read_end)
    os.close(write_end)


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    one = Supervisor(("/nonexistent",), read_end, tmp_path / "server.pid")
    thread = _run(one)
    _wait_until(lambda: len(one._starts) >= 2)
    one.stop()
    thread.join(60)
    assert not thread.is_alive()
    os.close(read_end)
    os.close(write_end)


def _wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
