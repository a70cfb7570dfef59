"""What tap, watchdog and thaw guard say of themselves: one JSON line each on standard error.

Owns: that saying it never stops them: a log on a full disk must not keep a guest waiting. Must not
know: what is said. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress


def log(event: str, **fields: object) -> None:
    """The line is written, if it can be."""
    line = json.dumps({"event": event, "time": round(time.time(), 3), **fields})
    with suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode() + b"\n")
