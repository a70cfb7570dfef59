"""Segments on their way from the cache to the target: verified, and those of whole blocks stored.

Owns: how many at once, for how long, and what has been stored already and is not in the log yet.
Must not know: catalogs, maps. Called by item.py with the cuts of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from leeward.core.errors import Unavailable
from leeward.object_store.store import ObjectStore
from leeward.processor.apply import (
    Fetched,
    Numbers,
    StoredSegment,
    check_extents,
    store_segment,
)
from leeward.processor.drain import ArrivedCut, Cache
from leeward.replica.manifest import SegmentRef, parse_segment_sequence
from leeward.replica.segment import BLOCKS

FETCH_SECONDS = 300.0
"""How long the segments of a batch may take before the step is to be made again."""

FetchedCut = tuple[ArrivedCut, list[Fetched]]
"""A cut and its segments, in the order in which they are to be applied."""


class Fetching:
    """One item's segments. Used by one thread at a time."""

    def __init__(
        self, cache: Cache, item_id: str, stores: Mapping[str, ObjectStore], *, copiers: int
    ) -> None:
        self._cache = cache
        self._item_id = item_id
        self._stores = stores
        self._pool = ThreadPoolExecutor(copiers, thread_name_prefix=f"copy-{item_id}")
        self._copied: dict[str, StoredSegment] = {}
        self._late: set[Future[Fetched]] = set()

    def close(self) -> None:
        """End the threads. Not to be called during a fetch."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def forget(self) -> None:
        """What was stored and not listed is given up."""
        self._copied.clear()

    def settled(self, numbers: Numbers) -> int:
        """Return the last number that has been used or given up: 0 while anything is being stored
        by a fetch that was given up. Ask this before `copied`."""
        self._late = {job for job in self._late if not job.done()}
        return 0 if self._late else numbers.taken

    @property
    def copied(self) -> frozenset[int]:
        """Ids of segments stored and not in the log yet."""
        return frozenset(stored.segment_id for stored in list(self._copied.values()))

    def listed(self, newest: tuple[int, int]) -> None:
        """The newest cut in the log has that position: the segments of all cuts up to it are there
        too, or never will be."""
        for name in list(self._copied):
            if (parse_segment_sequence(name) or newest) <= newest:
                self._copied.pop(name, None)

    def fetch(
        self, cuts: Sequence[ArrivedCut], numbers: Numbers
    ) -> tuple[list[FetchedCut], BaseException | None]:
        """Return the cuts whose segments have all been verified, up to the first that failed,
        and how that one failed. Segments of blocks are in the target then. Raises: Unavailable."""
        jobs = [
            [
                self._pool.submit(self._fetch_segment, cut, disk, ref, numbers)
                for disk, ref in cut.segments
            ]
            for cut in cuts
        ]
        late = wait([job for cut_jobs in jobs for job in cut_jobs], FETCH_SECONDS).not_done
        for job in late:
            job.cancel()
        self._late |= late
        if late:
            raise Unavailable(f"a store takes too long over {len(late)} segments")
        ready: list[FetchedCut] = []
        for cut, cut_jobs in zip(cuts, jobs, strict=True):
            failures = [error for job in cut_jobs if (error := job.exception()) is not None]
            if failures:
                return ready, failures[0]
            ready.append((cut, [job.result() for job in cut_jobs]))
        return ready, None

    def _fetch_segment(
        self, cut: ArrivedCut, disk: str, ref: SegmentRef, numbers: Numbers
    ) -> Fetched:
        """Verify one segment and, if it is of blocks, store it. Runs in the pool."""
        copied = self._copied.get(ref.name)
        if copied is not None:
            return copied  # a step that failed later had come this far
        segment = self._cache.read_segment(disk, cut.manifest.sequence, ref)
        check_extents(segment, cut.size_bytes(disk))
        if ref.unit != BLOCKS:
            return segment
        copied = store_segment(self._stores[disk], self._item_id, disk, numbers, segment)
        self._copied[ref.name] = copied
        return copied
