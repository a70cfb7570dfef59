"""The 16 references each of those chunks of a block map that are not one run.

Owns: their slots, free or used. Must not know: which chunk has which slot. Under BlockMap's lock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leeward.replica.checkpoint import CHUNK_BLOCKS
from leeward.replica.runs import FLAG


class FragmentPool:
    """Rows of 16 references, named by map entries: FLAG + slot."""

    def __init__(self) -> None:
        self._rows = np.zeros((0, CHUNK_BLOCKS), np.uint64)
        self._free = np.zeros(0, np.int64)
        self._free_count = 0

    @property
    def memory_bytes(self) -> int:
        return self._rows.nbytes + self._free.nbytes

    def get(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return a copy of the rows of fragmented `entries`, (count, 16)."""
        rows: NDArray[np.uint64] = self._rows[(entries - FLAG).astype(np.int64)]
        return rows

    def get_blocks(
        self, entries: NDArray[np.uint64], within: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """Return of each fragmented entry's row the reference at `within`."""
        found: NDArray[np.uint64] = self._rows[(entries - FLAG).astype(np.int64), within]
        return found

    def put(self, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Keep `rows` in free slots and return the entries that name them."""
        count = len(rows)
        if count > self._free_count:
            self._extend(count - self._free_count)
        self._free_count -= count
        slots = self._free[self._free_count : self._free_count + count]
        self._rows[slots] = rows
        return slots.astype(np.uint64) + FLAG

    def release(self, entries: NDArray[np.uint64]) -> None:
        """Free the slots of those of `entries` that are fragmented; each at most once."""
        slots = entries[entries >= FLAG] - FLAG
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)

    def _extend(self, missing: int) -> None:
        used = len(self._rows)
        capacity = max(used * 3 // 2, used + missing, 64)
        rows = np.zeros((capacity, CHUNK_BLOCKS), np.uint64)
        rows[:used] = self._rows
        free = np.zeros(capacity, np.int64)
        free[: self._free_count] = self._free[: self._free_count]
        free[self._free_count : self._free_count + capacity - used] = np.arange(used, capacity)
        self._rows, self._free = rows, free
        self._free_count += capacity - used
