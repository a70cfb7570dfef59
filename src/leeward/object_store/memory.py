"""Objects in this process's memory: for tests and simulations.

Owns: a dictionary behind a lock. Must not know: durability. `memory://x` is the same store for
everybody in the process who opens it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from leeward.core.errors import NotFound, ObjectExists
from leeward.object_store.names import check_object_name, check_prefix, check_range
from leeward.object_store.store import Buffer, join


class MemoryStore:
    """An ObjectStore that forgets everything when the process ends."""

    def __init__(self, name: str = "anonymous") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        content = join(data)
        with self._lock:
            if check_object_name(name) in self._objects:
                raise ObjectExists(f"object {name} exists already")
            self._objects[name] = content

    def get(self, name: str) -> bytes:
        with self._lock:
            try:
                return self._objects[check_object_name(name)]
            except KeyError:
                raise NotFound(f"no object {name}") from None

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        return self.get(name)[offset : offset + length]

    def size(self, name: str) -> int:
        return len(self.get(name))

    def list(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        with self._lock:
            return sorted(name for name in self._objects if name.startswith(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        check_prefix(prefix)
        with self._lock:
            return {name: len(x) for name, x in self._objects.items() if name.startswith(prefix)}

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(check_object_name(name), None)


_shared: dict[str, MemoryStore] = {}
_shared_lock = threading.Lock()


def shared_memory_store(name: str) -> MemoryStore:
    """Return this process's store of that name, made at the first call."""
    with _shared_lock:
        return _shared.setdefault(name, MemoryStore(name))
