"""Process that holds an export's listening socket and keeps a server behind it.

Owns: respawning, back-off. Must not know: anything of Leeward; standard library only, run as a
file, so that it is small, starts at once and has little that can break. Outlives the agent.

usage: supervisor.py LISTENER_FD SOCKET_PATH SERVER_PID_FILE SERVER_ARGV...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

BACK_OFF_SECONDS_MIN = 0.05
BACK_OFF_SECONDS_MAX = 5.0
HEALTHY_SECONDS = 5.0
"""A server that lived this long is replaced at once when it dies."""
STARTS_PER_MINUTE_MAX = 30
GRACE_SECONDS = 2.0
"""Less than the one who ends the supervisor gives it."""


class Supervisor:
    """One server at a time, for as long as nobody says stop (SIGTERM)."""

    def __init__(self, argv: Sequence[str], listener: int, server_pid_file: Path) -> None:
        self._argv = list(argv)
        self._listener = listener
        self._server_pid_file = server_pid_file
        self._server: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._starts: deque[float] = deque(maxlen=STARTS_PER_MINUTE_MAX)

    def stop(self) -> None:
        """End the server, which is given `GRACE_SECONDS` to store what it has recorded, and start
        none again."""
        self._stopped = True
        if self._server is not None:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
            with suppress(ProcessLookupError):
                self._server.terminate()

    def kill(self) -> None:
        """End a server that does not end by itself."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                self._server.kill()

    def run(self) -> None:
        """Keep a server running until `stop`."""
        back_off = 0.0
        while not self._stopped:
            began = time.monotonic()
            self._starts.append(began)
            status = self._serve_once()
            if self._stopped:
                return
            lived = time.monotonic() - began
            back_off = 0.0 if lived > HEALTHY_SECONDS else self._longer(back_off)
            _say(f"export server ended: status {status} after {lived:.1f} s")
            self._pause(max(back_off, self._limit_seconds()))

    def _serve_once(self) -> int:
        try:
            self._server = subprocess.Popen(self._argv, pass_fds=(self._listener,))
        except OSError as error:  # out of processes or memory: later, perhaps
            _say(f"cannot start the export server: {error}")
            return -1
        self._note_server(self._server.pid)
        if self._stopped:  # SIGTERM came while it was being started
            self._server.kill()
        return self._server.wait()

    def _note_server(self, pid: int) -> None:
        temporary = self._server_pid_file.with_suffix(".new")
        with suppress(OSError):  # a full disk must not cost the guest its server
            temporary.write_text(str(pid))
            temporary.replace(self._server_pid_file)

    def _longer(self, back_off: float) -> float:
        return min(BACK_OFF_SECONDS_MAX, back_off * 2 or BACK_OFF_SECONDS_MIN)

    def _limit_seconds(self) -> float:
        """Return how long to wait so that no minute sees more starts than allowed."""
        if len(self._starts) < STARTS_PER_MINUTE_MAX:
            return 0.0
        return max(0.0, self._starts[0] + 60.0 - time.monotonic())

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


def _say(line: str) -> None:
    with suppress(OSError):  # a full disk must not cost the guest its server
        os.write(sys.stdout.fileno(), line.encode() + b"\n")


def main(arguments: Sequence[str]) -> None:
    """Supervise until SIGTERM, then take the socket away."""
    listener, socket_path, pid_file, *argv = arguments
    supervisor = Supervisor(argv, int(listener), Path(pid_file))
    signal.signal(signal.SIGTERM, lambda number, frame: supervisor.stop())
    signal.signal(signal.SIGALRM, lambda number, frame: supervisor.kill())
    supervisor.run()
    with suppress(OSError):
        os.unlink(socket_path)


if __name__ == "__main__":
    main(sys.argv[1:])
