"""What a driver keeps on disk of each VM and network: the intent before the deed.

Owns: the record files. Must not know: what they cause. A record is written before anything is made
and removed after everything is gone, so that a successor knows what to look for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest
from leeward.observability.log import get_logger
from leeward.protocol.fabric import Forward, NetworkSpec, VmSpec

_log = get_logger()
_FILE = "record.json"


class Phase(Enum):
    """STARTING: ready, and a process is being started that must not be taken for a running VM."""

    CREATING = "creating"
    READY = "ready"
    STARTING = "starting"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """A VM as asked for (every MAC filled in), and what was settled about it since."""

    spec: VmSpec
    phase: Phase
    overlays: frozenset[str] = frozenset()
    """Disks that began as a recovery point."""
    nonce: str = ""
    """In the names of its overlays; "" in records of earlier versions."""
    bases: dict[str, str] = field(default_factory=dict)
    """Disk → socket of the export it still reads from."""
    half_made: str = ""
    """The disk that is being added or removed; none of it is to be left."""
    accelerator: str = ""
    forwards: tuple[Forward, ...] = ()
    """Of the last start; the next one asks for the same ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """is_deleting: no VM may be connected to it any more."""

    spec: NetworkSpec
    is_deleting: bool = False


T = TypeVar("T")


class Records(Generic[T]):
    """One directory per thing under `directory`, with its record and whatever else belongs to it.

    Thread-safe for different ids.
    """

    def __init__(self, directory: Path, kind: type[T]) -> None:
        self._directory = directory
        self._kind = kind

    def home(self, record_id: str) -> Path:
        """Return the directory of that thing (which may not exist)."""
        return self._directory / record_id

    def ids(self) -> list[str]:
        """Return every id with a record, sorted."""
        return sorted(path.parent.name for path in self._directory.glob(f"*/{_FILE}"))

    def get(self, record_id: str) -> T | None:
        """Return the record, or None if there is none."""
        path = self.home(record_id) / _FILE
        try:
            return from_json(path.read_bytes(), self._kind)
        except FileNotFoundError:
            return None
        except InvalidRequest as error:
            raise InvalidRequest(f"{path} cannot be read: {error.message}") from error

    def all(self) -> Iterator[T]:
        """Yield every readable record, by id; an unreadable one is logged."""
        for record_id in self.ids():
            try:
                record = self.get(record_id)
            except InvalidRequest as error:
                _log.error("record_unreadable", record=record_id, error=str(error))
                continue
            if record is not None:
                yield record

    def put(self, record_id: str, record: T) -> None:
        """Make it the record, durably."""
        home = self.home(record_id)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = home / f"{_FILE}.new"
        with temporary.open("wb") as file:
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(home / _FILE)
        directory = os.open(home, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def delete(self, record_id: str) -> None:
        """Make the thing's directory not exist, the record last. Idempotent."""
        home = self.home(record_id)
        if not home.exists():
            return
        for entry in home.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _FILE:
                entry.unlink(missing_ok=True)
        (home / _FILE).unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)
