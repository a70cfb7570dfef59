"""Logs of processes that run for months, consoles of guests that talk too much: kept from filling
the disk.

Owns: how large a log may grow. Must not know: who writes it. For files whose writers append
(O_APPEND), which is how `processes.spawn` opens them and QEMU its console's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from leeward.core.units import MIB
from leeward.observability.log import get_logger

LOG_BYTES_MAX = 32 * MIB
"""A log found larger is begun anew; its last LOG_BYTES_KEPT are in a file beside it, ".1"."""
LOG_BYTES_KEPT = 8 * MIB
LOOK_SECONDS = 60.0

_log = get_logger()


def limit_logs(logs: Iterable[Path]) -> list[Path]:
    """Return those of the logs that were too large and have been begun anew.

    What is written while one is being copied may be lost; the writer is not disturbed.
    """
    cut = []
    for path in logs:
        try:
            if path.stat().st_size > LOG_BYTES_MAX:
                _begin_anew(path)
                cut.append(path)
        except OSError as error:  # gone meanwhile, or the disk is full: another time
            _log.warning("log_not_limited", path=str(path), error=str(error))
    return cut


def keep_logs_limited(directory: Path) -> None:
    """From now on no *.log below `directory` grows far beyond LOG_BYTES_MAX, until we end."""

    def run() -> None:
        while not pause.wait(LOOK_SECONDS):
            limit_logs(directory.rglob("*.log"))

    pause = threading.Event()
    threading.Thread(target=run, name="logs", daemon=True).start()


def _begin_anew(path: Path) -> None:
    kept = path.with_name(path.name + ".1")
    with path.open("rb") as file:
        file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
        kept.write_bytes(file.read(LOG_BYTES_KEPT))
    kept.chmod(0o600)
    os.truncate(path, 0)
