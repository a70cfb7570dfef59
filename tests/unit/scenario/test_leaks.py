"""What an installation leaves on the machine is found, and nothing of anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario import leaks


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting, and no look at namespaces: other tests make some meanwhile."""
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(leaks, "namespaces", lambda: frozenset())


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of the installation in tmp_path."""
    environment = {**os.environ, "LEEWARD_DATA": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("quick")
def test_a_process_left_running_is_found(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    found = leaks.find_leaks(tmp_path, namespaces_before=leaks.namespaces())
    assert any(f"process {process.pid}" in each for each in found)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("host", ["east-1", "east-2", "east-16"])
def test_sockets_and_buffers_of_a_lost_host_are_found(tmp_path: Path, host: str) -> None:
    home = tmp_path / "regions" / "east" / "hosts" / host
    (shared_memory,) = (each for each in leaks._outside(tmp_path) if each.name.endswith(f"-{host}"))
    shared_memory.mkdir()
    try:
        found = leaks.find_leaks(tmp_path, namespaces_before=leaks.namespaces())
    finally:
        shared_memory.rmdir()
    assert found == (f"{shared_memory} exists",)
    assert home in leaks.homes_of(tmp_path)


@pytest.mark.usefixtures("quick")
def test_nothing_left_is_nothing_found(tmp_path: Path) -> None:
    assert leaks.find_leaks(tmp_path, namespaces_before=leaks.namespaces()) == ()
