"""A local store on a disk that loses what was not made durable, at every moment of a create.

Owns: which of the file store's system calls a power cut undoes. Must not know: mutants, the item
above the store. The store is production's, in a real directory; its calls are recorded on their
way, and after each of them a second directory is made of what the disk is sure to have then.

Modelled as POSIX promises no more than: a file's bytes are there once it has been fsynced, a name
(file or directory) once its directory has been. What the store calls created, or says exists, has
to be there and whole after any cut that comes later; nothing else may be there by an object's name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from leeward.core.errors import ObjectExists, Unavailable
from leeward.object_store.file import FileStore, create_file_store

NAMES = ("a", "items/one/catalog/1", "items/one/catalog/2", "items/one/disks/d/1", "items/two/1")


@dataclass
class Disk:
    """What a disk holds for certain. Inodes stand for files and directories.

    contents: of files, as last fsynced. entries: of directories, the names as last fsynced, each
    with its inode and whether that is a directory.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)

    def fsync(self, descriptor: int) -> None:
        """Everything of that file, or of that directory's names, stays from now on."""
        inode = os.fstat(descriptor).st_ino
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.entries[inode] = {
                entry.name: (entry.lstat().st_ino, entry.is_dir()) for entry in path.iterdir()
            }
        else:
            self.contents[inode] = path.read_bytes()

    def after_a_cut(self, into: Path) -> None:
        """Make `into` what the store's directory is once the power is back."""
        self._restore(self.root.stat().st_ino, into)

    def _restore(self, directory: int, into: Path) -> None:
        into.mkdir()
        for name, (inode, is_directory) in self.entries.get(directory, {}).items():
            if is_directory:
                self._restore(inode, into / name)
            else:
                (into / name).write_bytes(self.contents.get(inode, b""))


@contextmanager
def recorded(disk: Disk, after_each: Callable[[], None]) -> Iterator[None]:
    """The process's calls that change what is on the disk go by it."""
    is_looking: list[bool] = []
    with ExitStack() as stack:

        def watch(name: str) -> None:
            real = getattr(os, name)

            def call(*arguments: Any, **more: Any) -> Any:
                if is_looking:  # what the check itself does is no part of it
                    return real(*arguments, **more)
                result = real(*arguments, **more)
                is_looking.append(True)
                if name == "fsync":
                    disk.fsync(arguments[0])
                after_each()
                is_looking.clear()
                return result

            stack.enter_context(patch.object(os, name, call))

        for name in ("writev", "fsync", "link", "mkdir", "unlink", "rename"):
            watch(name)
        yield


def cut_power_everywhere() -> str:
    """Return what a store has lost that it had promised, after a power cut anywhere; "" if
    nothing."""
    with tempfile.TemporaryDirectory(prefix="lwpower") as scratch:
        return _Trial(Path(scratch)).run()


class _Trial:
    """Two processes fill one store, one after the other, the second with some names in common."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._disk = Disk(scratch / "store")
        self._given: dict[str, bytes] = {}
        """What each object was to hold, from before its create."""
        self._promised: set[str] = set()
        self._problem = ""

    def run(self) -> str:
        # the store's own directory has been there for long: what counts is what it makes inside
        with recorded(self._disk, lambda: None):
            create_file_store(self._scratch / "store")
        with recorded(self._disk, self._check):
            for number in range(2):
                store = FileStore(self._scratch / "store")
                for name in NAMES:
                    self._create(store, name)
                    self._create(store, f"{name}-of-{number}")
        self._check()
        return self._problem

    def _create(self, store: FileStore, name: str) -> None:
        self._given.setdefault(name, f"{name} whole".encode() * 100)
        with suppress(ObjectExists):
            store.create(name, [self._given[name][:7], self._given[name][7:]])
        self._promised.add(name)

    def _check(self) -> None:
        """The power fails now."""
        after = self._scratch / "after"
        self._disk.after_a_cut(after)
        try:
            left = FileStore(after)
            found = {name: left.get(name) for name in left.list("")}
        except Unavailable:
            found = {}
        finally:
            shutil.rmtree(after)
        for name in sorted({*self._promised, *found}):
            if name not in found:
                self._problem = (
                    self._problem or f"{name} was created, and is gone after a power cut"
                )
            elif found[name] != self._given[name]:
                self._problem = self._problem or f"{name} is not whole after a power cut"
