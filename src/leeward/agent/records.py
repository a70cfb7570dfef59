"""Small durable records: one JSON file per name, there whole or not at all.

Owns: what a node must still know after it was killed. Must not know: what the records mean.
Under the verbs of agents and workers, which keep here what they were asked to go on doing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest, Unavailable
from leeward.core.ids import check_name
from leeward.observability.log import get_logger

log = get_logger()
T = TypeVar("T")


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make `path` hold exactly `data`, durably; a crash leaves the old content or the new.

    Raises: Unavailable when the directory is gone or full.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error


def sync_directory(path: Path) -> None:
    """Make names created in or removed from `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Records(Generic[T]):
    """A directory of records of one dataclass. One writer per name at a time."""

    def __init__(self, directory: Path, kind: type[T]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._kind = kind

    def put(self, name: str, record: T) -> None:
        """Make `name` hold `record`, durably. Raises: InvalidRequest for a name that is none."""
        write_file(self._path(name), to_json(record))

    def get(self, name: str) -> T | None:
        """Return the record, or None if there is none. Raises: InvalidRequest naming its file when
        it cannot be read."""
        path = self._path(name)
        try:
            return from_json(path.read_bytes(), self._kind)
        except FileNotFoundError:
            return None
        except InvalidRequest as error:
            raise InvalidRequest(f"{path} cannot be read: {error.message}") from error

    def delete(self, name: str) -> None:
        """Make `name` hold nothing. Idempotent."""
        self._path(name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def all(self) -> dict[str, T]:
        """Return every record by its name. One that cannot be read is logged and left where it is:
        what the others tell of must go on."""
        found = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = self.get(path.stem)
            except InvalidRequest as error:
                log.error("record_unreadable", error=str(error))
                continue
            if record is not None:
                found[path.stem] = record
        return found

    def _path(self, name: str) -> Path:
        return self._directory / f"{check_name(name)}.json"
