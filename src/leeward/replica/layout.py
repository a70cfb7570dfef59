"""Where the objects of a replica log lie in the target's stores, and how segments are numbered.

Owns: names and the bits of segment ids and map references. Must not know: what is in the objects.
FORMAT.md 1 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name

POSITION_BITS = 16
NUMBER_BITS = 28
CLAIM_BITS = 19
NUMBER_MAX = (1 << NUMBER_BITS) - 1
CLAIM_MAX = (1 << CLAIM_BITS) - 1
_CLAIMS_PER_EPOCH = 1024
FRAGMENTED = 1 << 63
"""Set in a chunk's map entry when its blocks come from more than one run."""


def claims_before(epoch: int) -> int:
    """Return the claim after which a catalog begins that is begun at that epoch: one of the same
    item that was lost with its store, at an earlier epoch, has given no name that it gives."""
    return min(max(epoch - 1, 0) * _CLAIMS_PER_EPOCH, CLAIM_MAX // 2)


def make_segment_id(claim: int, number: int) -> int:
    """Return the id of the segment an owner numbers `number` under its `claim` (both from 1).

    Raises: InvalidRequest when either has run out.
    """
    if not 1 <= claim <= CLAIM_MAX or not 0 <= number <= NUMBER_MAX:
        raise InvalidRequest(f"segment number {number} of claim {claim} is out of range")
    return claim << NUMBER_BITS | number


def check_segment_id(segment_id: int) -> int:
    """Return `segment_id` if it is one. Raises: InvalidRequest."""
    make_segment_id(segment_id >> NUMBER_BITS, segment_id & NUMBER_MAX)
    return segment_id


def segment_name(item_id: str, disk: str, segment_id: int) -> str:
    """Return the name of a segment in the store of its disk's replica."""
    claim, number = segment_id >> NUMBER_BITS, segment_id & NUMBER_MAX
    return f"{disk_prefix(item_id, disk)}segments/{claim:05x}-{number:07x}"


def checkpoint_name(item_id: str, disk: str, claim: int, number: int) -> str:
    """Return the name of the checkpoint an owner numbers `number` under its `claim`."""
    return f"{disk_prefix(item_id, disk)}maps/{claim:05x}-{number:07x}"


def disk_prefix(item_id: str, disk: str) -> str:
    """Return what the names of everything of a disk's replica begin with."""
    return f"{item_prefix(item_id)}disks/{check_name(disk, field='disk')}/"


def item_prefix(item_id: str) -> str:
    return f"items/{check_name(item_id, field='item')}/"


def record_name(item_id: str, version: int) -> str:
    """Return the name of a version of the item's catalog."""
    return f"{catalog_prefix(item_id)}{version:016d}"


def catalog_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}catalog/"


def snapshots_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}snapshots/"


def snapshot_name(item_id: str, version: int) -> str:
    """Return the name of the full state after a version of the item's catalog."""
    return f"{snapshots_prefix(item_id)}{version:016d}"


def floor_name(item_id: str, number: int) -> str:
    """Return the name of the item's floor of that number."""
    return f"{floors_prefix(item_id)}{number:08d}"


def floors_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}floors/"


def in_order_of_erasure(item_id: str, names: Iterable[str]) -> list[str]:
    """Return an item's names in the order in which they are to be deleted so that what is left
    tells, as long as anything can, whose it is: the catalog last, from its end on, and the
    snapshots after it, for a catalog whose beginning is gone is read from them."""
    catalog, snapshots = catalog_prefix(item_id), snapshots_prefix(item_id)
    found = sorted(names)
    last = [name for name in reversed(found) if name.startswith(catalog)]
    last += [name for name in found if name.startswith(snapshots)]
    return [*(name for name in found if name not in set(last)), *last]


def traces_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}boot/"


def trace_name(item_id: str, number: int) -> str:
    """Return the name of the item's boot trace of that number."""
    return f"{traces_prefix(item_id)}{number:08d}"


def parse_record_version(name: str) -> int:
    """Return the version in a catalog record's name, 0 if it is no record's name."""
    match = re.fullmatch(r".*/catalog/(\d{16})", name)
    return int(match[1]) if match else 0


def parse_snapshot_version(name: str) -> int:
    """Return the version in a snapshot's name, 0 if it is no snapshot's name."""
    match = re.fullmatch(r".*/snapshots/(\d{16})", name)
    return int(match[1]) if match else 0


def pins_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}pins/"


def pin_name(item_id: str, version: int, nonce: str, renewal: int) -> str:
    """Return the name of a reader's pin: of the catalog version it reads, renewed so often."""
    return f"{pins_prefix(item_id)}{version:016d}-{nonce}-{renewal:08d}"


def parse_pin(name: str) -> tuple[int, str, int] | None:
    """Return (version, nonce, renewal) of a pin's name, None if it is none."""
    match = re.fullmatch(r".*/pins/(\d{16})-([0-9a-f]{16})-(\d{8})", name)
    return (int(match[1]), match[2], int(match[3])) if match else None


def holds_prefix(item_id: str) -> str:
    return f"{item_prefix(item_id)}holds/"


def hold_name(item_id: str, point_id: str, nonce: str, renewal: int) -> str:
    """Return the name of a hold: of the recovery point that is held, renewed so often."""
    return f"{holds_prefix(item_id)}{point_id}-{nonce}-{renewal:08d}"


def parse_hold(name: str) -> tuple[str, str, int] | None:
    """Return (point, nonce, renewal) of a hold's name, None if it is none."""
    match = re.fullmatch(r".*/holds/(rp-\d{4,}-\d{8,})-([0-9a-f]{16})-(\d{8,})", name)
    return (match[1], match[2], int(match[3])) if match else None


def parse_replica_object(name: str) -> tuple[str, int] | None:
    """Return ("segments" or "maps", claim << NUMBER_BITS | number) of an object of a disk's
    replica, None if the name is none."""
    match = re.fullmatch(r".*/(segments|maps)/([0-9a-f]{5})-([0-9a-f]{7})", name)
    return (match[1], int(match[2], 16) << NUMBER_BITS | int(match[3], 16)) if match else None
