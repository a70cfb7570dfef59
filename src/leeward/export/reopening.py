"""A recovery point's disks, opened anew when compaction has moved what they read.

Owns: when that is tried. Must not know: NBD, how a point is opened. Whoever cannot renew its pin
for ten minutes (its store was away, its host stood still) finds its data deleted; the point, which
is held, is listed still, and its data lies elsewhere. Between PointExports and the replica log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from leeward.core.errors import NotFound, ObjectMissing, Unavailable
from leeward.nbd.handshake import Buffer, ReadDevice
from leeward.observability.log import get_logger

T = TypeVar("T")

AGAIN_SECONDS = 60.0
"""What is missing so soon after the point was opened is not elsewhere: it is lost."""


@dataclass(frozen=True, slots=True)
class OpenedDisk:
    """A disk twice: `device` for what a guest reads, which it may read again at its next boot;
    `bulk` for what is read once, from end to end, and is not worth keeping."""

    device: ReadDevice
    bulk: ReadDevice
    close: Callable[[], None] = lambda: None
    """The point may be forgotten by compaction from then on."""


class OpenPoint:
    """The disks of a point, as last opened. Thread-safe."""

    def __init__(
        self,
        open_disks: Callable[[], Mapping[str, OpenedDisk]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open them. Raises: what `open_disks` raises."""
        self._open_disks = open_disks
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._is_closed = False
        self._reopened_at = float("-inf")
        self._disks = open_disks()

    @property
    def names(self) -> list[str]:
        return list(self._disks)

    def close(self) -> None:
        """Let the point go; reads fail from now on. Idempotent."""
        with self._lock:
            self._is_closed = True
            for disk in self._disks.values():
                disk.close()

    def use(self, name: str, action: Callable[[OpenedDisk], T]) -> T:
        """Return what `action` returns, given the disk; asked again if its data lies elsewhere.

        Raises: what `action` raises; Unavailable while the point cannot be opened anew.
        """
        disks = self._disks
        try:
            return action(disks[name])
        except ObjectMissing as missing:
            self._reopen(disks, missing)
        return action(self._disks[name])

    def _reopen(self, stale: Mapping[str, OpenedDisk], missing: ObjectMissing) -> None:
        """Have the point opened after `stale` was. Raises: `missing` if that cannot help."""
        with self._lock:
            if self._disks is not stale:
                return  # another reader has seen to it
            if self._is_closed:
                raise Unavailable("the recovery point has been closed")
            if self._monotonic() - self._reopened_at < AGAIN_SECONDS:
                raise missing
            try:
                self._disks = self._open_disks()
            except NotFound as error:
                raise missing from error
            self._reopened_at = self._monotonic()
        get_logger().warning("point_opened_anew", reason=missing.message)
        for disk in stale.values():  # who still reads through them is told, and asks again
            disk.close()


class PointDevice:
    """One disk of an open point as a device: `device` or `bulk` of whatever is open now."""

    def __init__(
        self, point: OpenPoint, name: str, choose: Callable[[OpenedDisk], ReadDevice]
    ) -> None:
        self._point = point
        self._name = name
        self._choose = choose
        self._size_bytes = point.use(name, lambda disk: choose(disk).size_bytes)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, length: int) -> Buffer:
        return self._point.use(self._name, lambda disk: self._choose(disk).read(offset, length))

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return self._point.use(self._name, lambda disk: self._choose(disk).extents(offset, length))
