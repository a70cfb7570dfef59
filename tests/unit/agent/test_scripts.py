"""Scripts of this host: given their context, ended when they hang, with all they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from leeward.agent.records import Records
from leeward.agent.scripts import ScriptRun, Scripts, _boot_id, _started
from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.protocol.fabric import ScriptSpec


def spec(script: str, *, seconds: float = 30.0) -> ScriptSpec:
    return ScriptSpec(
        run_id="run-1", script=script, context={"plan": "site"}, timeout_seconds=seconds
    )


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path / "scripts", tmp_path / "runs")


def write(tmp_path: Path, name: str, text: str, mode: int = 0o700) -> None:
    path = tmp_path / "scripts" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_script_reads_its_context_and_its_output_is_told(
    tmp_path: Path, scripts: Scripts
) -> None:
    write(tmp_path, "hello", "cat")
    assert json.loads(scripts.run(spec("hello")).output) == {"plan": "site"}
    assert not list((tmp_path / "runs").glob("*.json"))


def test_a_script_that_fails_says_why(tmp_path: Path, scripts: Scripts) -> None:
    write(tmp_path, "bad", "echo no route; exit 3")
    with pytest.raises(Conflict, match="script bad ended with 3: no route"):
        scripts.run(spec("bad"))


def test_a_script_that_hangs_is_ended_with_all_it_started(tmp_path: Path, scripts: Scripts) -> None:
    write(tmp_path, "hang", f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(Unavailable, match="script hang was ended after 1 s"):
        scripts.run(spec("hang", seconds=1))
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 90
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)
    assert not list((tmp_path / "runs").glob("*.json"))


def test_only_files_of_the_directory_run(tmp_path: Path, scripts: Scripts) -> None:
    write(tmp_path, "plain", "true", mode=0o600)
    with pytest.raises(NotFound, match="no script ghost"):
        scripts.run(spec("ghost"))
    with pytest.raises(InvalidRequest, match="not the name"):
        scripts.run(spec("../scripts/plain"))
    with pytest.raises(InvalidRequest, match="not executable"):
        scripts.run(spec("plain"))


def test_what_a_killed_agent_left_running_is_ended_and_nobody_else(tmp_path: Path) -> None:
    left, other = (subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2))
    try:
        runs = Records(tmp_path / "runs", ScriptRun)
        for name, process, started in (
            ("run-1", left, _started(left.pid)),
            ("run-2", other, "1"),  # its number was another process's then
        ):
            runs.put(name, ScriptRun(pid=process.pid, started=started, boot_id=_boot_id()))
        Scripts(tmp_path / "scripts", tmp_path / "runs")
        assert left.wait(60) == -signal.SIGKILL
        assert is_alive(other.pid)
        assert runs.all() == {}
    finally:
        for process in (left, other):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
