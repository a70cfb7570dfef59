"""Objects as files under one directory, durable before `create` returns.

Owns: the order of write, fsync, link and fsync that makes a create all or nothing, also across a
power cut. Must not know: what the objects mean. An object's name is its path below the root;
"~" never occurs in a name, so our own files there begin with it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from leeward.core.errors import InvalidRequest, LeewardError, NotFound, ObjectExists, Unavailable
from leeward.core.units import MIB
from leeward.object_store.names import check_object_name, check_prefix, check_range
from leeward.object_store.store import Buffer, pieces

MARKER = "~leeward-store.json"
TEMPORARY = "~new"
_MARKER_BODY = {"format": "leeward-file-store", "version": 1}
RESERVE_BYTES_MAX = 64 * MIB
RESERVE_SHARE = 64
"""So much of the file system, or this part of it if that is less, is set aside for objects of
SMALL_BYTES at most: records by which space is freed, pins, markers."""
SMALL_BYTES = 4096
_LEFTOVER_SECONDS = 24 * 3600
_PIECES_PER_WRITE = 512
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_REASONS = {
    errno.ENOSPC: "the file system is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was refused",
    errno.EPERM: "permission was refused",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
    errno.ENOENT: "a directory of it is missing",
}


def create_file_store(path: Path) -> FileStore:
    """Make `path` the root of a file store, durably, and return the store. Idempotent.

    Raises: InvalidRequest if the directory holds something else; Unavailable.
    """
    root = path.absolute()
    with _translated(root, "create the store"):
        _make_directories(root)
        if not (root / MARKER).exists():
            _write_marker(root)
    return FileStore(root)


class FileStore:
    """An ObjectStore in a directory made by `create_file_store`. Processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._marker = str(self._root / MARKER)
        self._durable_directories: set[str] = {str(self._root)}
        self._lock = threading.Lock()
        self._swept = False

    @property
    def url(self) -> str:
        return f"file://{quote(str(self._root))}"

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        path = self._path(name)
        with _translated(self._root, "write objects"):
            self._check_root()
            views = pieces(data)
            self._check_room(sum(map(len, views)))
            temporary = self._write_temporary(views)
            try:
                self._make_parents_durable(os.path.dirname(path), name)
                self._link(temporary, path, name)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)

    def get(self, name: str) -> bytes:
        with self._open(name) as descriptor:
            return _read(descriptor, 0, os.fstat(descriptor).st_size)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        with self._open(name) as descriptor:
            available = max(0, os.fstat(descriptor).st_size - offset)
            return _read(descriptor, offset, min(length, available))

    def size(self, name: str) -> int:
        with self._open(name) as descriptor:
            return os.fstat(descriptor).st_size

    def list(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        with _translated(self._root, f"list {prefix or 'everything'}"):
            names = sorted(name for name, _ in self._walk(prefix))
            self._check_root()
            return names

    def sizes(self, prefix: str) -> dict[str, int]:
        check_prefix(prefix)
        found: dict[str, int] = {}
        with _translated(self._root, f"list {prefix or 'everything'}"):
            for name, entry in self._walk(prefix):
                with suppress(FileNotFoundError):  # deleted since
                    found[name] = entry.stat(follow_symlinks=False).st_size
            self._check_root()
        return found

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _translated(self._root, f"delete {name}"):
            try:
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    return
                os.unlink(path)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                self._check_root()

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_object_name(name)}"

    def _check_root(self) -> None:
        """Return if the root is there with its marker: an unmounted disk leaves an empty directory
        behind, which must not pass for a store without objects."""
        if not os.path.exists(self._marker):
            raise Unavailable(
                f"the object store at {self._root} is gone",
                hint=f"{MARKER} is missing there; is the disk mounted?",
            )

    def _check_room(self, wanted: int) -> None:
        """Return if an object of so many bytes leaves the reserve alone, or may use it."""
        if wanted <= SMALL_BYTES:
            return
        room = os.statvfs(self._root)
        reserve = min(RESERVE_BYTES_MAX, room.f_blocks * room.f_frsize // RESERVE_SHARE)
        is_known = bool(room.f_blocks)  # some file systems do not say how large they are
        if is_known and room.f_bavail * room.f_frsize - wanted < reserve:
            raise OSError(errno.ENOSPC, "nearly full")

    def _write_temporary(self, views: Sequence[memoryview]) -> str:
        directory = f"{self._root}/{TEMPORARY}"
        os.makedirs(directory, exist_ok=True)
        self._sweep_leftovers(directory)
        path = f"{directory}/{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            _write(descriptor, views)
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def _sweep_leftovers(self, directory: str) -> None:
        """Remove what writers killed long ago have left, once per opened store."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                        os.unlink(entry.path)

    def _make_parents_durable(self, directory: str, name: str) -> None:
        """Make every directory down to `directory` exist, each one's entry fsynced in its parent.

        A directory seen for the first time is fsynced into its parent even if it existed: whoever
        made it may not have got that far.
        """
        if directory in self._durable_directories:
            return
        parent = os.path.dirname(directory)
        self._make_parents_durable(parent, name)
        try:
            os.mkdir(directory, 0o750)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise _inside_object(name) from None
        _fsync_directory(parent)
        with self._lock:
            self._durable_directories.add(directory)

    def _link(self, temporary: str, path: str, name: str) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            if os.path.isdir(path):
                raise _inside_object(name) from None
            # The winner may still be before its own fsync; our caller will take the object as
            # committed, so it has to be durable now.
            _fsync_directory(os.path.dirname(path))
            raise ObjectExists(f"object {name} exists already") from None
        except FileNotFoundError:
            with self._lock:
                self._durable_directories = {str(self._root)}
            self._check_root()
            raise
        _fsync_directory(os.path.dirname(path))

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._path(name)
        with _translated(self._root, f"read {name}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                self._check_root()
                raise NotFound(f"no object {name}") from None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise NotFound(f"no object {name}")
                yield descriptor
            finally:
                os.close(descriptor)

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            with os.scandir(f"{self._root}/{prefix}") as entries:
                found = list(entries)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return
        for entry in found:
            if "~" in entry.name:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False) and _is_name(prefix + entry.name):
                yield prefix + entry.name, entry


def _is_name(name: str) -> bool:
    try:
        check_object_name(name)
    except InvalidRequest:
        return False
    return True


def _inside_object(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: one object's name would be another one's folder", field="name")


def _write(descriptor: int, views: Sequence[memoryview]) -> None:
    pending = list(views)
    while pending:
        written = os.writev(descriptor, pending[:_PIECES_PER_WRITE])
        index = 0
        while index < len(pending) and written >= len(pending[index]):
            written -= len(pending[index])
            index += 1
        pending = pending[index:]
        if written:
            pending[0] = pending[0][written:]


def _read(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]  # a file system may give less than asked, or the kernel's 2 GiB limit does
    done = len(data)
    while done < length:
        more = os.pread(descriptor, length - done, offset + done)
        if not more:
            break
        parts.append(more)
        done += len(more)
    return b"".join(parts)


def _fsync_directory(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directories(root: Path) -> None:
    if root.is_dir():
        return
    _make_directories(root.parent)
    try:
        root.mkdir(mode=0o750)
    except FileExistsError as error:  # another host may have made it just now
        if not root.is_dir():
            raise InvalidRequest(f"{root} is not a directory", field="path") from error
    _fsync_directory(root.parent)


def _write_marker(root: Path) -> None:
    foreign = [
        entry for entry in os.listdir(root) if entry != "lost+found" and not entry.startswith("~")
    ]
    if (root / MARKER).exists():  # another host was quicker, and things are stored already
        return
    if foreign:
        raise InvalidRequest(
            f"{root} holds other files ({foreign[0]}, ...)",
            field="path",
            hint="give an empty directory",
        )
    temporary = root / f"{MARKER}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        _write(descriptor, [memoryview(json.dumps(_MARKER_BODY).encode())])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(root / MARKER)
    _fsync_directory(root)


@contextmanager
def _translated(root: Path, action: str) -> Iterator[None]:
    """Turn what the operating system says into our errors: the one place that does."""
    try:
        yield
    except LeewardError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise Unavailable(f"cannot {action} in the object store at {root}: {reason}") from error
