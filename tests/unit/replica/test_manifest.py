"""Cut manifests and the envelope around JSON bodies."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.model.recovery import Consistency, FrozenTime, SharedMark
from leeward.object_store.memory import MemoryStore
from leeward.replica.envelope import (
    BODY_MAX,
    KIND_APPLIED,
    KIND_CUT,
    open_envelope,
    read_small_object,
    seal_envelope,
)
from leeward.replica.manifest import (
    AppliedMarker,
    CutManifest,
    DiskCut,
    SegmentRef,
    applied_name,
    cache_segment_name,
    cut_name,
    decode_applied,
    decode_manifest,
    encode_applied,
    encode_manifest,
    manifest_sha256,
    parse_sequence,
)

SEGMENT = SegmentRef(
    name=cache_segment_name("web", 1, 1, "system", 0, "ab12"), bytes=9, sha256="a" * 64, unit=4096
)
MANIFEST = CutManifest(
    item_id="web",
    epoch=1,
    sequence=1,
    parent_sha256="",
    consistency=Consistency.CRASH,
    time_ns=5,
    disks=(DiskCut(disk="system", size_bytes=1024, segments=(SEGMENT,)),),
    vm_config={"name": "web", "nested": {"list": [1, 2.5, None, "ü"]}},
    bytes_written=10,
    bytes_shipped=9,
)


def test_a_shared_point_names_its_item_and_is_a_point() -> None:
    mark = SharedMark(id="sp-1", group="cg-1", members=("db", "web"), time_ns=7, previous_ns=3)
    shared = replace(MANIFEST, shared=mark)
    assert decode_manifest(encode_manifest(shared)) == shared
    with pytest.raises(InvalidRequest, match="shares a point"):
        encode_manifest(replace(shared, consistency=Consistency.NONE))
    with pytest.raises(InvalidRequest, match="shares a point"):
        encode_manifest(replace(shared, shared=replace(mark, members=("db",))))


def test_only_an_application_consistent_point_says_how_long_the_guest_stood_still() -> None:
    frozen = replace(
        MANIFEST,
        consistency=Consistency.APPLICATION,
        frozen=FrozenTime(total_ns=120_000_000, ours_ns=300_000),
    )
    assert decode_manifest(encode_manifest(frozen)) == frozen
    for wrong in (
        replace(frozen, consistency=Consistency.CRASH),
        replace(frozen, frozen=FrozenTime(total_ns=1, ours_ns=2)),
    ):
        with pytest.raises(InvalidRequest, match="not frozen for so long"):
            encode_manifest(wrong)


def test_manifest_round_trip() -> None:
    data = encode_manifest(MANIFEST)
    assert decode_manifest(data) == MANIFEST
    assert manifest_sha256(data) == hashlib.sha256(data).hexdigest()
    second = replace(MANIFEST, sequence=2, parent_sha256=manifest_sha256(data))
    assert decode_manifest(encode_manifest(second)) == second


def test_names_sort_by_epoch_and_sequence() -> None:
    names = [cut_name("web", epoch, sequence) for epoch in (1, 10) for sequence in (2, 30)]
    assert names == sorted(names)
    assert [parse_sequence(name) for name in names] == [(1, 2), (1, 30), (10, 2), (10, 30)]
    assert parse_sequence(applied_name("web", 3, 4)) == (3, 4)
    for wrong in ("items/web/cuts/x", "items/web/catalog/0000000000000001", ""):
        with pytest.raises(InvalidRequest):
            parse_sequence(wrong)


def test_applied_marker_round_trip() -> None:
    marker = AppliedMarker(sequence=7, manifest_sha256="b" * 64)
    assert decode_applied(encode_applied(3, marker)) == (3, marker)


RULES: dict[str, CutManifest] = {
    "sequence 0": replace(MANIFEST, sequence=0),
    "parent of the first": replace(MANIFEST, parent_sha256="a" * 64),
    "no parent": replace(MANIFEST, sequence=2),
    "parent no digest": replace(MANIFEST, sequence=2, parent_sha256="x"),
    "negative": replace(MANIFEST, time_ns=-1),
    "huge": replace(MANIFEST, epoch=1 << 63),
    "disk twice": replace(MANIFEST, disks=MANIFEST.disks * 2),
    "item name": replace(MANIFEST, item_id="../x"),
    "disk name": replace(MANIFEST, disks=(replace(MANIFEST.disks[0], disk="A/B"),)),
    "disk size": replace(MANIFEST, disks=(replace(MANIFEST.disks[0], size_bytes=100),)),
    **{
        f"segment {field}": replace(
            MANIFEST,
            disks=(
                replace(MANIFEST.disks[0], segments=(replace(SEGMENT, **{field: value}),)),  # type: ignore[arg-type]
            ),
        )
        for field, value in {
            "name": "items/other/segments/x",
            "bytes": 1 << 40,
            "sha256": "A" * 64,
            "unit": 1024,
        }.items()
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_manifest_that_breaks_a_rule_is_neither_written_nor_read(rule: str) -> None:
    with pytest.raises(InvalidRequest):
        encode_manifest(RULES[rule])
    with pytest.raises(SegmentCorrupt):
        decode_manifest(seal_envelope(KIND_CUT, RULES[rule].epoch, RULES[rule]))


def test_manifest_of_another_epoch_than_its_envelope_is_corrupt() -> None:
    with pytest.raises(SegmentCorrupt, match="two epochs"):
        decode_manifest(seal_envelope(KIND_CUT, 2, MANIFEST))


def test_every_flipped_bit_and_every_truncation_is_corrupt() -> None:
    data = encode_manifest(MANIFEST)
    for at in range(len(data)):
        garbled = bytearray(data)
        garbled[at] ^= 1 << at % 8
        with pytest.raises(SegmentCorrupt):
            decode_manifest(garbled)
        with pytest.raises(SegmentCorrupt):
            decode_manifest(data[:at])
    with pytest.raises(SegmentCorrupt):
        decode_manifest(data + b"\0")


def _sealed(body: bytes) -> bytes:
    head = struct.pack("<4sHH4sIQ", b"LWEN", 1, 0, KIND_CUT, len(body), 1) + body
    return head + hashlib.sha256(head).digest()


BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"item_id":"\xff"}',
    "wrong type": b"[]",
    "no fields": b"{}",
    "deep": b'{"vm_config":' + b'{"x":' * 100_000,
}


@pytest.mark.parametrize("body", BODIES)
def test_body_that_cannot_be_parsed_is_corrupt(body: str) -> None:
    with pytest.raises(SegmentCorrupt):
        decode_manifest(_sealed(BODIES[body]))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "other kind": lambda data: seal_envelope(KIND_APPLIED, 1, MANIFEST),
    "newer version": lambda data: data[:4] + b"\x02\x00" + data[6:],
    "nothing": lambda data: b"",
    "huge length": lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_envelope_tells_what_is_wrong(change: str) -> None:
    with pytest.raises(SegmentCorrupt):
        open_envelope(CHANGES[change](encode_manifest(MANIFEST)), KIND_CUT)


def test_huge_object_is_refused_without_reading_it() -> None:
    class Huge(MemoryStore):
        def get_range(self, name: str, offset: int, length: int) -> bytes:
            assert length < BODY_MAX + 1000
            return bytes(length)

    with pytest.raises(SegmentCorrupt, match="too big"):
        read_small_object(Huge(), "x")
