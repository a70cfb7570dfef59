"""The keys of this host: read from a file or the environment, never anything else.

Owns: where keys come from, and that they are found without a restart once they are there. Must not
know: which vault uses which. Agents, workers, exports and the command line read stores through it.

LEEWARD_KEY_FILE names a file with one key a line, 64 hexadecimal digits, comments after "#";
LEEWARD_KEYS holds keys itself, separated by commas. FORMAT.md 2.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
from pathlib import Path

from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.object_store.open import open_store
from leeward.object_store.store import ObjectStore
from leeward.replica.sealing import KEY_BYTES, Key, KeyedStore, Keyring

KEY_FILE = "LEEWARD_KEY_FILE"
KEYS = "LEEWARD_KEYS"
_DIGITS = re.compile(r"[0-9a-fA-F]{64}")
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class HostKeys:
    """Keys by id, read again when the file has changed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: tuple[str, tuple[int, ...], str] = ("", (), "")
        self._keys: dict[str, Key] = {}

    def find(self, key_id: str) -> Key | None:
        """Return the key of that id. Raises: InvalidRequest when the file is not a key file."""
        return self.all().get(key_id)

    def all(self) -> dict[str, Key]:
        """Return every key there is, by id. Raises: InvalidRequest, without a word of a key."""
        path, direct = os.environ.get(KEY_FILE, ""), os.environ.get(KEYS, "")
        try:
            version = _version(path) if path else ()
        except OSError as error:
            raise InvalidRequest(
                f"${KEY_FILE}: cannot read {path}: {error.strerror}", field="key_file"
            ) from error
        with self._lock:
            if self._read != (path, version, direct):
                keys = read_key_file(Path(path)) if path else []
                keys += parse_keys(direct.replace(",", "\n"), f"${KEYS}")
                self._keys = {key.id: key for key in keys}
                self._read = (path, version, direct)
            return self._keys


def _version(path: str) -> tuple[int, ...]:
    """Return what differs when the file does: another file put in its place may be as old."""
    about = os.stat(path)
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


_host_keys = HostKeys()


def host_key_ids() -> tuple[str, ...]:
    """Return the ids of this host's keys. Raises: InvalidRequest."""
    return tuple(sorted(_host_keys.all()))


def open_keyed(url: str, key_id: str = "") -> KeyedStore:
    """Return the store at `url`, read with this host's keys; what is written to it is sealed with
    the key of that id, "": not at all. The key is looked for when it is needed.

    Raises: InvalidRequest.
    """
    return keyed(open_store(url), key_id)


def keyed(store: ObjectStore, key_id: str = "") -> KeyedStore:
    """Return `store` used with this host's keys, as `open_keyed` does."""
    return KeyedStore(store, Keyring(_host_keys.find, key_id))


def read_key_file(path: Path) -> list[Key]:
    """Return the keys of a key file. Raises: InvalidRequest; Unavailable."""
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & _READABLE_BY_OTHERS:
                raise InvalidRequest(
                    f"{path} can be read by others", field="key_file", hint=f"chmod 600 {path}"
                )
            return parse_keys(file.read(), str(path))
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not a key file", field="key_file") from error


def parse_keys(text: str, origin: str) -> list[Key]:
    """Return the keys in the text. Raises: InvalidRequest naming the line, never what is in it."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split("#")[0].strip()
        if word and not _DIGITS.fullmatch(word):
            raise InvalidRequest(
                f"line {number} of {origin} is not a key",
                field="key_file",
                hint="a key is 64 hexadecimal digits; `leeward vault key new FILE` makes one",
            )
        if word:
            keys.append(Key(bytes.fromhex(word)))
    return keys


def add_new_key(path: Path, comment: str) -> str:
    """Return the id of a new key, which is in the file at `path` now, durably; the file is made if
    it does not exist. Raises: InvalidRequest; Unavailable; Conflict without its directory."""
    begins = ""
    if path.exists():
        read_key_file(path)
        if not _ends_its_last_line(path):  # the key would be part of it, and neither be read
            begins = "\n"
    if not path.parent.is_dir():
        raise Conflict(f"there is no directory {path.parent}", field="file")
    secret = secrets.token_bytes(KEY_BYTES)
    key = Key(secret)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{begins}{secret.hex()}  # {key.id} {comment}\n")
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    return key.id


def _ends_its_last_line(path: Path) -> bool:
    try:
        return path.read_bytes()[-1:] in (b"", b"\n")
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
