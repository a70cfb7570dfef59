"""Reading a recovery point from end to end through its export.

Owns: the order of reads and the digest they give. Must not know: who wants to know, where the bytes
are. What the export verifies while it reads is thereby verified whole.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from leeward.core.units import CHUNK, KIB, MIB
from leeward.model.drills import DiskDigest
from leeward.nbd import wire
from leeward.nbd.client import NbdClient

READ_BYTES = 512 * KIB
READS_IN_FLIGHT = 4
WINDOW_BYTES = 256 * MIB
SILENCE_SECONDS = 120.0
"""A store that is away for longer fails the reading."""
_ZEROS = bytes(CHUNK)


def digest_disks(socket: Path, disks: Sequence[str]) -> tuple[DiskDigest, ...]:
    """Return the digests of disks that an export serves, all of them read.

    Raises: Unavailable naming disk and offset where what is stored is damaged or cannot be reached.
    """
    return tuple(digest_disk(socket, disk) for disk in disks)


def digest_disk(socket: Path, disk: str) -> DiskDigest:
    """Return the digest of the export's disk, as DiskDigest says. Raises: as `digest_disks`."""
    digest, count = hashlib.sha256(), 0
    with NbdClient.connect(socket, disk, timeout_seconds=SILENCE_SECONDS) as client:
        for offset, data in _in_order(client):
            for at in range(0, len(data), CHUNK):
                chunk = data[at : at + CHUNK]
                if chunk != _ZEROS[: len(chunk)]:
                    digest.update((offset + at).to_bytes(8, "little"))
                    digest.update(chunk)
            count += len(data)
        return DiskDigest(
            disk=disk,
            size_bytes=client.size_bytes,
            bytes_read=count,
            sha256=digest.hexdigest(),
        )


def _in_order(client: NbdClient) -> Iterator[tuple[int, bytearray]]:
    """Yield (offset, bytes) of all that is data, in order, several reads in flight."""
    for window in range(0, client.size_bytes, WINDOW_BYTES):
        reads = list(_data(client, window, min(WINDOW_BYTES, client.size_bytes - window)))
        asked = deque(offset for offset, _ in reads)
        arrived: dict[int, bytearray] = {}
        for offset, data in client.pread_many(reads, depth=READS_IN_FLIGHT):
            arrived[offset] = data
            while asked and asked[0] in arrived:
                first = asked.popleft()
                yield first, arrived.pop(first)


def _data(client: NbdClient, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield reads of whole chunks that cover all data of the range, in order, none twice."""
    at, end = offset, offset
    for size, flags in client.block_status(offset, length):
        if not flags & wire.STATE_ZERO:
            start = max(end, at - at % CHUNK)
            end = min(-(-(at + size) // CHUNK) * CHUNK, client.size_bytes)
            yield from _pieces(start, end)
        at += size


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, stop, READ_BYTES):
        yield offset, min(READ_BYTES, stop - offset)
