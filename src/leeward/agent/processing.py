"""A worker's verbs: which items it processes, remembered on disk, each driven by a loop of its own.

Owns: what to process (so that it goes on after a restart, service or not), what has been sealed,
and which recovery points the service has heard of since this worker started: whatever the two of
them remembered before, the first report replaces the service's list. Must not know: steps,
segments, catalogs; those are the processor's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from leeward.agent.link import Meet
from leeward.agent.records import Records
from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, Fenced, InvalidRequest, LeewardError, NotFound
from leeward.model.recovery import RecoveryPoint
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ProcessingSpec
from leeward.protocol.messages import (
    Announced,
    Command,
    MeetingCall,
    NodeStatus,
    ProcessingStatus,
    ScrubReport,
    SpaceReport,
    Verb,
)
from leeward.protocol.rebuild import FoundItems
from leeward.protocol.replicas import ErasureSpec, StoredItems

log = get_logger()

POINTS_PER_POST = 2000
HAND_OVER_SECONDS = 60.0
"""How long what waits in a cache may take that is being left."""


class LoopPort(Protocol):
    """One item's processing under way (processor.loop.ItemLoop): `points_added` of its status are
    all points there are, oldest first."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def seal(self, new_epoch: int, drain_seconds: float) -> RecoveryPoint: ...
    def scrub(self, *, dry_run: bool) -> ScrubReport: ...
    def reclaim(self, *, dry_run: bool) -> SpaceReport: ...
    def status(self) -> ProcessingStatus: ...
    def announce(self, epoch: int, sequence: int) -> None: ...
    def hand_over(self, cache_url: str, seconds: float) -> None: ...
    @property
    def is_alive(self) -> bool: ...


class StoresPort(Protocol):
    """What is done with stores by their URLs alone, whoever's items lie there."""

    def find_items(self, urls: Sequence[str]) -> FoundItems: ...
    def find_stored_items(self, urls: Sequence[str]) -> StoredItems: ...
    def erase_stored_item(self, wanted: ErasureSpec) -> None: ...
    def erase_cache(self, item_id: str, url: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingRecord:
    """What a worker keeps of one item. sealed_epoch: once sealed, the epoch it was sealed for.
    is_ending: it is not processed any more, but not all of it has been erased; removed: its stores
    in which nothing is left to be erased."""

    spec: ProcessingSpec
    sealed_epoch: int = 0
    is_ending: bool = False
    removed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Item:
    """One item. told: ids of points that the service knows, None before this worker's first word
    on them."""

    record: ProcessingRecord
    loop: LoopPort
    told: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seal:
    item_id: str
    epoch: int
    drain_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    """removed: stores that have been removed before this worker could erase the item there."""

    item_id: str
    delete: bool = False
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    item_id: str
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cache:
    item_id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stores:
    urls: tuple[str, ...]


class ProcessingNode:
    """One worker, as its link sees it. Thread-safe; one item's verbs come one after the other."""

    def __init__(
        self,
        directory: Path,
        make_loop: Callable[[ProcessingSpec, bool, Callable[[], None]], LoopPort],
        erase: Callable[[ProcessingSpec, Sequence[str]], None],
        stores: StoresPort,
    ) -> None:
        """make_loop: (spec, whether it was processed here before and nobody has said since that it
        still is, what to call when there are new points). erase: everything stored of
        an item is gone, but for stores that are. stores: of items that this worker does not
        process."""
        self._records = Records(directory / "items", ProcessingRecord)
        self._make_loop = make_loop
        self._erase = erase
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._items: dict[str, _Item] = {}
        self._changed: Callable[[], None] = lambda: None
        self._verbs: Mapping[Verb, Callable[[dict[str, Any]], object]] = {
            Verb.PROCESSING_START: lambda a: self._start_item(from_plain(a, ProcessingSpec)),
            Verb.PROCESSING_STOP: lambda a: self._stop_item(from_plain(a, _Stop)),
            Verb.PROCESSING_SCRUB: lambda a: self._scrub(from_plain(a, _Reading)),
            Verb.PROCESSING_COMPACT: lambda a: self._compact(from_plain(a, _Reading)),
            Verb.PROCESSING_SEAL: lambda a: self._seal(from_plain(a, _Seal)),
            Verb.CACHE_CHANGE: lambda a: self._change_cache(from_plain(a, ProcessingSpec)),
            Verb.CACHE_ERASE: lambda a: self._erase_cache(stores, from_plain(a, _Cache)),
            Verb.STORES_READ: lambda a: stores.find_items(from_plain(a, _Stores).urls),
            Verb.REPLICAS_READ: lambda a: stores.find_stored_items(from_plain(a, _Stores).urls),
            Verb.REPLICA_ERASE: lambda a: self._erase_replica(stores, from_plain(a, ErasureSpec)),
        }

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called when there are new recovery points."""
        self._changed = callback

    def resume(self) -> None:
        """Every item that was being processed is being processed again."""
        for item_id, record in self._records.all().items():
            if record.is_ending:
                threading.Thread(target=self._finish_ending, args=(record,), daemon=True).start()
                continue
            try:
                self._add(record, is_resumed=True)
            except LeewardError as error:
                log.warning("item_not_resumed", item=item_id, error=str(error))

    def stop(self) -> None:
        """Nothing is processed by this process any more; another worker can go on."""
        for item in list(self._items.values()):
            item.loop.stop()

    # --- verbs

    def lane_of(self, command: Command) -> str:
        """Commands of one item run in order, but for those that take long and change nothing that
        another one minds."""
        if command.verb in (Verb.PROCESSING_SCRUB, Verb.PROCESSING_COMPACT):
            return f"{command.verb.value}:{command.arguments.get('item_id')}"
        return f"item:{command.arguments.get('item_id')}"

    def carry_out(self, command: Command) -> dict[str, object]:
        """The command is carried out; returns its result."""
        verb = self._verbs.get(command.verb)
        if verb is None:
            raise InvalidRequest(f"a worker does not do {command.verb.value}")
        done = verb(command.arguments)
        return dict(to_plain(done)) if done is not None else {}

    def supersede(self, item_id: str, epoch: int) -> None:
        """A worker learns of epochs from the catalog; there is nothing to stop."""

    def join(self, call: MeetingCall, meet: Meet) -> None:
        """Nothing: nothing is replicated from a worker."""

    def announce(self, news: tuple[Announced, ...]) -> None:
        """Each loop knows what its source has in the cache."""
        for said in news:
            item = self._items.get(said.item_id)
            if item is not None:
                item.loop.announce(said.epoch, said.sequence)

    def _start_item(self, spec: ProcessingSpec) -> None:
        """The item is processed under the spec's epoch. Idempotent.

        Raises: Fenced when this worker knows of a newer epoch.
        """
        item = self._items.get(spec.item_id)
        if item is not None:
            known = item.record
            if spec.epoch < max(known.spec.epoch, known.sealed_epoch):
                raise Fenced(f"epoch {spec.epoch} of {spec.item_id} is over in this worker")
            if known.spec == spec and not known.sealed_epoch and item.loop.is_alive:
                return
            self._remove(spec.item_id)
        record = ProcessingRecord(spec=spec)
        self._records.put(spec.item_id, record)
        self._add(record)

    def _stop_item(self, wanted: _Stop) -> None:
        """The item is not processed any more and forgotten; with `delete` erased too."""
        item = self._items.get(wanted.item_id)
        if item is None:
            self._forget(wanted)
            return
        item.loop.stop()
        if wanted.delete:
            item.record = self._note_ending(item.record, wanted)
            self._erase(item.record.spec, item.record.removed)
        self._remove(wanted.item_id)
        self._records.delete(wanted.item_id)

    def _forget(self, wanted: _Stop) -> None:
        """An item that is only remembered here is not any more: the worker before has been killed
        while it erased it, or it could not be taken up again. Whoever asks takes its stores away
        next: they are answered when nothing is being erased there."""
        record = self._records.get(wanted.item_id)
        if record is None:
            return
        if wanted.delete:
            record = self._note_ending(record, wanted)
        if record.is_ending:
            self._end(record)
        self._records.delete(wanted.item_id)

    def _note_ending(self, record: ProcessingRecord, wanted: _Stop) -> ProcessingRecord:
        """Return what is remembered from now on: the item is being erased."""
        record = replace(record, is_ending=True, removed=wanted.removed or record.removed)
        self._records.put(wanted.item_id, record)
        return record

    def _finish_ending(self, record: ProcessingRecord) -> None:
        """What an earlier worker began to erase is gone, unless its stores cannot be reached."""
        try:
            self._end(record)
        except LeewardError as error:
            log.warning("item_not_erased", item=record.spec.item_id, error=str(error))

    def _end(self, record: ProcessingRecord) -> None:
        """The item is erased and forgotten, by whoever comes first."""
        with self._ending:
            if self._records.get(record.spec.item_id) is not None:
                self._erase(record.spec, record.removed)
                self._records.delete(record.spec.item_id)

    def _change_cache(self, spec: ProcessingSpec) -> None:
        """The item goes on under the spec, whose cache is another, and what the one before had is
        applied. Idempotent. Raises: NotFound, Fenced, Unavailable, Conflict; it goes on as before
        then."""
        item = self._items.get(spec.item_id)
        if item is None:
            raise NotFound(f"this worker does not process {spec.item_id}")
        if item.record.sealed_epoch or item.record.spec.epoch != spec.epoch:
            raise Fenced(f"epoch {spec.epoch} of {spec.item_id} is over in this worker")
        if item.record.spec.cache_url != spec.cache_url:
            item.loop.hand_over(spec.cache_url, HAND_OVER_SECONDS)
        self._start_item(spec)

    def _erase_cache(self, stores: StoresPort, wanted: _Cache) -> None:
        """The store has nothing of the item as a cache. Raises: Conflict for the cache it has."""
        item = self._items.get(wanted.item_id)
        if item is not None and item.record.spec.cache_url == wanted.url:
            raise Conflict(f"{wanted.url} is the cache of {wanted.item_id}")
        stores.erase_cache(wanted.item_id, wanted.url)

    def _erase_replica(self, stores: StoresPort, wanted: ErasureSpec) -> None:
        """The store has nothing of the item any more. Raises: Conflict for what is processed here,
        and while readers hold it."""
        if wanted.item_id in self._items:
            raise Conflict(
                f"this worker processes {wanted.item_id}: it is not a leftover",
                hint="a service that lost its database knows it again by `leeward vault rebuild`",
            )
        stores.erase_stored_item(wanted)

    def _seal(self, wanted: _Seal) -> RecoveryPoint:
        item = self._items.get(wanted.item_id)
        if item is None:
            raise NotFound(f"this worker does not process {wanted.item_id}")
        point = item.loop.seal(wanted.epoch, wanted.drain_seconds)
        item.record = replace(item.record, sealed_epoch=wanted.epoch)
        self._records.put(wanted.item_id, item.record)
        return point

    def _scrub(self, wanted: _Reading) -> ScrubReport:
        return self._loop_of(wanted.item_id).scrub(dry_run=wanted.dry_run)

    def _compact(self, wanted: _Reading) -> SpaceReport:
        return self._loop_of(wanted.item_id).reclaim(dry_run=wanted.dry_run)

    def _loop_of(self, item_id: str) -> LoopPort:
        item = self._items.get(item_id)
        if item is None:
            raise NotFound(f"this worker does not process {item_id}")
        return item.loop

    # --- status

    def status(self) -> NodeStatus:
        """Return how each item stands, with what the service has not heard of its points."""
        with self._lock:
            items = dict(self._items)
        return NodeStatus(processings=tuple(_status(item) for _, item in sorted(items.items())))

    def status_taken(self, status: NodeStatus) -> None:
        """The service has heard of those points."""
        for each in status.processings:
            item = self._items.get(each.item_id)
            if item is None or (item.told is None and not each.points_complete):
                continue
            added = frozenset(point.id for point in each.points_added)
            item.told = (item.told or frozenset()) - frozenset(each.points_removed) | added

    # ---

    def _add(self, record: ProcessingRecord, *, is_resumed: bool = False) -> None:
        loop = self._make_loop(record.spec, is_resumed, lambda: self._changed())
        with self._lock:
            self._items[record.spec.item_id] = _Item(record, loop)
        if not record.sealed_epoch:
            loop.start()

    def _remove(self, item_id: str) -> None:
        with self._lock:
            item = self._items.pop(item_id, None)
        if item is not None:
            item.loop.stop()


def _status(item: _Item) -> ProcessingStatus:
    """Return the item's status, of its points only what the service has not heard.

    An item that has had points always has its newest: no points at all means that the catalog has
    not been read yet, and says nothing about any.
    """
    status = item.loop.status()
    points = status.points_added
    told = item.told or frozenset()
    gone = told - {point.id for point in points}
    return replace(
        status,
        points_added=tuple(p for p in points if p.id not in told)[-POINTS_PER_POST:],
        points_removed=tuple(sorted(gone)) if points else (),
        points_complete=item.told is None and bool(points),
    )
