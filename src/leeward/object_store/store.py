"""The object store port.

Owns: what every stage may ask of a store. Must not know: what the objects mean.
Sits under everything that keeps bytes; each backend passes tests/contracts/test_object_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from leeward.core.errors import ObjectExists

Buffer = bytes | bytearray | memoryview


def pieces(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return what `create` was given as flat byte views, without a copy."""
    given = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(piece).cast("B") for piece in given if len(piece)]


def join(data: Buffer | Sequence[Buffer]) -> bytes:
    """Return what `create` was given as one bytes object."""
    return data if isinstance(data, bytes) else b"".join(pieces(data))


class ObjectStore(Protocol):
    """A flat set of immutable named objects. Thread-safe.

    Names are "/"-separated parts of [A-Za-z0-9._-], at most 512 characters and 255 in a part, never
    with a part "." or ".."; any other name is InvalidRequest. A name is never another one's folder
    ("a" beside "a/b"): a backend may refuse that. Every method raises Unavailable when the store
    cannot be reached or is full or its root is gone; that is never reported as a missing object or
    an empty listing.
    """

    @property
    def url(self) -> str:
        """The URL that `open_store` opens to this same store."""

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Make the object exist with exactly these bytes, durably, visible whole or not at all.

        data: one buffer, or several to be stored one after the other.
        Raises: ObjectExists if the name exists, durably (with whatever content). Settle a lost
        reply by reading back, and by asking once more if it has to be durable: after Unavailable an
        object may be visible that is not. Never overwrites.
        """

    def get(self, name: str) -> bytes:
        """Return the object's bytes. Raises: NotFound."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return [offset, offset + length) of the object; shorter only where the object ends.

        Raises: NotFound.
        """

    def size(self, name: str) -> int:
        """Return the object's length in bytes. Raises: NotFound."""

    def list(self, prefix: str) -> list[str]:
        """Return every name that starts with `prefix`, sorted. `prefix` is "" or ends in "/"."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the length in bytes of every object whose name starts with `prefix`, by name, by
        as many requests as `list` needs. `prefix` is "" or ends in "/"."""

    def delete(self, name: str) -> None:
        """Make the object not exist. Idempotent: deleting what is not there is no error."""


def forget_copies(store: ObjectStore, name: str) -> bool:
    """Have the object's next read come from the store itself, not from a copy kept nearer to the
    reader; say whether there can be copies at all. For who has found what it read to be damaged."""
    forget = getattr(store, "forget", None)
    if forget is None:
        return False
    forget(name)
    return True


def create_same(store: ObjectStore, name: str, data: Buffer | Sequence[Buffer]) -> None:
    """Make the object exist with these bytes; that it exists with these bytes already is success.

    For names that only one writer uses, where a repeated create settles a lost reply.
    Raises: ObjectExists if it holds anything else.
    """
    try:
        store.create(name, data)
    except ObjectExists:
        if store.get(name) != join(data):
            raise
