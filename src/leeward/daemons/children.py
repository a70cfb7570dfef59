"""Child daemons kept running: started detached, found again, restarted with back-off.

Owns: one daemon's process and its patience. Must not know: what the daemon is for. Used by up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from leeward.core.errors import LeewardError
from leeward.fabric.processes import (
    ProcessIdentity,
    end,
    is_alive,
    read_pid_file,
    reap,
    spawn,
)

BACK_OFF_SECONDS = 0.5
BACK_OFF_SECONDS_MAX = 30.0
STEADY_SECONDS = 5.0
"""A daemon that has run for so long did start: when it dies, the next one starts soon. Only one
that keeps dying at once is given more and more time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """home: a directory without which the daemon is not started any more (its region is gone)."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    pid_file: Path
    log_file: Path
    home: Path


class ChildState(Enum):
    RUNNING = "running"
    WAITING = "waiting to be restarted"
    GONE = "gone"


class Child:
    """One daemon."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: ProcessIdentity | None = read_pid_file(spec.pid_file)
        self.state = ChildState.RUNNING if self.process else ChildState.WAITING
        self._pause = BACK_OFF_SECONDS
        self._started = time.monotonic()
        self._due = 0.0

    def start(self) -> None:
        """The daemon runs; one that runs already is left alone. Raises: what `spawn` raises."""
        if self.process is not None and is_alive(self.process):
            return
        self.process = spawn(
            self.spec.argv,
            pid_file=self.spec.pid_file,
            log_file=self.spec.log_file,
            environment=self.spec.environment,
        )
        self.state = ChildState.RUNNING
        self._started = time.monotonic()

    def look(self) -> str:
        """Restart the daemon if it is due; return a sentence when something happened, else ""."""
        reap()
        if self.state is ChildState.GONE or (self.process and is_alive(self.process)):
            return ""
        if not self.spec.home.is_dir():
            self.state = ChildState.GONE
            return f"{self.spec.name}: {self.spec.home} is gone, so it is not started again"
        now = time.monotonic()
        if self.state is ChildState.RUNNING:
            return self._died(now)
        if now < self._due:
            return ""
        try:
            self.start()
        except (LeewardError, OSError) as error:  # a full disk, say: the others are to run on
            self._wait(now)
            return f"{self.spec.name}: {error}"
        return f"{self.spec.name} runs again (pid {self.process.pid if self.process else 0})"

    def ask_to_end(self) -> None:
        """The daemon has been told to end; `end` waits for it."""
        if self.process is not None and is_alive(self.process):
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def end(self, *, grace_seconds: float) -> None:
        """The daemon does not run."""
        if self.process is not None:
            end(self.process, grace_seconds=grace_seconds)
        self.spec.pid_file.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Return the last line the daemon wrote, or ""."""
        return last_line(self.spec.log_file)

    def _died(self, now: float) -> str:
        if now - self._started > STEADY_SECONDS:
            self._pause = BACK_OFF_SECONDS
        pause = self._pause
        self._wait(now)
        return f"{self.spec.name} has died; it is started again in {pause:g} s"

    def _wait(self, now: float) -> None:
        self.state = ChildState.WAITING
        self._due = now + self._pause
        self._pause = min(self._pause * 2, BACK_OFF_SECONDS_MAX)


def last_line(log_file: Path) -> str:
    """Return the last line of a log that is not empty, or ""."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
