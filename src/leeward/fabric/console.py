"""What a VM shows: the end of its serial console, a picture of its display.

Owns: how much of both is taken. Must not know: who looks.
"""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from pathlib import Path

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.core.units import KIB, MIB
from leeward.protocol.drills import ConsoleView
from leeward.qemu.session import QmpSession

TEXT_BYTES_MAX = 8 * KIB
SCREEN_BYTES_MAX = MIB


def view_console(session: QmpSession, log: Path, scratch: Path) -> ConsoleView:
    """Return what the VM shows now. log: its serial console's; scratch: a file that may be made
    and is gone afterwards. A VM without a display has no picture."""
    return ConsoleView(text=_last(log), screen=_picture(session, scratch))


def _last(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TEXT_BYTES_MAX))
            return file.read().decode("utf-8", "replace").replace("\r", "")
    except FileNotFoundError:
        return ""


def _picture(session: QmpSession, scratch: Path) -> str:
    try:
        session.execute("screendump", {"filename": str(scratch), "format": "png"})
        taken = scratch.read_bytes()
    except (HypervisorRefused, Unavailable, OSError):  # no display, or nobody who would show it
        return ""
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()
    return base64.b64encode(taken).decode() if len(taken) <= SCREEN_BYTES_MAX else ""
