"""Defects of the local store: an fsync that is left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

from leeward.object_store import file as file_module

POWER_MUTANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {}


def power_mutant(
    make: Callable[[], Iterator[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Register the defect under its function's name."""
    planted = contextmanager(make)
    POWER_MUTANTS[make.__name__.replace("_", "-")] = planted
    return planted


@power_mutant
def file_fsync_missing() -> Iterator[None]:
    """An object's bytes are not made durable before it gets its name."""
    with patch.object(file_module, "os", _OsWithout(is_directory=False)):
        yield


@power_mutant
def directory_fsync_missing() -> Iterator[None]:
    """Neither an object's name is made durable nor a directory's."""
    with patch.object(file_module, "os", _OsWithout(is_directory=True)):
        yield


@power_mutant
def parents_fsync_missing() -> Iterator[None]:
    """An object's name is made durable, those of the directories above it are not."""

    def just_make(self: file_module.FileStore, directory: str, name: str) -> None:
        os.makedirs(directory, exist_ok=True)

    with patch.object(file_module.FileStore, "_make_parents_durable", just_make):
        yield


class _OsWithout:
    """The module `os` with an fsync that does nothing for files, or for directories."""

    def __init__(self, *, is_directory: bool) -> None:
        self._is_directory = is_directory

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is not self._is_directory:
            os.fsync(descriptor)
