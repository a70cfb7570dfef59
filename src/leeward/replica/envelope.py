"""The envelope around every object with a JSON body.

Owns: magic, version, kind, epoch, length and digest, so that a truncated or garbled object is told
apart from a good one before its body is parsed. Must not know: what the bodies say. FORMAT.md 2.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TypeVar

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest, SegmentCorrupt
from leeward.object_store.store import Buffer, ObjectStore
from leeward.replica.sealing import (
    AES_256_GCM,
    NO_KEYS,
    PLAIN,
    SEAL_BYTES,
    TAG_BYTES,
    Key,
    Keyring,
)

T = TypeVar("T")

MAGIC = b"LWEN"
VERSION = 1
BODY_MAX = 64 << 20
KIND_CUT = b"cut "
KIND_APPLIED = b"appl"
KIND_REFUSED = b"rfsd"
KIND_RECORD = b"ctlg"
KIND_SNAPSHOT = b"snap"
KIND_FLOOR = b"flor"
KIND_PIN = b"pin "
KIND_HOLD = b"hold"
KIND_TRACE = b"boot"

_HEADER = struct.Struct("<4sHBB4sIQ")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Envelope:
    """epoch: of the item the object belongs to. body: JSON, digest verified. key_id: of the key
    it was sealed with, "" if it was not."""

    epoch: int
    body: bytes
    key_id: str = ""


def seal_envelope(kind: bytes, epoch: int, value: object, key: Key | None = None) -> bytes:
    """Return the stored form of `value` (a dataclass), encrypted if there is a key.

    Raises: InvalidRequest if it is too big.
    """
    body = to_json(value)
    if len(body) > BODY_MAX - TAG_BYTES:
        raise InvalidRequest(f"an object's body of {len(body)} bytes is too big")
    length = len(body) + (TAG_BYTES if key else 0)
    mode = AES_256_GCM if key else PLAIN
    head = _HEADER.pack(MAGIC, VERSION, mode, 0, kind, length, epoch)
    if key:
        cipher = key.seal(head, [body])
        head += cipher.seal
        body = cipher.encrypt(0, body, head)
    head += body
    return head + hashlib.sha256(head).digest()


def open_envelope(data: Buffer, kind: bytes, keys: Keyring = NO_KEYS) -> Envelope:
    """Return what an object holds, its digest verified. Raises: SegmentCorrupt, KeyMissing."""
    view = memoryview(data).cast("B")
    if len(view) < _HEADER.size + _DIGEST_BYTES:
        raise SegmentCorrupt(f"an object of {len(view)} bytes is cut short")
    magic, version, mode, _, found, length, epoch = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise SegmentCorrupt("an object does not begin as it must", hint="it is not one of ours")
    if version != VERSION or mode not in (PLAIN, AES_256_GCM):
        raise SegmentCorrupt(f"an object has format version {version}", hint="update Leeward")
    if found != kind:
        raise SegmentCorrupt(f"an object is of kind {found!r} where {kind!r} belongs")
    start = _HEADER.size + (SEAL_BYTES if mode else 0)
    end = start + length
    if len(view) != end + _DIGEST_BYTES:
        raise SegmentCorrupt(f"an object of {end + _DIGEST_BYTES} bytes has {len(view)}")
    if hashlib.sha256(view[:end]).digest() != view[end:]:
        raise SegmentCorrupt("an object does not match its digest")
    if not mode:
        return Envelope(epoch, bytes(view[start:end]))
    cipher = keys.cipher(bytes(view[_HEADER.size : start]))
    return Envelope(epoch, cipher.decrypt(0, view[start:end], view[:start]), cipher.key_id)


def parse_envelope(
    data: Buffer, kind: bytes, body: type[T], keys: Keyring = NO_KEYS
) -> tuple[int, T]:
    """Return (epoch, body) of an object. Raises: SegmentCorrupt, KeyMissing."""
    envelope = open_envelope(data, kind, keys)
    try:
        return envelope.epoch, from_json(envelope.body, body)
    except (InvalidRequest, RecursionError) as error:
        raise SegmentCorrupt(f"an object's body cannot be read: {error}") from error


def read_small_object(store: ObjectStore, name: str) -> bytes:
    """Return an enveloped object's bytes, however big what lies there pretends to be.

    Raises: NotFound, SegmentCorrupt.
    """
    limit = _HEADER.size + SEAL_BYTES + BODY_MAX + _DIGEST_BYTES
    data = store.get_range(name, 0, limit + 1)
    if len(data) > limit:
        raise SegmentCorrupt(f"object {name} is too big")
    return data
