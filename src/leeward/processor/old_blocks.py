"""What single blocks of a disk's replica hold now, for merging sectors into them.

Owns: reading them frame by frame in bounded memory. Must not know: cuts, the catalog.
Beside apply.py; PointDisk reads ranges, this reads scattered blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leeward.core.errors import DataIntegrity
from leeward.core.units import MIB
from leeward.object_store.store import ObjectStore
from leeward.replica.block_map import BlockMap
from leeward.replica.frames import FrameKey, FrameReader
from leeward.replica.layout import segment_name
from leeward.replica.segment import BLOCKS, FRAME_BYTES

CACHE_BYTES = 16 * MIB
TABLE_CACHE_BYTES = 2 * MIB
THREADS = 4
FRAMES_AT_ONCE = 128
_FRAME_BLOCKS = FRAME_BYTES // BLOCKS


def nothing_forgiven(segment_id: int) -> bool:
    return False


class BlockReader:
    """Reads single blocks of one disk's segments."""

    def __init__(
        self,
        store: ObjectStore,
        item_id: str,
        disk: str,
        *,
        is_forgiven: Callable[[int], bool] = nothing_forgiven,
    ) -> None:
        """is_forgiven: segments that read as zeros where they are damaged: the source is sending
        again what they held."""
        self._is_forgiven = is_forgiven
        self._frames = FrameReader(
            store,
            lambda segment_id: segment_name(item_id, disk, segment_id),
            lambda table: (table.header.item_id, table.header.disk) == (item_id, disk),
            cache_bytes=CACHE_BYTES,
            table_cache_bytes=TABLE_CACHE_BYTES,
            threads=THREADS,
        )

    def close(self) -> None:
        self._frames.close()

    def read(
        self, segments: NDArray[np.uint64], positions: NDArray[np.uint32]
    ) -> NDArray[np.uint8]:
        """Return the bytes of the blocks at these places, one row each, free to be changed; those
        of segment 0 are zeros. No frame is read twice, and each is kept for a moment only.

        Raises: ObjectMissing, SegmentCorrupt, Unavailable.
        """
        content = np.zeros((segments.size, BLOCKS), np.uint8)
        stored = np.flatnonzero(segments)
        places = np.stack((segments[stored], positions[stored] // _FRAME_BLOCKS), axis=1)
        keys, key_of = np.unique(places, axis=0, return_inverse=True)
        order = np.argsort(key_of.reshape(-1), kind="stable")
        rows, keys_of_rows = stored[order], key_of.reshape(-1)[order]
        for first in range(0, len(keys), FRAMES_AT_ONCE):
            wanted = [(segment, frame) for segment, frame in keys[first:][:FRAMES_AT_ONCE].tolist()]
            frames = self._read_frames(wanted)
            low, high = np.searchsorted(keys_of_rows, (first, first + FRAMES_AT_ONCE))
            for at in range(int(low), int(high)):
                row, frame = rows[at], frames[wanted[keys_of_rows[at] - first]]
                offset = int(positions[row]) % _FRAME_BLOCKS * BLOCKS
                content[row] = np.frombuffer(frame, np.uint8, BLOCKS, offset)
        return content

    def _read_frames(self, wanted: list[FrameKey]) -> dict[FrameKey, bytes]:
        try:
            return self._frames.read(wanted)
        except DataIntegrity:
            if self._is_forgiven is nothing_forgiven:
                raise
        found: dict[FrameKey, bytes] = {}
        for key in wanted:
            try:
                found.update(self._frames.read([key]))
            except DataIntegrity:
                if not self._is_forgiven(key[0]):
                    raise
                found[key] = bytes(FRAME_BYTES)
        return found


class OldBlocks:
    """Reads blocks through a map that its owner goes on changing between reads."""

    def __init__(
        self,
        store: ObjectStore,
        block_map: BlockMap,
        *,
        is_forgiven: Callable[[int], bool] = nothing_forgiven,
    ) -> None:
        """is_forgiven: as BlockReader has it."""
        self._map = block_map
        self._reader = BlockReader(
            store, block_map.item_id, block_map.disk, is_forgiven=is_forgiven
        )

    def close(self) -> None:
        self._reader.close()

    def read(self, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the blocks' bytes, one row each, free to be changed. Raises: as BlockReader."""
        return self._reader.read(*self._map.lookup(blocks))
