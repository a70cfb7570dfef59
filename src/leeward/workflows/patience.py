"""Waiting for a vault that cannot be used: what must be written down is, sooner or later.

Owns: how often it is tried again. Must not know: what is written. Used where giving up would leave
an item in a state that nothing leads out of: a full disk or a locked database passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from leeward.core.errors import Unavailable
from leeward.observability.log import get_logger
from leeward.workflows.signals import Signals

log = get_logger()
T = TypeVar("T")

_PAUSE_SECONDS = 0.25
_PAUSE_SECONDS_MAX = 10.0
_NOBODY = "patience"


def patiently(signals: Signals, action: Callable[[], T]) -> T:
    """Return what `action`, which asks the vault and nobody else, returns, tried until it can.

    Raises: what it raises but Unavailable; ServiceStopping.
    """
    pause = _PAUSE_SECONDS
    while True:
        try:
            return action()
        except Unavailable as error:
            log.warning("vault_awaited", error=str(error))
        with signals.listen(_NOBODY) as listener:
            listener.wait(pause)
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)
