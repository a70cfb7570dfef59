"""Manifests, answers, catalogs and checkpoints made of anything: a typed error, soon, and small."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.core.errors import DataIntegrity, KeyMissing, SegmentCorrupt
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.replica.block_map import BlockMap, open_checkpoint
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk, Floor
from leeward.replica.digests import decode_digests
from leeward.replica.envelope import (
    KIND_APPLIED,
    KIND_CUT,
    KIND_FLOOR,
    KIND_RECORD,
    KIND_REFUSED,
    open_envelope,
    seal_envelope,
)
from leeward.replica.floors import newest_floor
from leeward.replica.layout import floor_name, record_name
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    DiskCut,
    decode_applied,
    decode_manifest,
    decode_refused,
    encode_applied,
    encode_manifest,
)
from leeward.replica.sealing import Key, KeyedStore, keyring
from leeward.replica.segment import EXTENT_DTYPE

KEY = Key(b"k" * 32)
KEYS = keyring([KEY], KEY)
BYTES_MAX = 64 << 20
MANIFEST = CutManifest(
    item_id="web",
    epoch=1,
    sequence=1,
    parent_sha256="",
    consistency=Consistency.CRASH,
    time_ns=1,
    disks=(DiskCut(disk="system", size_bytes=1 << 30),),
    vm_config={"vm": "web-1"},
)
DECODERS: dict[bytes, Callable[[bytes], object]] = {
    KIND_CUT: lambda data: decode_manifest(data, KEYS),
    KIND_APPLIED: lambda data: decode_applied(data, KEYS),
    KIND_REFUSED: lambda data: decode_refused(data, KEYS),
    KIND_RECORD: lambda data: _read_catalog(data),
    KIND_FLOOR: lambda data: _read_floor(data),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


def _read_catalog(data: bytes) -> object:
    store = MemoryStore()
    store.create(record_name("web", 1), data)
    return Catalog.open(KeyedStore(store, KEYS), "web").points


def _read_floor(data: bytes) -> object:
    store = MemoryStore()
    store.create(floor_name("web", 1), data)
    return newest_floor(KeyedStore(store, KEYS), "web", Floor())


def _resealed(kind: bytes, body: bytes) -> bytes:
    head = struct.pack("<4sHBB4sIQ", b"LWEN", 1, 0, 0, kind, len(body), 1) + body
    return head + hashlib.sha256(head).digest()


def _catalog_record() -> bytes:
    store = MemoryStore()
    catalog = Catalog.open(store, "web")
    catalog.take_over(1, disk_urls={"system": "memory://x"})
    disk = AppliedDisk(disk="system", size_bytes=1 << 20, segments=(1 << 28 | 1,))
    catalog.append_cuts(
        [
            AppliedCut(
                epoch=1,
                sequence=1,
                manifest_sha256="0" * 64,
                time_ns=1,
                consistency=Consistency.CRASH,
                disks=(disk,),
            )
        ]
    )
    return store.get(record_name("web", 2))


GOOD = {
    KIND_CUT: encode_manifest(MANIFEST),
    KIND_APPLIED: encode_applied(1, AppliedMarker(sequence=1, manifest_sha256="0" * 64)),
    KIND_RECORD: _catalog_record(),
    KIND_FLOOR: seal_envelope(
        KIND_FLOOR, 1, Floor(item_id="web", number=1, version=9, sha256="0" * 64)
    ),
}


@settings(deadline=None, max_examples=250)
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200), st.integers(0, 2))
def test_anything_in_an_envelope_is_typed(kind: bytes, body: bytes, trick: int) -> None:
    data = [body, b"LWEN\x01\x00" + body, _resealed(kind, body)][trick]
    with pytest.raises((SegmentCorrupt, KeyMissing)):
        DECODERS[kind](data)


@settings(deadline=None, max_examples=400)
@given(st.data(), st.sampled_from(sorted(GOOD)))
def test_a_body_with_one_wrong_value_is_typed_or_good(data: st.DataObject, kind: bytes) -> None:
    """Digests fit: the body itself must be checked, at any depth."""
    body = json.loads(open_envelope(GOOD[kind], kind).body)
    place = body
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        deeper = place[key]
        if not (isinstance(deeper, dict | list) and deeper and data.draw(st.booleans())):
            break
        place = deeper
    place[key] = data.draw(values)
    text = json.dumps(body, allow_nan=True).encode()
    with suppress(SegmentCorrupt, KeyMissing):
        DECODERS[kind](_resealed(kind, text))


@pytest.mark.parametrize("depth", [100, 200_000])
def test_a_body_nested_without_end_is_typed(depth: int) -> None:
    for kind, decode in DECODERS.items():
        with pytest.raises(SegmentCorrupt):
            decode(_resealed(kind, b'{"vm_config":' * depth))
        with pytest.raises(SegmentCorrupt):
            decode(_resealed(kind, b"[" * depth + b"]" * depth))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_garbled_sealed_envelope_is_typed(data: st.DataObject) -> None:
    good = seal_envelope(KIND_CUT, 1, MANIFEST, KEY)
    garbled = bytearray(good)
    at = data.draw(st.integers(0, len(good) - 33))
    garbled[at] ^= 1 << data.draw(st.integers(0, 7))
    garbled[-32:] = hashlib.sha256(garbled[:-32]).digest()  # nobody's mistake: an attack
    with pytest.raises((SegmentCorrupt, KeyMissing)):
        decode_manifest(bytes(garbled), KEYS)


def _checkpoint(key: Key | None) -> bytes:
    store = MemoryStore()
    ring = keyring([KEY], key)
    block_map = BlockMap("web", "data", 3 << 30)
    for number in range(3):
        block_map.apply(1 << 28 | number + 1, np.array([(number << 18, 5, 0)], EXTENT_DTYPE))
    block_map.write_checkpoint(KeyedStore(store, ring), "map", epoch=1)
    return store.get("map")


CHECKPOINTS = {None: _checkpoint(None), KEY: _checkpoint(KEY)}


def _open_map(data: bytes) -> None:
    """Everything that a reader does with a checkpoint, in bounded memory."""
    store = MemoryStore()
    store.create("map", data)
    block_map = open_checkpoint(KeyedStore(store, KEYS), "map")
    block_map.resolve(0, min(block_map.block_count, 1 << 20))


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from([None, KEY]), st.booleans())
def test_a_garbled_checkpoint_is_typed_or_harmless(
    data: st.DataObject, key: Key | None, is_attack: bool
) -> None:
    """is_attack: the head's checksum was made to fit."""
    good = CHECKPOINTS[key]
    head_bytes = struct.unpack_from("<I", good, 12)[0]
    garbled = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, head_bytes - 5))
        garbled[at] = data.draw(st.integers(0, 255))
    if is_attack:
        struct.pack_into("<I", garbled, head_bytes - 4, zlib.crc32(garbled[: head_bytes - 4]))
    tracemalloc.start()
    try:
        with suppress(DataIntegrity, KeyMissing):
            _open_map(bytes(garbled))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BYTES_MAX


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_no_checkpoint_and_no_digests(noise: bytes, with_magic: bool) -> None:
    with pytest.raises((SegmentCorrupt, KeyMissing)):
        _open_map(b"LWCK\x01\x00" + noise if with_magic else noise)
    with pytest.raises(SegmentCorrupt):
        decode_digests(b"LWDG\x01\x00" + noise if with_magic else noise)
