"""Processes are told apart, found again and ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.fabric import processes
from leeward.fabric.processes import ProcessIdentity

SLEEP = (sys.executable, "-S", "-c", "import signal; signal.pause()")


def test_a_process_is_found_by_its_pid_file_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "it.pid"
    process = processes.spawn(SLEEP, pid_file=pid_file, log_file=tmp_path / "it.log")
    try:
        assert processes.read_pid_file(pid_file) == process
        assert os.getsid(process.pid) == process.pid
    finally:
        processes.end(process, grace_seconds=0)
    assert processes.read_pid_file(pid_file) is None
    processes.end(process)


def test_a_process_without_its_pid_file_is_found(tmp_path: Path) -> None:
    """Its starter was killed between starting it and writing the file."""
    pid_file = tmp_path / "it.pid"
    process = processes.spawn(SLEEP, pid_file=pid_file, log_file=tmp_path / "it.log")
    try:
        pid_file.unlink()
        assert processes.read_pid_file(pid_file) is None
        assert processes.find(pid_file) == process
        assert processes.find(tmp_path / "another.pid") is None
    finally:
        processes.end(process, grace_seconds=0)


def test_a_process_that_is_only_just_becoming_it_is_waited_for(tmp_path: Path) -> None:
    """Its starter was killed while what it had forked was still what the starter is."""
    pid_file = tmp_path / "it.pid"
    program = (
        "import fcntl, os, sys, time;"
        "held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "fcntl.flock(held, fcntl.LOCK_SH); os.set_inheritable(held, True);"
        "print('forked', flush=True); time.sleep(0.5); os.setsid();"
        "os.execve(sys.executable, [sys.executable, '-S', '-c', 'import signal; signal.pause()'],"
        "{**os.environ, 'LEEWARD_PID_FILE': sys.argv[1]})"
    )
    argv = [sys.executable, "-c", program, str(pid_file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=False) as forked:
        try:
            assert forked.stdout is not None
            assert forked.stdout.readline() == b"forked\n"
            assert processes.read_pid_file(pid_file) is None
            assert processes.find(pid_file) == processes.identify(forked.pid)
        finally:
            forked.kill()
    assert processes.find(pid_file) is None


def test_a_process_that_cannot_be_recorded_does_not_run(tmp_path: Path) -> None:
    known = set(processes._children)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as a full disk does
    try:
        with pytest.raises(Unavailable, match="cannot write"):
            processes.spawn(SLEEP, pid_file=tmp_path / "it.pid", log_file=tmp_path / "log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(processes._children) <= known
    assert processes.find(tmp_path / "it.pid") is None


def test_a_process_lives_as_long_as_any_thread_of_it(tmp_path: Path) -> None:
    """A kill ends thread by thread; whichever is left still has the disks open."""
    program = (
        "import ctypes, platform, threading, time;"
        "threading.Thread(target=time.sleep, args=(600,)).start();"
        "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)"
    )
    pid_file = tmp_path / "it.pid"
    argv = (sys.executable, "-S", "-c", program)
    process = processes.spawn(argv, pid_file=pid_file, log_file=tmp_path / "log")
    try:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert processes.is_alive(process)
    finally:
        processes.end(process)
    assert not processes.is_alive(process)


def test_a_process_that_inherited_the_mark_is_not_the_one(tmp_path: Path) -> None:
    pid_file, child_file = tmp_path / "parent.pid", tmp_path / "child"
    program = (
        "import subprocess, sys, pathlib, signal;"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import signal; signal.pause()']);"
        f"pathlib.Path({str(child_file)!r}).write_text(str(child.pid)); child.wait()"
    )
    parent = processes.spawn(
        (sys.executable, "-c", program), pid_file=pid_file, log_file=tmp_path / "log"
    )
    while not child_file.exists() or not child_file.read_text():
        assert processes.is_alive(parent)
    child = processes.identify(int(child_file.read_text()))
    assert child is not None
    try:
        pid_file.unlink()
        processes.end(parent, grace_seconds=0)
        assert processes.is_alive(child)
        assert processes.find(pid_file) is None
    finally:
        processes.end(child, grace_seconds=0)


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert not processes.is_alive(ProcessIdentity(me.pid, me.start_ticks - 1))
    saved = {"pid": me.pid, "start_ticks": me.start_ticks - 1}
    (tmp_path / "old.pid").write_text(json.dumps(saved))
    assert processes.read_pid_file(tmp_path / "old.pid") is None


def test_a_stopped_process_is_alive_and_still_ends(tmp_path: Path) -> None:
    process = processes.spawn(SLEEP, pid_file=tmp_path / "it.pid", log_file=tmp_path / "it.log")
    os.kill(process.pid, signal.SIGSTOP)
    assert processes.is_alive(process)
    processes.end(process, grace_seconds=0)
    assert not processes.is_alive(process)


def test_a_missing_program_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="leeward-nothing is not installed"):
        processes.spawn(["leeward-nothing"], pid_file=tmp_path / "p", log_file=tmp_path / "l")


def test_a_torn_pid_file_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "torn.pid").write_text('{"pid": 1')
    assert processes.read_pid_file(tmp_path / "torn.pid") is None
