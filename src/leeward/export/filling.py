"""Filling one overlay from its base through QEMU's copy-on-read.

Owns: which ranges are missing, reading them, counting. Must not know: threads, QMP, retries. Called
by hydration.py with connected clients; begun again at any time it carries on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from leeward.core.errors import Unavailable
from leeward.core.units import CHUNK, KIB, MIB
from leeward.nbd import wire
from leeward.nbd.client import NbdClient

DEPTH_CONTEXT = "qemu:allocation-depth"
DEPTH_LOCAL = 1
"""Allocation depth of what the overlay itself holds; the base's is greater."""
CONTEXTS = (wire.BASE_ALLOCATION, DEPTH_CONTEXT)
CLUSTER_BYTES = CHUNK
"""The overlay's cluster: copy-on-read fills whole ones."""
READ_BYTES = 512 * KIB
READS_IN_FLIGHT = 4
WINDOW_BYTES = 256 * MIB
"""Extents are asked about this far ahead, and progress is counted in such steps."""
PASSES_MAX = 8
ANNOUNCED_BYTES = 6 * MIB
"""Hydration says so far ahead what it will read: a store that is far is asked for it at once."""

Announce = Callable[[int, int], None]
"""Called with (offset, length)."""


class DiskFill:
    """How far one disk is. Its figures may be read from any thread."""

    def __init__(self, disk: str) -> None:
        self.disk = disk
        self.position = 0
        """Where the last read began: the place to ask whether the base answers."""
        self._bytes_of_window: list[int] = []
        self._done_of_window: dict[int, int] = {}

    @property
    def bytes_total(self) -> int:
        """Data bytes of the base; 0 until measured."""
        return sum(self._bytes_of_window)

    @property
    def bytes_done(self) -> int:
        return sum(list(self._done_of_window.values()))

    def measure(self, base: NbdClient, check: Callable[[], None]) -> None:
        """Know how much data the base has. Measured once; `check` is called now and then."""
        if self._bytes_of_window:
            return
        counts = []
        for offset, length in _windows(base.size_bytes):
            check()
            extents = base.block_status(offset, length)
            counts.append(sum(size for size, flags in extents if not flags & wire.STATE_ZERO))
        self._bytes_of_window = counts

    def fill(self, root: NbdClient, check: Callable[[], None], announce: Announce) -> None:
        """Have the overlay hold all data of its base, durably, looked at once more after the last
        read.

        root: a client of the copy-on-read root with CONTEXTS. `check` is called between reads and
        ends it by raising. `announce` is told what will be read of the base, some MiB ahead.
        (NBD_CMD_CACHE would spare sending the data here, but QEMU 7.2 then
        sets bits in the bitmap of the guest's own writes.)
        Raises: Unavailable, also when reads go through but leave nothing in the overlay.
        """
        for _ in range(PASSES_MAX):
            if not self._pass(root, check, announce):
                root.flush()  # QEMU keeps in memory where it has put what copy-on-read filled in
                return
        raise Unavailable(f"disk {self.disk}: copy-on-read does not fill the overlay")

    def _pass(self, root: NbdClient, check: Callable[[], None], announce: Announce) -> int:
        """Read once what is missing; return how many reads that took."""
        count = 0
        for index, (offset, length) in enumerate(_windows(root.size_bytes)):
            check()
            ranges = _announced(_missing(root, offset, length), announce)
            for _, data in root.pread_many(self._noting(ranges), depth=READS_IN_FLIGHT):
                check()
                self._count(index, len(data))
                count += 1
            self._count_whole(index)
        return count

    def _noting(self, ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for offset, length in ranges:
            self.position = offset
            yield offset, length

    def _count(self, window: int, length: int) -> None:
        if window < len(self._bytes_of_window):
            done = self._done_of_window.get(window, 0) + length
            self._done_of_window[window] = min(done, self._bytes_of_window[window])

    def _count_whole(self, window: int) -> None:
        if window < len(self._bytes_of_window):
            self._done_of_window[window] = self._bytes_of_window[window]


def _windows(size_bytes: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size_bytes, WINDOW_BYTES):
        yield offset, min(WINDOW_BYTES, size_bytes - offset)


def _announced(ranges: Iterator[tuple[int, int]], announce: Announce) -> Iterator[tuple[int, int]]:
    """Yield the ranges, each announced when those before it are ANNOUNCED_BYTES or less."""
    ahead: deque[tuple[int, int]] = deque()
    for offset, length in ranges:
        announce(offset, length)
        ahead.append((offset, length))
        while sum(size for _, size in ahead) > ANNOUNCED_BYTES:
            yield ahead.popleft()
    yield from ahead


def _missing(root: NbdClient, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield reads, of whole clusters, that cover what is data and not in the overlay."""
    status = root.block_status_all(offset, length)
    data = _ranges(status[wire.BASE_ALLOCATION], offset, lambda flags: not flags & wire.STATE_ZERO)
    remote = _ranges(status[DEPTH_CONTEXT], offset, lambda depth: depth != DEPTH_LOCAL)
    end = 0
    for start, stop in _intersection(data, remote):
        at = max(end, start - start % CLUSTER_BYTES)
        end = max(end, min(-(-stop // CLUSTER_BYTES) * CLUSTER_BYTES, root.size_bytes))
        while at < end:
            size = min(READ_BYTES, end - at)
            yield at, size
            at += size


def _ranges(
    extents: list[tuple[int, int]], offset: int, is_wanted: Callable[[int], bool]
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the extents whose flags are wanted."""
    for length, flags in extents:
        if is_wanted(flags):
            yield offset, offset + length
        offset += length


def _intersection(
    left: Iterator[tuple[int, int]], right: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield what two sorted sequences of ranges have in common, sorted."""
    one, two = next(left, None), next(right, None)
    while one and two:
        start, stop = max(one[0], two[0]), min(one[1], two[1])
        if start < stop:
            yield start, stop
        if one[1] <= two[1]:
            one = next(left, None)
        else:
            two = next(right, None)
