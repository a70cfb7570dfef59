"""A store that fails where a script says: the process dies, or the reply is lost.

Owns: counting the operations of one process over all its stores, and what happens at which.
Must not know: what the objects mean. Sits between a stage under test and its real store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from leeward.core.errors import Unavailable
from leeward.object_store.store import Buffer, ObjectStore

T = TypeVar("T")


class Killed(BaseException):
    """The process ended here; no handler of the code under test may survive it."""


class Fault(Enum):
    KILL_BEFORE = "kill before the effect"
    KILL_AFTER = "kill after the effect"
    LOST_REQUEST = "unavailable, without the effect"
    LOST_REPLY = "unavailable, after the effect"


@dataclass
class FaultPlan:
    """Which operation, counted from 1 over all stores of one process, meets which fault."""

    at: Mapping[int, Fault] = field(default_factory=dict)
    count: int = 0
    dead: bool = False
    log: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, label: str, operation: Callable[[], T]) -> T:
        with self.lock:
            if self.dead:
                raise Killed
            self.count += 1
            fault = self.at.get(self.count)
            self.log.append(f"{label}{f' !{fault.name}' if fault else ''}")
        if fault in (Fault.KILL_BEFORE, Fault.LOST_REQUEST):
            self._fail(fault)
        try:
            return operation()
        finally:
            if fault is not None:
                self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        if fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            self.dead = True
            raise Killed
        raise Unavailable("the store did not answer")


class FaultyStore:
    """`inner`, seen by a process whose operations follow `plan`."""

    def __init__(self, inner: ObjectStore, plan: FaultPlan, label: str) -> None:
        self._inner = inner
        self._plan = plan
        self._label = label

    @property
    def url(self) -> str:
        return self._inner.url

    def _run(self, verb: str, name: str, operation: Callable[[], T]) -> T:
        return self._plan.run(f"{self._label} {verb} {name}", operation)

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._run("create", name, lambda: self._inner.create(name, data))

    def get(self, name: str) -> bytes:
        return self._run("get", name, lambda: self._inner.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._run("get", name, lambda: self._inner.get_range(name, offset, length))

    def size(self, name: str) -> int:
        return self._run("size", name, lambda: self._inner.size(name))

    def list(self, prefix: str) -> list[str]:
        return self._run("list", prefix, lambda: self._inner.list(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        return self._run("list", prefix, lambda: self._inner.sizes(prefix))

    def delete(self, name: str) -> None:
        self._run("delete", name, lambda: self._inner.delete(name))
