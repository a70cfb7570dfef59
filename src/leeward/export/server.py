"""Process that serves all disks of one recovery point over one inherited listening socket.

Owns: its composition. Must not know: who boots from it. What it holds it can do without: killed at
any moment, a successor on the same socket carries on.

usage: python -m leeward.export.server CONFIG.json LISTENER_FD
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from leeward.core.codec import from_json
from leeward.export.boots import Boot, FirstRead
from leeward.export.config import ExportConfig, ExportFiles
from leeward.export.patience import Patience
from leeward.export.points import PointExports, open_devices
from leeward.nbd.server import NbdServer
from leeward.observability.log import configure_logging

if TYPE_CHECKING:
    from leeward.export.block_cache import BlockCache

READ_AHEAD_THREADS = 16
LOGGING_DELAY_SECONDS = 5.0
"""Logging is made ready after the first reads: importing it takes longer than they do."""


def main(arguments: Sequence[str]) -> None:
    """Serve until killed, or told to end by SIGTERM."""
    config_path, listener_fd = Path(arguments[0]), int(arguments[1])
    config = from_json(config_path.read_bytes(), ExportConfig)
    files = ExportFiles(config_path.parent, Path(config.socket))
    executor = ThreadPoolExecutor(READ_AHEAD_THREADS, thread_name_prefix="read-ahead")
    boot = Boot(config, FirstRead(files.first_read))
    exports = PointExports(
        config,
        partial(open_devices, cache=partial(_cache, files)),
        patience=Patience(),
        executor=executor,
        watcher=boot,
    )
    timer = threading.Timer(LOGGING_DELAY_SECONDS, configure_logging)
    timer.daemon = True
    timer.start()
    with socket.socket(fileno=listener_fd) as listener:
        server = NbdServer(listener, exports)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        server.serve_forever()
    boot.end()
    exports.close()
    os._exit(0)  # reads that wait for a store which is away have nobody to wait for


def _cache(files: ExportFiles) -> BlockCache | None:
    from leeward.export.block_cache import open_cache

    return open_cache(files.cache)


if __name__ == "__main__":
    main(sys.argv[1:])
