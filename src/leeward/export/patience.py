"""A device that waits for its store instead of failing.

Owns: how long a read is retried. Must not know: NBD, where the bytes are. Between the NBD server
and the disk of a recovery point: a guest that boots from a store pauses while the store is away.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from leeward.core.errors import Unavailable
from leeward.nbd.handshake import Buffer, ForewarnedDevice, ReadDevice
from leeward.observability.log import get_logger

T = TypeVar("T")

PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 2.0


class Patience:
    """Repeats what raises Unavailable, with back-off, until it works or `give_up` is called.

    limit_seconds: longest wait of one attempt. For ever where the one who waits is a guest's disk
    request, which has nowhere else to go.
    """

    def __init__(self, limit_seconds: float = math.inf) -> None:
        self._limit_seconds = limit_seconds
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Make every present and future wait end with Unavailable."""
        self._given_up.set()

    def wait_for(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns. Raises: whatever it raises but Unavailable."""
        pause = PAUSE_SECONDS_MIN
        deadline = time.monotonic() + self._limit_seconds
        while True:
            try:
                result = attempt()
            except Unavailable as error:
                if pause == PAUSE_SECONDS_MIN:
                    get_logger().warning("store_unavailable_waiting", reason=error.message)
                if self._given_up.wait(pause) or time.monotonic() > deadline:
                    raise
                pause = min(PAUSE_SECONDS_MAX, pause * 2)
            else:
                if pause > PAUSE_SECONDS_MIN:
                    get_logger().info("store_available_again")
                return result


class PatientDevice:
    """`device`, with Unavailable waited out.

    on_read: called with (offset, length) after every read answered. on_expect: the same of every
    range that a reader announces.
    """

    def __init__(
        self,
        device: ReadDevice,
        patience: Patience,
        on_read: Callable[[int, int], None] = lambda offset, length: None,
        on_expect: Callable[[int, int], None] = lambda offset, length: None,
    ) -> None:
        self._device = device
        self._patience = patience
        self._on_read = on_read
        self._on_expect = on_expect

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def read(self, offset: int, length: int) -> Buffer:
        try:
            data = self._device.read(offset, length)
        except Unavailable:
            data = self._patience.wait_for(lambda: self._device.read(offset, length))
        self._on_read(offset, length)
        return data

    def expect(self, offset: int, length: int) -> None:
        self._on_expect(offset, length)
        if isinstance(self._device, ForewarnedDevice):
            self._device.expect(offset, length)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return self._patience.wait_for(lambda: self._device.extents(offset, length))
