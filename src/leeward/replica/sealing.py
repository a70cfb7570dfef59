"""Encryption of stored objects: keys by id, and the cipher of one object's parts.

Owns: how keys are made from the vault's, and that no two messages ever share key and nonce. Must
not know: formats, where keys come from. The only home of `cryptography`. FORMAT.md 2.

Every object has a key of its own, made from the vault's key and a salt. The salt is a keyed digest
of all that the object will hold: different contents have different salts, the same content sealed
again (a retry, a second uploader) gives the same bytes. No counter and no randomness can repeat.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from leeward.core.errors import InvalidRequest, KeyMissing, SegmentCorrupt
from leeward.object_store.store import Buffer, ObjectStore

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
KEY_ID_BYTES = 8
SALT_BYTES = 32
SEAL_BYTES = KEY_ID_BYTES + SALT_BYTES
TAG_BYTES = 16
"""What a part is longer by when it is sealed."""

Seal = bytes
"""Key id and salt, SEAL_BYTES long; empty where nothing is encrypted."""

PLAIN = 0
AES_256_GCM = 1
"""The two values of a header's encryption field."""


class Key:
    """A vault's key. Its id is made from it: a wrong key never passes for the right one."""

    __slots__ = ("_object", "_salt", "digesting", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise InvalidRequest(f"a key has {KEY_BYTES} bytes", field="key")
        self.id = _derive(secret, b"leeward key id")[:KEY_ID_BYTES].hex()
        self._object = _derive(secret, b"leeward object key")
        self._salt = _derive(secret, b"leeward salt")
        self.digesting = _derive(secret, b"leeward digest")

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def seal(self, head: Buffer, parts: Iterable[Buffer]) -> ObjectCipher:
        """Return the cipher of a new object that consists of `head` and `parts`, all of it."""
        digest = hmac.new(self._salt, digestmod=hashlib.sha256)
        for part in (head, *parts):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return self.cipher(digest.digest())

    def cipher(self, salt: bytes) -> ObjectCipher:
        """Return the cipher of the object with that salt."""
        return ObjectCipher(bytes.fromhex(self.id) + salt, _derive(self._object, salt))


class ObjectCipher:
    """AES-256-GCM under one object's key; a part's number is its nonce. seal: key id and salt, as
    stored."""

    def __init__(self, seal: bytes, key: bytes) -> None:
        self.seal = seal
        self._key = key

    @property
    def key_id(self) -> str:
        return self.seal[:KEY_ID_BYTES].hex()

    @cached_property
    def _aes(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._key)

    def encrypt(self, number: int, part: Buffer, head: Buffer = b"") -> bytes:
        """Return the part, TAG_BYTES longer. head: what is vouched for but not hidden."""
        return self._aes.encrypt(number.to_bytes(12, "little"), part, bytes(head))

    def decrypt(self, number: int, stored: Buffer, head: Buffer = b"") -> bytes:
        """Return the part. Raises: SegmentCorrupt unless it is what was sealed, in its place."""
        from cryptography.exceptions import InvalidTag

        if len(stored) < TAG_BYTES:
            raise SegmentCorrupt("an encrypted part is cut short")
        try:
            return self._aes.decrypt(number.to_bytes(12, "little"), stored, bytes(head))
        except InvalidTag:
            raise SegmentCorrupt("an encrypted part is not what was sealed there") from None


class Keyring:
    """The keys that are here, and the one that new objects are sealed with, if any."""

    def __init__(self, find: Callable[[str], Key | None], key_id: str = "") -> None:
        """key_id: of the key to write with; "": what is written is not sealed."""
        self._find = find
        self._key_id = key_id

    @property
    def writing(self) -> Key | None:
        """The key that new objects are sealed with; None: they are not. Raises: KeyMissing."""
        return self._get(self._key_id) if self._key_id else None

    @property
    def digesting(self) -> bytes:
        """What makes digests that nobody without the key can compute; empty without encryption."""
        key = self.writing
        return key.digesting if key else b""

    def cipher(self, seal: bytes) -> ObjectCipher:
        """Return the cipher of a stored object. Raises: KeyMissing."""
        return self._get(seal[:KEY_ID_BYTES].hex()).cipher(seal[KEY_ID_BYTES:])

    def _get(self, key_id: str) -> Key:
        key = self._find(key_id)
        if key is None:
            raise KeyMissing(
                f"the key {key_id} is not on this host",
                field="key_id",
                hint="add it to the file that LEEWARD_KEY_FILE names there",
            )
        return key


def keyring(keys: Sequence[Key], writing: Key | None = None) -> Keyring:
    """Return a ring of exactly these keys."""
    return Keyring({key.id: key for key in keys}.get, writing.id if writing else "")


NO_KEYS = keyring(())


class KeyedStore:
    """A store as it is used by somebody who has keys: what is read through it is decrypted, what
    is written through it is sealed by those who encode it."""

    def __init__(self, store: ObjectStore, keys: Keyring) -> None:
        self._store = store
        self.keys = keys
        self.create = store.create
        self.get = store.get
        self.get_range = store.get_range
        self.size = store.size
        self.list = store.list
        self.sizes = store.sizes
        self.delete = store.delete
        self.forget = getattr(store, "forget", None)

    @property
    def url(self) -> str:
        return self._store.url


def keys_of(store: ObjectStore) -> Keyring:
    """Return the keys that a store is used with."""
    found = getattr(store, "keys", NO_KEYS)
    return found if isinstance(found, Keyring) else NO_KEYS


def _derive(key: bytes, label: bytes) -> bytes:
    return hmac.digest(key, label, "sha256")
