"""All data of a recovery point's disk written to a file: many reads and writes under way at once.

Owns: how the disk is cut up, who writes what, when the kernel is told to begin with the disk.
Must not know: where the file is, what it is called. Under offline.py.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from leeward.core.units import GIB, MIB
from leeward.export.patience import Patience
from leeward.replica.disk import PointDisk

PIECE_BYTES = MIB
NEAR_WORKERS = 4
FAR_WORKERS = 16
"""A piece is fetched, unpacked and written by one thread, which waits for a processor where the
store is a directory of this machine, and for the store where it is not."""
VECTORS_MAX = 512
PATIENCE_SECONDS = 120.0
"""How long a store may be away before copying fails."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after every piece; the disk's size counts, holes too."""


def copy_data(source: PointDisk, target: int, progress: Progress, *, workers: int) -> None:
    """Make the file `target` (a descriptor, empty) as long as the disk, all its data in its place.

    workers: pieces under way at once.

    Raises: OSError when it cannot be written; Unavailable; DataIntegrity.
    """
    os.ftruncate(target, source.size_bytes)
    patience = Patience(PATIENCE_SECONDS)
    pending: deque[tuple[int, Future[None]]] = deque()

    def wait_oldest() -> None:
        offset, done = pending.popleft()
        done.result()
        progress(offset, source.size_bytes)

    with ThreadPoolExecutor(workers, "copy") as executor:
        try:
            for offset, length in _data_pieces(source, patience):
                done = executor.submit(_copy_piece, source, target, patience, offset, length)
                pending.append((offset, done))
                if len(pending) > workers:
                    wait_oldest()
            while pending:
                wait_oldest()
        finally:
            patience.give_up()
    progress(source.size_bytes, source.size_bytes)


def _copy_piece(
    source: PointDisk, target: int, patience: Patience, offset: int, length: int
) -> None:
    views: list[memoryview] = []
    start = end = offset
    for at, view in patience.wait_for(partial(source.read_pieces, offset, length)):
        if at != end or len(views) == VECTORS_MAX:
            _write(target, views, start)
            views, start = [], at
        views.append(view)
        end = at + len(view)
    _write(target, views, start)
    # Has the kernel begin to write at once, not when the last of gigabytes is waited for.
    os.posix_fadvise(target, offset, length, os.POSIX_FADV_DONTNEED)


def _data_pieces(source: PointDisk, patience: Patience) -> Iterator[tuple[int, int]]:
    """Yield the aligned pieces of the disk that hold any data, which may have holes in them."""
    end = 0
    for start in range(0, source.size_bytes, GIB):
        at = start
        extents = patience.wait_for(
            partial(source.extents, start, min(GIB, source.size_bytes - start))
        )
        for size, is_data in extents:
            if is_data:
                for piece in range(at - at % PIECE_BYTES, at + size, PIECE_BYTES):
                    if piece >= end:
                        end = min(piece + PIECE_BYTES, source.size_bytes)
                        yield piece, end - piece
            at += size


def _write(target: int, views: list[memoryview], offset: int) -> None:
    """Write the views, one after the other, at `offset`."""
    while views:
        count = os.pwritev(target, views, offset)
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]
