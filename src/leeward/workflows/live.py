"""What nodes said last: in memory, posted anew every second, lost with the process on purpose.

Owns: the newest status of every node and when it was heard. Must not know: what follows from it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from leeward.core.clock import Clock
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import (
    HydrationStatus,
    NodeStatus,
    ProcessingStatus,
    ReplicationStatus,
)

FRESH_SECONDS = 5.0
"""What a source said longer ago of its cuts is no news."""


PROCESS_SECONDS = 5.0
"""A process of a node that has been silent for longer has ended, or hangs: any other is heard."""

_PROCESS = re.compile(r"(\d{1,12})\.([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class _Process:
    at: float
    order: tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Heard:
    at: float
    time_ns: int
    status: NodeStatus


class LiveState:
    """Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._processes: dict[str, _Process] = {}
        self._sources: dict[str, tuple[str, int, int]] = {}
        # A node cannot be called silent before this process has listened that long.
        self._listening_since = clock.monotonic()

    def put(self, node_id: str, status: NodeStatus) -> None:
        """The node was heard now, with that status."""
        heard = _Heard(self._clock.monotonic(), self._clock.now_ns(), status)
        with self._lock:
            self._heard[node_id] = heard
            for said in status.replications:
                if said.epoch >= self._sources.get(said.item_id, ("", 0, 0))[1]:
                    told = (node_id, said.epoch, said.uploaded_sequence)
                    self._sources[said.item_id] = told

    def uploaded_sequence(self, item_id: str, epoch: int) -> int:
        """Return the newest cut that the item's source has just said is in the cache; 0 while the
        source is silent."""
        with self._lock:
            node_id, told_epoch, sequence = self._sources.get(item_id, ("", 0, 0))
        is_news = told_epoch == epoch and self.silent_seconds(node_id) <= FRESH_SECONDS
        return sequence if is_news else 0

    def admit(self, node_id: str, process: str) -> bool:
        """Say whether that process of the node is to be heard: of two at a time only one is, else
        both would carry out every command. A later start comes before an earlier one.

        process: "starts.random" as the node says; anything else, of an earlier version, is heard.
        """
        said = _PROCESS.fullmatch(process)
        if said is None:
            return True
        now, order = self._clock.monotonic(), (int(said[1]), said[2])
        with self._lock:
            known = self._processes.get(node_id)
            if known is not None and order < known.order and now - known.at <= PROCESS_SECONDS:
                return False
            self._processes[node_id] = _Process(now, order)
        return True

    def touch(self, node_id: str) -> None:
        """The node was heard now, if it has posted a status before; that is as it was."""
        with self._lock:
            before = self._heard.get(node_id)
            if before is not None:
                self._heard[node_id] = _Heard(
                    self._clock.monotonic(), self._clock.now_ns(), before.status
                )

    def silent_seconds(self, node_id: str) -> float:
        """Return how long the node has not been heard, at most since this process listens."""
        with self._lock:
            heard = self._heard.get(node_id)
        return self._clock.monotonic() - (heard.at if heard else self._listening_since)

    def last_seen_ns(self, node_id: str) -> int:
        """Return the wall-clock time the node was last heard; 0: not by this process."""
        with self._lock:
            heard = self._heard.get(node_id)
        return heard.time_ns if heard else 0

    def key_ids(self, node_id: str) -> tuple[str, ...]:
        """Return the ids of the encryption keys that the node's host has."""
        return self._status(node_id).key_ids

    def memory_available_mib(self, node_id: str) -> int | None:
        """Return the memory of the largest VM that the agent could start; None: it has not told."""
        return self._status(node_id).memory_available_mib

    def memory_total_mib(self, node_id: str) -> int | None:
        """Return the memory of the largest VM that the agent's host could run alone; None: it has
        not told."""
        return self._status(node_id).memory_total_mib

    def replication(self, node_id: str, item_id: str) -> ReplicationStatus | None:
        """Return what the agent last said of the item."""
        statuses = self._status(node_id).replications
        return next((status for status in statuses if status.item_id == item_id), None)

    def processing(self, node_id: str, item_id: str) -> ProcessingStatus | None:
        """Return what the worker last said of the item."""
        statuses = self._status(node_id).processings
        return next((status for status in statuses if status.item_id == item_id), None)

    def quarantined(self, node_id: str, item_id: str) -> frozenset[str]:
        """Return the ids of the item's recovery points that its worker says are damaged."""
        said = self.processing(node_id, item_id)
        return frozenset(said.quarantined if said else ())

    def hydration(self, node_id: str, vm_id: str) -> HydrationStatus | None:
        """Return what the agent last said of filling the VM's disks."""
        statuses = self._status(node_id).hydrations
        return next((status for status in statuses if status.vm_id == vm_id), None)

    def vm(self, node_id: str, vm_id: str) -> VmStatus | None:
        """Return what the agent last said of the VM."""
        return next((vm for vm in self._status(node_id).vms if vm.vm_id == vm_id), None)

    def _status(self, node_id: str) -> NodeStatus:
        with self._lock:
            heard = self._heard.get(node_id)
        return heard.status if heard else NodeStatus()
