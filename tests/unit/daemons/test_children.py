"""Daemons kept running, found again, and not resurrected when their region is gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from leeward.daemons import children
from leeward.daemons.children import Child, ChildSpec, ChildState
from leeward.fabric.processes import reap


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[ChildSpec]:
    home = tmp_path / "region"
    home.mkdir()
    spec = ChildSpec(
        name="agent east-1",
        argv=(sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"),
        environment={"LEEWARD_REGION": "east"},
        pid_file=tmp_path / "agent.pid",
        log_file=tmp_path / "agent.log",
        home=home,
    )
    yield spec
    Child(spec).end(grace_seconds=1)


def kill(child: Child) -> None:
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGKILL)
    wait(lambda: child.look() != "")


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        reap()
        time.sleep(0.01)


def test_running_daemon_is_found_again(spec: ChildSpec) -> None:
    first = Child(spec)
    first.start()
    second = Child(spec)
    second.start()
    assert second.process == first.process


def test_daemon_that_dies_is_started_again(
    spec: ChildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "BACK_OFF_SECONDS", 0.05)
    child = Child(spec)
    child.start()
    before = child.process
    kill(child)
    assert child.state is ChildState.WAITING
    wait(lambda: "runs again" in child.look())
    assert child.process != before


def test_daemon_of_a_region_that_is_gone_stays_down(spec: ChildSpec) -> None:
    child = Child(spec)
    child.start()
    spec.home.rmdir()
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGKILL)
    said: list[str] = []
    wait(lambda: bool(said.append(child.look()) or said[-1]))  # type: ignore[func-returns-value]
    assert "is gone, so it is not started again" in said[-1]
    assert child.state is ChildState.GONE
    assert child.look() == ""


def test_last_words(spec: ChildSpec) -> None:
    child = Child(spec)
    assert child.last_words() == ""
    child.start()
    wait(lambda: child.last_words() == "up")


def test_ended_daemon_does_not_run(spec: ChildSpec) -> None:
    child = Child(spec)
    child.start()
    child.end(grace_seconds=5)
    assert Child(spec).process is None


def test_a_daemon_that_cannot_be_started_now_takes_nobody_with_it(
    spec: ChildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "BACK_OFF_SECONDS", 0.05)
    child = Child(replace(spec, log_file=spec.home))  # it can be opened no more than on a full disk
    said = child.look()
    assert said.startswith("agent east-1: ")
    assert "Is a directory" in said
    assert child.state is ChildState.WAITING
