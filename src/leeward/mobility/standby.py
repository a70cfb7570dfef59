"""A second process beside one that must not be lost, which takes over when that dies or hangs.

Owns: the fork, the pipe by which the first says that it lives, the look at it. Must not know: what
is done, but its name. Standard library only; used by thaw_guard.py.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

_ALIVE, _OVER = b".", b"!"


class Standby:
    """The first process's word to the second."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    def beat(self) -> None:
        """The first process lives."""
        self._say(_ALIVE)

    def end(self) -> None:
        """Nobody needs to take over any more; the second process is gone. Called once."""
        self._say(_OVER)
        os.close(self._pipe)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):  # it was killed: the first goes on alone
            os.write(self._pipe, word)


def start_standby(take_over: Callable[[str], None], *, silent_seconds: float) -> Standby:
    """Fork the second process: it calls `take_over`, with what happened, once this one has died or
    has been silent for so long. It is there, and out of this one's group, when this returns. Call
    it before there are threads. Raises: OSError."""
    reading, writing = os.pipe()
    hearing, telling = os.pipe()
    first = os.getpid()
    pid = os.fork()
    if pid:
        os.close(reading)
        os.close(telling)
        standby = Standby(pid, writing)
        is_there = os.read(hearing, 1)
        os.close(hearing)
        if not is_there:
            standby.end()
            raise OSError(errno.ECHILD, "it has ended")
        return standby
    status = 1
    try:
        os.setsid()  # what is sent to the first one's group does not end this one
        os.write(telling, _ALIVE)
        for each in (hearing, telling, writing):
            os.close(each)
        problem = _wait_problem(reading, first, silent_seconds)
        if problem:
            take_over(problem)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def _wait_problem(reading: int, first: int, silent_seconds: float) -> str:
    """Return what has become of the first process, "" if it is done."""
    while True:
        ready, _, _ = select.select([reading], [], [], silent_seconds)
        if not ready:
            with suppress(ProcessLookupError):
                if os.getppid() == first:
                    os.kill(first, signal.SIGKILL)
            return "the thaw guard hung"
        said = os.read(reading, 4096)
        if not said:
            return "the thaw guard died"
        if _OVER in said:
            return ""
