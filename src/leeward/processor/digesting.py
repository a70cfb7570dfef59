"""Answering a source that asks what the target holds: digest lists, a slice of work at a time.

Owns: which disks are still to be digested, and from where on. Must not know: the catalog, threads.
Called by item.py between two batches of cuts, so that recovery points go on becoming listed.

Not remembered across a restart: a source that gets no answer asks again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np

from leeward.core.errors import LeewardError
from leeward.core.units import CHUNK, MIB
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.processor.apply import DiskReplica
from leeward.replica.digests import (
    DigestList,
    digest_disk,
    digests_name,
    digests_prefix,
    encode_digests,
    parse_digests_position,
)
from leeward.replica.disk import PointDisk
from leeward.replica.manifest import CutManifest, DigestRequest
from leeward.replica.sealing import keys_of

SLICE_BYTES = 64 * MIB
"""Data digested between two batches of cuts: a fraction of a second."""
CACHE_BYTES = 16 * MIB
THREADS = 3


class Digesting:
    """What one item's source has asked for last. Used by one thread at a time."""

    def __init__(self, cache: ObjectStore, item_id: str) -> None:
        self._cache = cache
        self._item_id = item_id
        self._asked: CutManifest | None = None
        self._left: deque[DigestRequest] = deque()
        self._has_older = False
        self._log = get_logger(item=item_id)

    @property
    def is_due(self) -> bool:
        """Say whether there is something to be done by `work`."""
        return bool(self._left)

    @property
    def disks(self) -> list[str]:
        """The disks that are still to be digested."""
        return [request.disk for request in self._left]

    def take(self, manifest: CutManifest) -> None:
        """Note what a cut that has been applied asks for; what was asked before is void."""
        if manifest.digests:
            self._asked, self._left = manifest, deque(manifest.digests)
            self._has_older = True
            self._log.info("digests_asked_for", sequence=manifest.sequence)

    def forget(self) -> None:
        """Owe nothing: the source will ask again."""
        self._left.clear()

    def work(
        self, replicas: Mapping[str, DiskReplica], doubted: Mapping[str, frozenset[int]]
    ) -> None:
        """Publish the next list. A list that cannot be made ends the answer: it is asked again, or
        everything is sent.

        doubted: disk → ids of damaged segments, nothing of which may be called equal. A disk that
        is not in it is damaged in a way that allows no list.
        """
        asked = self._asked
        if not self._left or asked is None:
            return
        request = self._left.popleft()
        try:
            self._remove_older(asked)
            end = self._publish(asked, request, replicas[request.disk], doubted[request.disk])
        except (LeewardError, KeyError) as error:
            self._log.warning("digests_not_made", disk=request.disk, problem=str(error))
            self.forget()
            return
        if end * CHUNK < replicas[request.disk].size_bytes:
            self._left.appendleft(DigestRequest(disk=request.disk, first_chunk=end))

    def _publish(
        self,
        asked: CutManifest,
        request: DigestRequest,
        replica: DiskReplica,
        doubted: frozenset[int],
    ) -> int:
        with replica.reader(cache_bytes=CACHE_BYTES, threads=THREADS) as disk:
            made = _digested(asked, request, disk, keys_of(self._cache).digesting, doubted)
        name = digests_name(
            self._item_id, asked.epoch, asked.sequence, request.disk, request.first_chunk
        )
        self._cache.create(name, encode_digests(made))
        return made.end_chunk

    def _remove_older(self, asked: CutManifest) -> None:
        """Remove from the cache the answers to older questions, once."""
        if not self._has_older:
            return
        for name in self._cache.list(digests_prefix(self._item_id)):
            position = parse_digests_position(name)
            if position is not None and position < (asked.epoch, asked.sequence):
                self._cache.delete(name)
        self._has_older = False


def _digested(
    asked: CutManifest,
    request: DigestRequest,
    disk: PointDisk,
    key: bytes,
    doubted: frozenset[int],
) -> DigestList:
    segments = np.array(sorted(doubted), np.uint64)
    end, chunks, digests = digest_disk(
        disk,
        request.first_chunk,
        data_bytes_max=SLICE_BYTES,
        key=key,
        doubted=partial(disk.chunks_of_segments, segments) if doubted else None,
    )
    return DigestList(
        asked.item_id,
        request.disk,
        asked.epoch,
        asked.sequence,
        request.first_chunk,
        end,
        chunks,
        digests,
    )
