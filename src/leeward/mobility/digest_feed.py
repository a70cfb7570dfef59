"""What the target holds, as it tells: digest lists out of the cache, ahead of the sweep.

Owns: fetching them in a thread of its own, in the order of the disks, and giving up when the target
does not answer. Must not know: QEMU, how a sweep reads. Between the cache and sweep.py.

A list asked for by a cut describes the disk at that cut or later. What the sweep reads equal to it
needs no sending: all that was written since the taps were attached is in the stream anyway, and no
cut counts before the sweep has ended, which is after the target made the list.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError, NotFound, SegmentCorrupt, Unavailable
from leeward.core.units import CHUNK
from leeward.mobility.cut import CutDisk
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.replica.digests import LIST_BYTES_MAX, DigestList, decode_digests, digests_name
from leeward.replica.manifest import DigestRequest
from leeward.replica.sealing import keys_of

LOOK_SECONDS_MIN = 0.05
LOOK_SECONDS_MAX = 1.0
AHEAD_MAX = 4
"""Lists fetched and not used yet."""


class DigestFeed:
    """The answer to one question. Made and used by the replicator's thread; closed by it too."""

    def __init__(
        self,
        open_store: Callable[[], ObjectStore],
        item_id: str,
        epoch: int,
        disks: Sequence[CutDisk],
        offsets: Sequence[int],
        *,
        patience_seconds: float,
        clock: Clock,
    ) -> None:
        """offsets: of each disk, from where on its digests are wanted. patience_seconds: how long
        a target that publishes nothing is waited for."""
        self._patience_seconds = patience_seconds
        self._open_store = open_store
        self._item_id = item_id
        self._epoch = epoch
        self._clock = clock
        self._ends = {disk.name: -(-disk.size_bytes // CHUNK) for disk in disks}
        self.requests = tuple(
            DigestRequest(disk=disk.name, first_chunk=offset // CHUNK)
            for disk, offset in zip(disks, offsets, strict=True)
            if offset < disk.size_bytes
        )
        """To be put into the next cut."""
        self._sequence = 0
        self._lists: queue.Queue[DigestList] = queue.Queue(AHEAD_MAX)
        self._current: DigestList | None = None
        self._failure = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._log = get_logger(item=item_id, epoch=epoch)

    @property
    def failure(self) -> str:
        """Why no digests come any more, "" while they may."""
        return self._failure if self._lists.empty() else ""

    def begin(self, sequence: int) -> None:
        """The question is in the cache, in that cut: fetch the answer."""
        if not self._sequence:
            self._sequence = sequence
            self._thread.start()

    def list_at(self, disk: str, chunk: int) -> DigestList | None:
        """Return the list that covers that chunk, None while it is not there. Chunks are asked for
        in ascending order, disks in theirs."""
        while self._current is None or not _covers(self._current, disk, chunk):
            try:
                self._current = self._lists.get_nowait()
            except queue.Empty:
                return None
        return self._current

    def close(self) -> None:
        """Fetch no more. Idempotent; does not wait for a request under way."""
        self._ending.set()

    # The thread

    def _run(self) -> None:
        try:
            store = self._open_store()
            for request in self.requests:
                chunk = request.first_chunk
                while chunk < self._ends[request.disk] and not self._ending.is_set():
                    chunk = self._fetch(store, request.disk, chunk)
            self._failure = "all digests have been used"
        except LeewardError as error:
            self._failure = str(error)
            self._log.warning("digests_given_up", problem=str(error))
        except Exception as error:  # a sweep that waits for ever would be worse
            self._failure = f"internal error: {error}"
            self._log.exception("digests_given_up")

    def _fetch(self, store: ObjectStore, disk: str, chunk: int) -> int:
        """Pass on the list that begins at `chunk`; return where the next one does."""
        name = digests_name(self._item_id, self._epoch, self._sequence, disk, chunk)
        data = self._await(store, name)
        if data is None:
            return chunk
        found = replace(decode_digests(data), key=keys_of(store).digesting)
        said = (found.item_id, found.disk, found.epoch, found.sequence, found.first_chunk)
        if said != (self._item_id, disk, self._epoch, self._sequence, chunk):
            raise SegmentCorrupt(f"{name} holds other digests than its name says")
        if found.end_chunk <= chunk:
            raise SegmentCorrupt(f"{name} says nothing")
        while not self._ending.is_set():
            with suppress(queue.Full):
                self._lists.put(found, timeout=0.2)
                break
        with suppress(LeewardError):  # else the target removes it, with its next answer
            store.delete(name)
        return found.end_chunk

    def _await(self, store: ObjectStore, name: str) -> bytes | None:
        """Return the object once it is there; None when the feed ends. Raises: Unavailable."""
        pause = LOOK_SECONDS_MIN
        deadline = self._clock.monotonic() + self._patience_seconds
        problem = "the target does not answer"
        while not self._ending.wait(pause):
            try:
                return store.get_range(name, 0, LIST_BYTES_MAX + 1)
            except NotFound:
                problem = "the target does not answer"
            except Unavailable as error:
                problem = str(error)
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"what the target holds is not known: {problem}")
            pause = min(2 * pause, LOOK_SECONDS_MAX)
        return None


def _covers(digests: DigestList, disk: str, chunk: int) -> bool:
    return digests.disk == disk and digests.first_chunk <= chunk < digests.end_chunk
