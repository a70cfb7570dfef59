"""Whether somebody answers at a unix socket yet: its file appears before its owner listens."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from leeward.core.errors import Unavailable
from leeward.qemu.session import QmpSession

OPEN_TRIES = 20


def listens(path: Path) -> bool:
    """Say whether a connection to the socket is accepted."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def open_monitor(path: Path) -> QmpSession:
    """Return a session with a QEMU that has just been started, or just been left by another client:
    for a moment it closes what it accepts, or nobody listens yet."""
    for _ in range(OPEN_TRIES):
        try:
            return QmpSession.connect(path)
        except Unavailable:
            time.sleep(0.2)
    return QmpSession.connect(path)
