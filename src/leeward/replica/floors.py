"""Floors: below the newest one no version of a catalog counts, so that records can be deleted.

Owns: floor objects, and finding the newest. Must not know: what the catalog does with it, who
deletes. Floors are numbered without gaps, created once and never deleted: whoever has seen number n
sees with one request whether there is a newer one. FORMAT.md 6.
"""

from __future__ import annotations

from contextlib import suppress

from leeward.core.errors import NotFound, ObjectExists, SegmentCorrupt, Unavailable
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog_state import Floor
from leeward.replica.envelope import KIND_FLOOR, parse_envelope, read_small_object, seal_envelope
from leeward.replica.layout import floor_name
from leeward.replica.sealing import keys_of


def newest_floor(store: ObjectStore, item_id: str, known: Floor) -> Floor:
    """Return the item's newest floor: one request if that is `known`.

    Raises: SegmentCorrupt, KeyMissing, Unavailable.
    """
    while True:
        try:
            data = read_small_object(store, floor_name(item_id, known.number + 1))
        except NotFound:
            return known
        _, floor = parse_envelope(data, KIND_FLOOR, Floor, keys_of(store))
        _check(floor, item_id, known)
        known = floor


def create_floor(store: ObjectStore, epoch: int, floor: Floor) -> bool:
    """Make it the item's newest floor, durably; False if another one has its number already.

    Raises: Unavailable: unknown whether it is there.
    """
    name = floor_name(floor.item_id, floor.number)
    data = seal_envelope(KIND_FLOOR, epoch, floor, keys_of(store).writing)
    with suppress(Unavailable):
        return _create(store, name, data)
    return _create(store, name, data)  # what is there by now is there after a power cut, too


def _create(store: ObjectStore, name: str, data: bytes) -> bool:
    try:
        store.create(name, data)
    except ObjectExists as error:
        try:
            return read_small_object(store, name) == data
        except NotFound:
            raise Unavailable(f"the floor of a catalog is being erased: {error.message}") from error
    return True


def _check(floor: Floor, item_id: str, before: Floor) -> None:
    """Return if the floor may follow the one before it. Raises: SegmentCorrupt."""
    is_next = floor.item_id == item_id and floor.number == before.number + 1
    if not is_next or floor.version <= before.version:
        raise SegmentCorrupt(f"floor {before.number + 1} of item {item_id} does not follow")
    if not 0 <= floor.previous < floor.version:
        raise SegmentCorrupt(f"floor {floor.number} of item {item_id} says what cannot be")
