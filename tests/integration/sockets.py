"""Whether somebody answers at a unix socket yet: its file appears before its owner listens."""

from __future__ import annotations

import socket
from pathlib import Path


def listens(path: Path) -> bool:
    """Say whether a connection to the socket is accepted."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
