"""The sweep: reads a live disk once, behind a tap that already receives every write.

Owns: which ranges to read, and at which place of the stream each read belongs. Must not know: how
cuts are built or sent. Reads from QEMU's own NBD server; its reads go into cut.py.

Initial replication and every resync that QEMU's own bitmap does not cover are this one mechanism.
A read counts from the journal position at which it began, a hole from the position at which its
block status was asked for: every write the tap has received after that wins over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from leeward.core.errors import HypervisorRefused, LeewardError, Unavailable
from leeward.core.units import CHUNK, KIB, MIB
from leeward.mobility.compare import changed_reads, chunk_ranges, zero_reads
from leeward.mobility.cut import SweepRead
from leeward.mobility.digest_feed import DigestFeed
from leeward.nbd.client import NbdClient
from leeward.nbd.wire import BASE_ALLOCATION, STATE_DIRTY, STATE_ZERO
from leeward.object_store.store import Buffer
from leeward.qemu.nbd_exports import ensure_export, ensure_nbd_server, remove_export
from leeward.qemu.session import QmpSession
from leeward.replica.digests import DigestList

REQUEST_BYTES = 120 * KIB
"""Asked for in one request: from 128 KiB on QEMU's allocator maps fresh memory for each, which
costs it more than the reading."""
READ_BYTES_MAX = 8 * REQUEST_BYTES
"""Of one read, whole chunks: requests that count from the same position."""
WINDOW_BYTES = 128 * MIB
"""Asked about in one block status request."""
COMPARED_BYTES = 32 * MIB
"""Compared with the target's digests in one piece: about a tenth of a second."""
DEPTH = 16
"""Requests in flight: as many as QEMU's server works on."""
SILENCE_SECONDS = 10.0
"""A disk that answers no read for this long is given up until the next attempt."""


class SweepKind(Enum):
    """FULL: all of every disk. CHANGED: what the bitmap generations have noted. NONE: nothing."""

    NONE = "none"
    FULL = "full"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepDisk:
    """A disk to be swept. index: its place in the tap's disk list. is_whole: no bitmap knows what
    is on it."""

    index: int
    disk: str
    node: str
    size_bytes: int
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class _Extent:
    offset: int
    length: int
    is_zero: bool


class Sweep:
    """One pass over all disks of a VM, in slices; at rest between two calls of `read`.

    Used by one thread. `bitmap` "" sweeps everything, else what that bitmap (on every disk) says.
    `digests`: read everything, but return only what differs from what they say the target holds;
    without, or when they fail, all that is read.
    """

    def __init__(
        self,
        session: QmpSession,
        socket_path: Path,
        disks: Sequence[SweepDisk],
        *,
        bitmap: str,
        digests: DigestFeed | None = None,
    ) -> None:
        self._session = session
        self._socket_path = socket_path
        self._disks = tuple(disks)
        self._bitmap = bitmap
        self.digests = digests
        self.is_waiting = False
        """True when the last `read` ended because the digests it needs are not there yet."""
        self._offsets = [0] * len(self._disks)
        self._client: tuple[int, NbdClient] | None = None
        self.bytes_done = 0
        """Data read or passed over, of `bytes_total`; holes do not count."""
        self.bytes_total = 0

    @property
    def offsets(self) -> tuple[int, ...]:
        """How far each disk has been read: all below is in what `read` has returned."""
        return tuple(self._offsets)

    @property
    def is_finished(self) -> bool:
        """True when all of every disk has been returned by `read`."""
        return all(
            offset >= disk.size_bytes
            for offset, disk in zip(self._offsets, self._disks, strict=True)
        )

    def open(self, offsets: Sequence[int]) -> None:
        """Have every disk exported, counted, and the sweep stand at `offsets`.

        Raises: Unavailable, HypervisorRefused.
        """
        self._remove_exports()
        ensure_nbd_server(self._session, self._socket_path)
        for disk in self._disks:
            ensure_export(
                self._session,
                _export(disk.disk),
                node=disk.node,
                name=_export(disk.disk),
                bitmap=self._bitmap_of(disk),
            )
        self._offsets = list(offsets)
        self.bytes_done = self.bytes_total = 0
        for place, disk in enumerate(self._disks):
            self._count(place, disk)

    def compare_with(self, digests: DigestFeed | None) -> None:
        """Have what comes next compared with these digests, or with none."""
        if self.digests is not None:
            self.digests.close()
        self.digests = digests

    def rewind(self, offsets: Sequence[int]) -> None:
        """Read again from `offsets`: what was read beyond them has been lost on its way."""
        self._offsets = list(offsets)

    def read(
        self, position_of: Callable[[], int], *, bytes_max: int, is_due: Callable[[], bool]
    ) -> list[SweepRead]:
        """Return the next reads, ending at about `bytes_max` of data or when `is_due`.

        position_of: the journal's position now. All returned reads began, and ended, within this
        call. After an error nothing of this call counts: the next one reads the same again.
        Raises: Unavailable.
        """
        offsets = list(self._offsets)
        reads: list[SweepRead] = []
        left, done, bytes_done, self.is_waiting = bytes_max, 0, 0, False
        try:
            for place, disk in enumerate(self._disks):
                while offsets[place] < disk.size_bytes and left > 0 and not (done and is_due()):
                    window = self._next_window(place, offsets[place], position_of, left)
                    if window is None:
                        break
                    reads += window.reads
                    offsets[place] = window.end
                    left -= sum(read.length for read in window.reads if read.data is not None)
                    done += 1
                    bytes_done += window.data_bytes
                if self.is_waiting:
                    break
        except LeewardError:
            self._disconnect()
            raise
        self._offsets = offsets
        self.bytes_done += bytes_done
        self.bytes_total = max(self.bytes_total, self.bytes_done)
        return reads

    def _next_window(
        self, place: int, start: int, position_of: Callable[[], int], bytes_max: int
    ) -> _Window | None:
        """Return what comes next of a disk; None while it is not known what the target holds."""
        disk, client = self._disks[place], self._connected(place)
        if self.digests is None:
            return self._window(client, disk, start, position_of, bytes_max)
        start = start // CHUNK * CHUNK
        digests = self.digests.list_at(disk.disk, start // CHUNK)
        if digests is not None:
            return self._compared(client, disk, start, position_of, bytes_max, digests)
        if self.digests.failure:
            self.compare_with(None)
            return self._window(client, disk, start, position_of, bytes_max)
        self.is_waiting = True
        return None

    def close(self) -> None:
        """Make the exports not exist, if QEMU still answers. Idempotent."""
        self.compare_with(None)
        self._remove_exports()

    def _remove_exports(self) -> None:
        self._disconnect()
        with suppress(Unavailable, HypervisorRefused):
            remove_exports(self._session, [disk.disk for disk in self._disks])

    def _window(
        self,
        client: NbdClient,
        disk: SweepDisk,
        start: int,
        position_of: Callable[[], int],
        bytes_max: int,
    ) -> _Window:
        """Return what one block status request told to read, up to about `bytes_max` of data."""
        length = min(WINDOW_BYTES, disk.size_bytes - start)
        asked_at = position_of()
        wanted: list[tuple[int, int]] = []
        reads: list[SweepRead] = []
        data_bytes, end = 0, start + length
        for extent in self._extents(client, disk, start, length):
            if extent.is_zero:
                reads.append(SweepRead(disk.index, extent.offset, extent.length, asked_at, None))
                continue
            take = min(extent.length, max(bytes_max - data_bytes, READ_BYTES_MAX))
            wanted += _pieces(extent.offset, take)
            data_bytes += take
            if data_bytes >= bytes_max:
                end = extent.offset + take
                break
        for offset, data, position in _read_many(client, wanted, position_of):
            reads.append(SweepRead(disk.index, offset, len(data), position, data))
        return _Window(reads, end, data_bytes)

    def _compared(
        self,
        client: NbdClient,
        disk: SweepDisk,
        start: int,
        position_of: Callable[[], int],
        bytes_max: int,
        digests: DigestList,
    ) -> _Window:
        """Return what one block status request told to read and the target does not hold."""
        end = min(start + WINDOW_BYTES, digests.end_chunk * CHUNK, disk.size_bytes)
        asked_at = position_of()
        extents = self._extents(client, disk, start, end - start)
        ranges, end = chunk_ranges(
            ((one.offset, one.length) for one in extents if not one.is_zero),
            start,
            end,
            bytes_max=max(min(bytes_max, COMPARED_BYTES), READ_BYTES_MAX),
        )
        reads = zero_reads(disk.index, ranges, start, end, asked_at, digests)
        wanted = [piece for low, high in ranges for piece in _pieces(low, high - low)]
        for offset, data, position in _read_many(client, wanted, position_of):
            reads += changed_reads(disk.index, offset, data, position, digests)
        return _Window(reads, end, sum(length for _, length in wanted))

    def _bitmap_of(self, disk: SweepDisk) -> str:
        return "" if disk.is_whole else self._bitmap

    def _extents(
        self, client: NbdClient, disk: SweepDisk, start: int, length: int
    ) -> Iterator[_Extent]:
        """Yield the parts of the range that are to be swept, in order."""
        status = client.block_status_all(start, length)
        allocation = _walk(start, status[BASE_ALLOCATION])
        if not self._bitmap_of(disk):
            for offset, count, flags in allocation:
                yield _Extent(offset, count, bool(flags & STATE_ZERO))
            return
        dirty = _walk(start, status[self._context])
        for low, high, flags, bits in _together(allocation, dirty):
            if bits & STATE_DIRTY:
                yield _Extent(low, high - low, bool(flags & STATE_ZERO))

    def _count(self, place: int, disk: SweepDisk) -> None:
        """Add the disk's data to `bytes_total`, what lies below its offset to `bytes_done`."""
        client = self._connected(place)
        for start in range(0, disk.size_bytes, WINDOW_BYTES):
            length = min(WINDOW_BYTES, disk.size_bytes - start)
            for extent in self._extents(client, disk, start, length):
                if not extent.is_zero:
                    before = max(0, min(extent.length, self._offsets[place] - extent.offset))
                    self.bytes_total += extent.length
                    self.bytes_done += before

    @property
    def _context(self) -> str:
        return f"qemu:dirty-bitmap:{self._bitmap}"

    def _connected(self, place: int) -> NbdClient:
        if self._client is not None and self._client[0] == place:
            return self._client[1]
        self._disconnect()
        has_bitmap = bool(self._bitmap_of(self._disks[place]))
        contexts = (BASE_ALLOCATION, self._context) if has_bitmap else (BASE_ALLOCATION,)
        client = NbdClient.connect(
            self._socket_path,
            _export(self._disks[place].disk),
            contexts,
            timeout_seconds=SILENCE_SECONDS,
        )
        self._client = (place, client)
        return client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client[1].close()
            self._client = None


def remove_exports(session: QmpSession, disks: Sequence[str]) -> None:
    """Make no sweep's exports exist, an earlier agent's neither: they hold on to the bitmap that
    they show. Raises: Unavailable, HypervisorRefused."""
    for disk in disks:
        remove_export(session, _export(disk))


@dataclass(frozen=True, slots=True)
class _Window:
    reads: list[SweepRead]
    end: int
    data_bytes: int


@dataclass(slots=True)
class _Read:
    """A read under way. position: the journal's when its first request was sent, or just before."""

    offset: int
    data: bytearray
    position: int
    requests_left: int


def _read_many(
    client: NbdClient, wanted: Sequence[tuple[int, int]], position_of: Callable[[], int]
) -> Iterator[tuple[int, Buffer, int]]:
    """Yield (offset, data, position at which its reading began) of the (offset, length) wanted."""
    waiting: dict[int, _Read] = {}

    def requests() -> Iterator[tuple[int, memoryview]]:
        for offset, count in wanted:
            starts = range(0, count, REQUEST_BYTES)
            read = _Read(offset, bytearray(count), position_of(), len(starts))
            view = memoryview(read.data)
            for start in starts:
                waiting[offset + start] = read
                yield offset + start, view[start : start + REQUEST_BYTES]

    for at, _ in client.read_many_into(requests(), depth=DEPTH):
        read = waiting.pop(at)
        read.requests_left -= 1
        if not read.requests_left:
            yield read.offset, read.data, read.position


def _export(disk: str) -> str:
    return f"sweep-{disk}"


def _pieces(offset: int, length: int) -> list[tuple[int, int]]:
    end = offset + length
    return [(at, min(READ_BYTES_MAX, end - at)) for at in range(offset, end, READ_BYTES_MAX)]


def _walk(start: int, extents: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return (offset, length, flags) of extents that follow one another from `start`."""
    walked = []
    for length, flags in extents:
        walked.append((start, length, flags))
        start += length
    return walked


def _together(
    one: Sequence[tuple[int, int, int]], two: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, end, flags of one, flags of two) where both lie, in one pass over the two."""
    left = right = 0
    while left < len(one) and right < len(two):
        (at, length, flags), (other, count, bits) = one[left], two[right]
        low, high = max(at, other), min(at + length, other + count)
        if low < high:
            yield low, high, flags, bits
        if at + length <= other + count:
            left += 1
        else:
            right += 1
