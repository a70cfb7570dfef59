"""What the stored maps of one disk refer to: other objects with pages, and segments.

Owns: reading each page once. Must not know: catalogs, what follows from it. Used by the collector:
a segment that a map refers to is listed, too; nothing is worse than deleting it, so both are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from leeward.object_store.store import ObjectStore
from leeward.replica.checkpoint import (
    CheckpointHead,
    Page,
    StoredPage,
    read_checkpoint_head,
    read_pages,
)
from leeward.replica.layout import parse_replica_object
from leeward.replica.runs import FLAG, POSITION_SHIFT

_PAGES_AT_ONCE = 64


class StoredMaps:
    """The maps that a disk's log names. Used by one thread at a time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._heads: dict[str, CheckpointHead] = {}
        self._segments: dict[StoredPage, NDArray[np.uint64]] = {}

    def follow(self, names: Iterable[str]) -> None:
        """Have read exactly those of these objects that are maps. Raises: Unavailable,
        DataIntegrity."""
        maps = [name for name in names if (parse_replica_object(name) or ("",))[0] == "maps"]
        self._heads = {
            name: self._heads.get(name) or read_checkpoint_head(self._store, name) for name in maps
        }
        pages = {at: page for head in self._heads.values() for page, at in head.pages.items()}
        self._segments = {at: found for at, found in self._segments.items() if at in pages}
        missing = sorted(
            (at for at in pages if at not in self._segments),
            key=lambda at: (at.object_name, at.offset),
        )
        for first in range(0, len(missing), _PAGES_AT_ONCE):
            self._read(missing[first : first + _PAGES_AT_ONCE], pages)

    def _read(self, places: Sequence[StoredPage], pages: dict[StoredPage, int]) -> None:
        """Read pages, each by its number in the map; one number may lie in several places."""
        left = list(places)
        while left:
            wanted = {pages[at]: at for at in reversed(left)}
            for number, content in read_pages(self._store, wanted).items():
                self._segments[wanted[number]] = _segments_of(content)
            left = [at for at in left if at not in self._segments]

    def needed(self, names: Sequence[str]) -> set[str]:
        """Return those of the objects that one of the maps refers to."""
        objects = {at.object_name for head in self._heads.values() for at in head.pages.values()}
        referred = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._segments.values()]))
        parsed = {name: parse_replica_object(name) for name in names}
        ids = np.array([found[1] if found else 0 for found in parsed.values()], np.uint64)
        is_referred = np.isin(ids, referred).tolist()
        return {
            name
            for (name, found), is_segment_needed in zip(parsed.items(), is_referred, strict=True)
            if name in objects or (found and found[0] == "segments" and is_segment_needed)
        }


def _segments_of(page: Page) -> NDArray[np.uint64]:
    """Return the ids of the segments that a page refers to."""
    references = np.concatenate([page.entries[page.entries < FLAG], page.fragments.reshape(-1)])
    return np.setdiff1d(references >> POSITION_SHIFT, np.zeros(1, np.uint64))
