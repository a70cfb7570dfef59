"""A catalog's records as they are stored, read one after the other.

Owns: parsing them, and how many are asked for at once. Must not know: which of them count: a store
may hold some where versions had been deleted (floors.py), and catalog.py tells. FORMAT.md 6.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from leeward.core.errors import DataIntegrity, NotFound, SegmentCorrupt
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog_state import Record, State, follow
from leeward.replica.envelope import KIND_RECORD, parse_envelope, read_small_object
from leeward.replica.layout import record_name
from leeward.replica.sealing import Keyring, keys_of

_SINGLE_READS = 3
_WIDE_READS = 32
_READERS = 8


def read_on(store: ObjectStore, state: State) -> tuple[State, dict[int, str], DataIntegrity | None]:
    """Return the state after the versions that follow, the sha256 of each, and what is wrong with
    the one that could not be followed, if there is one: one request when there are none.

    Raises: KeyMissing, Unavailable.
    """
    start, shas, keys = state.version, dict[int, str](), keys_of(store)
    while True:
        width = 1 if state.version - start < _SINGLE_READS else _WIDE_READS
        try:
            found = _read_records(store, state.item_id, state.version + 1, width)
            for data in found:
                state = follow(state, parse_record(data, keys), hashlib.sha256(data).hexdigest())
                shas[state.version] = state.sha256
        except DataIntegrity as error:
            return state, shas, error
        if len(found) < width:
            return state, shas, None


def parse_record(data: bytes, keys: Keyring) -> Record:
    """Return what a record says. Raises: SegmentCorrupt, KeyMissing."""
    epoch, record = parse_envelope(data, KIND_RECORD, Record, keys)
    if epoch != record.epoch:
        raise SegmentCorrupt(f"catalog version {record.version} has two epochs")
    return record


def says_the_same(record: Record, other: Record) -> bool:
    """Return whether two records of one owner differ in their nonce only."""
    return replace(other, nonce=record.nonce) == record


def _read_records(store: ObjectStore, item_id: str, first: int, count: int) -> list[bytes]:
    """Return the stored bytes of `count` versions, or of those before the first missing one."""

    def read(version: int) -> bytes | None:
        try:
            return read_small_object(store, record_name(item_id, version))
        except NotFound:
            return None

    if count == 1:
        found = [read(first)]
    else:
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(read, range(first, first + count)))
    end = found.index(None) if None in found else count
    return [data for data in found[:end] if data is not None]
