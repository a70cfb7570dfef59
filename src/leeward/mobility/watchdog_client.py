"""The agent's hand on the host's watchdog, and how the agent asks such processes at all.

Owns: starting the watchdog, finding it again, ending it; one question, one answer, with a limit.
Must not know: QEMU, journals. Beside tap_client.py, which does the same for taps.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leeward.core.errors import Unavailable
from leeward.fabric.processes import ProcessIdentity, end, find, is_alive, spawn
from leeward.mobility import link

START_SECONDS = 10.0
ANSWER_SECONDS = 2.0


_answered: dict[Path, tuple[ProcessIdentity, float]] = {}
"""By run_dir: the watchdog that answered last, and when (monotonic)."""


def ensure_watchdog(
    run_dir: Path, data_dir: Path, *, age_seconds_max: float = 0.0
) -> ProcessIdentity:
    """Have one answering watchdog on this host and return it. Cheap when it is there already.

    Call it now and then: without a watchdog, taps cut themselves off after 3 s. age_seconds_max:
    an answer to anybody in this process that is not older will do, as long as the process runs.
    Raises: Unavailable.
    """
    process, answered_at = _answered.get(run_dir, (None, 0.0))
    is_recent = time.monotonic() - answered_at <= age_seconds_max
    if process is not None and is_recent and is_alive(process):
        return process
    process = _ensure_answering(run_dir, data_dir)
    _answered[run_dir] = process, time.monotonic()
    return process


def _ensure_answering(run_dir: Path, data_dir: Path) -> ProcessIdentity:
    with locked(run_dir / "tap" / "watchdog.lock"):
        pid_file = run_dir / "tap" / "watchdog.pid"
        process = find(pid_file)
        if process is not None:
            try:
                ask_watchdog(run_dir, {"op": "ping"})
            except Unavailable:
                end(process, grace_seconds=0)  # hung: it cannot guard anybody
            else:
                return process
        configuration = run_dir / "tap" / "watchdog.json"
        configuration.write_text(json.dumps({"socket": str(watchdog_socket(run_dir))}))
        process = spawn(
            [sys.executable, "-m", "leeward.mobility.watchdog", str(configuration)],
            pid_file=pid_file,
            log_file=data_dir / "logs" / "watchdog.log",
        )
        wait_answer(process, watchdog_socket(run_dir), data_dir / "logs" / "watchdog.log")
        return process


def stop_watchdog(run_dir: Path) -> None:
    """Make the host's watchdog not run. Idempotent. Stop the taps first."""
    process = find(run_dir / "tap" / "watchdog.pid")
    if process is not None:
        end(process)


def ask_watchdog(run_dir: Path, request: link.Message) -> dict[str, Any]:
    """Return the watchdog's answer. Raises: Unavailable."""
    try:
        with link.connect(watchdog_socket(run_dir), timeout_seconds=ANSWER_SECONDS) as watchdog:
            return ask(watchdog, request)
    except (OSError, link.LinkClosed) as error:
        raise Unavailable("this host's watchdog does not answer") from error


def ask(peer: socket.socket, request: link.Message) -> dict[str, Any]:
    """Return the answer to `request`. Raises: OSError, LinkClosed; Unavailable if refused."""
    link.send(peer, request)
    got, _ = link.receive(peer)
    if got is None:
        raise link.LinkClosed
    if "error" in got:
        raise Unavailable(str(got["error"]))
    return got


def wait_answer(
    process: ProcessIdentity, path: Path, log_file: Path, *, ready: str | None = None
) -> None:
    """Return when the process answers at `path` and says that it is `ready`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and is_alive(process):
        with suppress(OSError, link.LinkClosed):
            with link.connect(path, timeout_seconds=ANSWER_SECONDS) as peer:
                got = ask(peer, {"op": "status"})
            if ready is None or got[ready]:
                return
        time.sleep(0.01)
    end(process, grace_seconds=0)
    raise Unavailable(f"process {process.pid} did not start", hint=f"its output is in {log_file}")


def watchdog_socket(run_dir: Path) -> Path:
    """Return the path at which the host's watchdog answers agents and taps."""
    return run_dir / "tap" / "watchdog.sock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two threads or agents do not start two of one thing. Its file
    may be deleted by who holds it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(path, lock.fileno()):  # deleted while we waited: who comes next locks
                continue  # another file
            yield
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
