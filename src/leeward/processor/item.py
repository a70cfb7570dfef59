"""One item's cuts become recovery points: drain, verify, apply, list, acknowledge.

Owns: the order in which things become durable, and being the item's only writer. Must not know:
the service, schedules, threads of its own lifetime. Sits in the worker, driven by loop.py.

Order: segments, then maps, then the catalog record that lists them, then the applied marker, then
removal from the cache. Whatever dies in between is done again by whoever comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from leeward.core.clock import Clock
from leeward.core.errors import (
    ChainBroken,
    Conflict,
    DataIntegrity,
    Fenced,
    Unavailable,
)
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.processor.acknowledge import Acknowledgements
from leeward.processor.apply import Numbers
from leeward.processor.arrivals import Arrivals
from leeward.processor.digesting import Digesting
from leeward.processor.disk_log import DiskCompaction, compacted_log
from leeward.processor.drain import ArrivedCut, Cache, ChainHead, erase_cache
from leeward.processor.fetching import FetchedCut, Fetching
from leeward.processor.garbage import Garbage, Stand
from leeward.processor.held_points import plan_around_held
from leeward.processor.replicas import Replicas
from leeward.processor.scrub import Findings, read_everything
from leeward.processor.seal import drain_aside, seal_catalog
from leeward.processor.space import Space
from leeward.protocol.fabric import ProcessingSpec
from leeward.protocol.messages import ScrubReport, SpaceReport
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut
from leeward.replica.frame_codec import known_compression
from leeward.replica.holds import HoldWatch
from leeward.replica.pins import PinWatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. bytes: stored in the cache for the cuts applied. idle: none waited."""

    cuts_applied: int = 0
    bytes: int = 0
    points: tuple[RecoveryPoint, ...] = ()
    idle: bool = True


class ItemProcessor:
    """The one writer of an item's replica at one epoch. Thread-safe; steps exclude each other."""

    def __init__(
        self,
        spec: ProcessingSpec,
        open_store: Callable[[str], ObjectStore],
        clock: Clock,
        *,
        owner: str = "",
        is_resumed: bool = False,
        copiers: int = 3,
    ) -> None:
        """owner: who this is, to others. is_resumed: nobody has just said that the item is to be
        processed here, it was so before; who took it over since keeps it."""
        self._spec = spec
        self._clock = clock
        self._owner = owner
        self._is_resumed = is_resumed
        self._open_store = open_store
        cache_store = open_store(spec.cache_url)
        self._cache = Cache(cache_store, spec.item_id, spec.epoch)
        self._digesting = Digesting(cache_store, spec.item_id)
        self._acknowledgements = Acknowledgements(self._cache, clock)
        self._catalog_store = open_store(spec.catalog_url)
        self._stores = {replica.disk: open_store(replica.target_url) for replica in spec.replicas}
        compression = known_compression(spec.compression)
        self._arrivals = Arrivals(self._cache, self._stores, clock, self._note_restart)
        self._fetching = Fetching(self._cache, spec.item_id, self._stores, copiers=copiers)
        self._replicas = Replicas(self._stores, compression)
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._is_catalog_stale = False
        self._numbers = Numbers(0)
        self._ended: Fenced | None = None
        self._points: tuple[RecoveryPoint, ...] = ()
        self._newest: AppliedCut | None = None
        self._quarantined: frozenset[str] = frozenset()
        self._awaits_restart = False
        self._doubted: Mapping[str, frozenset[int]] = {}
        self._scrubbed_version: int | None = None
        self._pins = PinWatch(self._catalog_store, spec.item_id, clock.monotonic)
        self._holds = HoldWatch(self._catalog_store, spec.item_id, clock.monotonic)
        self._space = Space(
            self,
            spec.item_id,
            self._catalog_store,
            self._stores,
            clock,
            compression=compression,
        )

    def close(self) -> None:
        """End the threads. Takes nothing back; not to be called during a step."""
        self._fetching.close()
        self._replicas.forget()

    @property
    def points(self) -> tuple[RecoveryPoint, ...]:
        """The recovery points as last written or read, oldest first."""
        return self._points

    @property
    def quarantined(self) -> frozenset[str]:
        """Ids of the points that touch something damaged, as last written or read."""
        return self._quarantined

    @property
    def awaits_restart(self) -> bool:
        """Say whether the newest state is damaged and the source has not begun to send it anew."""
        return self._awaits_restart

    @property
    def applied_sequence(self) -> int:
        """The newest cut of this epoch in the catalog; 0 if none or not known yet."""
        return self._head().sequence

    # -------------------------------------------------------------------------- verbs

    def take_over(self) -> None:
        """Become the item's only writer; every earlier one is refused from now on.

        Raises: Fenced if the item has a newer epoch; Unavailable.
        """
        with self._lock:
            self._check_not_ended()
            self._guarded(lambda _: None)

    def step(self) -> StepResult:
        """Apply the cuts that wait in the cache, as many as one catalog record may take.

        Raises: Fenced, for ever: another writer or a newer epoch; Unavailable: a store is gone,
        call again; ChainBroken: the next cut is not what it should be, nothing of it is listed,
        and when that was found twice the source is asked to begin a new chain; DataIntegrity: what
        no new chain could mend.
        """
        with self._lock:
            self._check_not_ended()
            return self._guarded(self._step)

    def drop_points(
        self, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]]
    ) -> tuple[str, ...]:
        """Drop the points whose ids `plan` returns and return these ids. Raises: as `step`."""
        with self._lock:
            self._check_not_ended()
            return self._guarded(lambda catalog: self._drop_points(catalog, plan))

    def retire_points(
        self, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]]
    ) -> tuple[str, ...]:
        """Drop the points whose ids `plan` returns, except those that somebody reads or holds: what
        a VM was started from must be found when its export starts anew. Return the ids.

        plan: may be called several times. Used by one thread at a time. Raises: as `step`;
        KeyMissing.
        """

        def retired(points: Sequence[RecoveryPoint]) -> Sequence[str]:
            if not plan(points):
                return ()  # an idle VM asks its stores for nothing
            return plan_around_held(points, self.points_read(), plan)

        return self.drop_points(retired)

    def points_read(self) -> frozenset[str]:
        """Return the ids of the points that somebody is reading, or will read again after a
        restart. Used by one thread at a time. Raises: Unavailable, KeyMissing."""
        return self._pins.points() | self._holds.points()

    def scrub(
        self, *, dry_run: bool = False, is_stopping: Callable[[], bool] = lambda: False
    ) -> ScrubReport:
        """Read everything stored and return what is damaged. Steps go on meanwhile.

        Unless it is a dry run, the points that touch it are quarantined, those that no longer do
        released, and if the newest state is damaged the source is asked to sweep everything and to
        send what differs from what is whole.
        Raises: as `step`; KeyMissing.
        """
        catalog = Catalog.open(self._catalog_store, self._spec.item_id)
        self._scrubbed_version = catalog.version
        catalog.refresh()
        try:
            found = read_everything(catalog, self._stores, is_stopping=is_stopping)
        finally:
            self._scrubbed_version = None
        if not dry_run:
            with self._lock:
                self._check_not_ended()
                self._guarded(lambda own: self._quarantine(own, found))
        for sentence in found.report.damaged:
            self._log.error("object_damaged", object=sentence)
        return replace(found.report, heals=found.report.heals and not dry_run)

    def _quarantine(self, catalog: Catalog, found: Findings) -> None:
        """Have the catalog say which points are damaged."""
        affected = set(found.report.quarantined) | found.lie_upon_damage(catalog.points)
        self._arrivals.look_at_once()
        self._doubted = found.segments
        catalog.quarantine(affected, released=catalog.quarantined - affected)
        self._remember(catalog)
        self._replicas.forget()

    # -------------------------------------------------------------------------- space

    @property
    def is_space_due(self) -> bool:
        """Say whether `reclaim` may find something to do. Asks no store."""
        return self._catalog is not None and self._space.is_due(self._catalog.version)

    def reclaim(
        self,
        *,
        is_thorough: bool = False,
        dry_run: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> SpaceReport:
        """Compact the log and delete what nobody needs, as `Space.round`. Steps go on meanwhile.

        Raises: as `step`; Conflict while another one is under way.
        """
        return self._space.round(
            is_thorough=is_thorough,
            dry_run=dry_run,
            held_version=self._scrubbed_version,
            is_stopping=is_stopping,
        )

    def stand(self) -> Stand:
        """Return how the log stands, with what this owner may still put into it. Raises: as `step`.

        What is being stored late, by a step that gave it up, is never given up here.
        """
        with self._lock:
            self._check_not_ended()
            return self._guarded(self._stand)

    def _stand(self, catalog: Catalog) -> Stand:
        return Stand(
            state=catalog.state,
            numbers=self._numbers,
            settled=self._fetching.settled(self._numbers),
            copied=self._fetching.copied,
        )

    def compact(self, made: DiskCompaction) -> bool:
        """Make a disk's compacted log part of the catalog, and say whether it still fits: false
        when the log it was made of is another one by now. Raises: as `step`."""
        with self._lock:
            self._check_not_ended()
            return self._guarded(lambda catalog: self._compact(catalog, made))

    def _compact(self, catalog: Catalog, made: DiskCompaction) -> bool:
        log = compacted_log(catalog.state, made) if made.claim == catalog.claim else None
        if log is None or catalog.healing[1] is not None:
            return False
        self._replicas.forget()
        with self._doubting():
            catalog.compact(made.disk, log)
        self._remember(catalog)
        return True

    def free(self, choose: Callable[[Stand], Garbage]) -> Garbage:
        """Have the catalog say that what `choose` returns is being deleted, and return it: from
        then on no version can name it. Nothing is said of nothing. Raises: as `step`."""
        with self._lock:
            self._check_not_ended()
            return self._guarded(lambda catalog: self._free(catalog, choose(self._stand(catalog))))

    def raise_floor(self, version: int, sha256: str) -> bool:
        """Have the catalog begin at that version, as `Catalog.raise_floor`. Raises: as `step`."""
        with self._lock:
            self._check_not_ended()
            return self._guarded(lambda own: self._raise_floor(own, version, sha256))

    def _raise_floor(self, catalog: Catalog, version: int, sha256: str) -> bool:
        with self._doubting():
            return catalog.raise_floor(version, sha256)

    def _free(self, catalog: Catalog, garbage: Garbage) -> Garbage:
        if garbage.names:
            with self._doubting():
                catalog.free(objects=len(garbage.names), bytes=garbage.bytes)
        return garbage

    # -------------------------------------------------------------------------- the end

    def hand_over(self, cache_url: str, seconds: float) -> None:
        """Apply all that the cache still has, and have that other cache say how far that came: the
        source, which must send nothing meanwhile, goes on there. Idempotent.

        Raises: as `step`; Unavailable when that takes longer than `seconds`; Conflict while nothing
        of this epoch has been applied.
        """
        deadline = self._clock.monotonic() + seconds
        while not self.step().idle:
            if self._clock.monotonic() > deadline:
                raise Unavailable(
                    f"what waits in the cache is not all applied within {seconds:g} s",
                    hint="try again when the recovery points are younger",
                )
        with self._lock:
            head = self._head()
            if not head.sequence:
                raise Conflict("nothing has been replicated yet", hint="try again in a minute")
            store = self._open_store(cache_url)
            erase_cache(store, self._spec.item_id)
            Cache(store, self._spec.item_id, self._spec.epoch).mark_applied(head)

    def seal(self, new_epoch: int, drain_seconds: float) -> RecoveryPoint:
        """Return the newest point after applying what the cache still gives within the time.

        From then on the catalog refuses anything older than `new_epoch`, and this processor has
        ended. Idempotent; a processor of a later worker may be asked again.
        Raises: NotFound (no point yet; nothing sealed), Fenced, Unavailable.
        """
        is_drained = drain_aside(
            lambda: self._ended is not None or self.step().idle,
            self._clock,
            seconds=drain_seconds,
        )
        if is_drained and self._lock.acquire(timeout=drain_seconds):
            try:
                if self._catalog is None:
                    self._catalog = Catalog.open(self._catalog_store, self._spec.item_id)
                return self._sealed(self._catalog, new_epoch)
            finally:
                self._lock.release()
        # a step that hangs, of whoever's, holds the lock; a claim of ours shuts it out
        catalog = Catalog.open(self._catalog_store, self._spec.item_id)
        return self._sealed(catalog, new_epoch)

    def _sealed(self, catalog: Catalog, new_epoch: int) -> RecoveryPoint:
        point = seal_catalog(catalog, epoch=self._spec.epoch, new_epoch=new_epoch)
        self._points = catalog.points
        self._ended = Fenced(f"item {self._spec.item_id} has been sealed for epoch {new_epoch}")
        self._log.info("item_sealed", new_epoch=new_epoch, point=point.id)
        return point

    # -------------------------------------------------------------------------- being the writer

    def _check_not_ended(self) -> None:
        if self._ended is not None:
            raise Fenced(self._ended.message, hint=self._ended.hint)

    def _guarded(self, verb: Callable[[Catalog], T]) -> T:
        """Return what `verb` returns, given a catalog of which this processor is the owner.

        Fenced ends the processor. What looks like damage may be another owner's doing: who lost
        the item is told that instead.
        """
        try:
            catalog = self._owned_catalog()
            try:
                return verb(catalog)
            except DataIntegrity as error:
                self._is_catalog_stale = True
                catalog.refresh()
                catalog.check_owner()
                if isinstance(error, ChainBroken):
                    self._arrivals.refuse(self._head())
                raise
        except Fenced as error:
            self._ended = error
            self._log.warning("item_fenced", problem=str(error))
            raise

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """What fails within may have been written or not: the catalog is read again before use."""
        try:
            yield
        except BaseException:
            self._is_catalog_stale = True
            raise

    def _owned_catalog(self) -> Catalog:
        """Return the catalog, taken over if it is not ours yet, read again after a failure."""
        if self._catalog is None or self._numbers.is_running_out:
            self._catalog = self._take_over()
        elif self._is_catalog_stale:
            self._catalog.refresh()
            self._catalog.check_owner()
            self._remember(self._catalog)
        self._is_catalog_stale = False
        return self._catalog

    def _take_over(self) -> Catalog:
        catalog = Catalog.open(self._catalog_store, self._spec.item_id)
        claim = catalog.take_over(
            self._spec.epoch,
            owner=self._owner,
            disk_urls={replica.disk: replica.target_url for replica in self._spec.replicas},
            about=self._spec.about,
            is_resumed=self._is_resumed,
        )
        self._is_resumed = False
        self._numbers = Numbers(claim)
        self._replicas.forget()
        self._digesting.forget()
        self._fetching.forget()
        self._acknowledgements.doubt()
        self._remember(catalog)
        self._log.info("item_taken_over", claim=claim, applied=self.applied_sequence)
        return catalog

    def _remember(self, catalog: Catalog) -> None:
        self._points, self._newest = catalog.points, catalog.newest_cut
        self._quarantined = catalog.quarantined
        self._awaits_restart, _ = catalog.healing
        self._fetching.listed(self._newest.position if self._newest else (0, 0))

    def _head(self) -> ChainHead:
        newest = self._newest
        if newest is None or newest.epoch != self._spec.epoch:
            return ChainHead(0, "")
        return ChainHead(newest.sequence, newest.manifest_sha256)

    # -------------------------------------------------------------------------- a step

    def _step(self, catalog: Catalog) -> StepResult:
        self._acknowledgements.clean(self._head())
        cuts = self._arrivals.waiting(self._head(), awaits_restart=self._awaits_restart)
        if not cuts:
            return StepResult(idle=not self._answer_digests(catalog))
        ready, failure = self._fetching.fetch(cuts, self._numbers)
        if failure is not None and not ready:
            raise failure
        known = len(self._points)
        self._commit(catalog, ready)
        for cut, _ in ready:
            self._digesting.take(cut.manifest)
        self._answer_digests(catalog)
        self._acknowledgements.acknowledge(self._head(), [cut for cut, _ in ready])
        return StepResult(
            cuts_applied=len(ready),
            bytes=sum(cut.stored_bytes for cut, _ in ready),
            points=self._points[known:],
            idle=False,
        )

    def _answer_digests(self, catalog: Catalog) -> bool:
        """Do a slice of what the source has asked for; say whether there was something."""
        if not self._digesting.is_due:
            return False
        is_healing = catalog.healing[1] is not None
        whole = {disk: frozenset[int]() for disk in self._stores}
        replicas = self._replicas.opened(catalog, self._numbers, self._digesting.disks)
        self._digesting.work(replicas, self._doubted if is_healing else whole)
        return True

    def _note_restart(self, cut: ArrivedCut) -> None:
        self._acknowledgements.doubt()  # remove what the new chain has made void
        self._fetching.forget()
        sequence = cut.manifest.sequence
        self._log.info("chain_restarted", after=self.applied_sequence, sequence=sequence)

    # -------------------------------------------------------------------------- making it count

    def _commit(self, catalog: Catalog, ready: Sequence[FetchedCut]) -> None:
        """Make the cuts part of the catalog, their points listed, all or none."""
        try:
            catalog.append_cuts(self._replicas.apply(catalog, self._numbers, ready))
        except BaseException as error:
            self._replicas.forget()
            self._is_catalog_stale = True
            if isinstance(error, Conflict) and not isinstance(error, Fenced):
                raise Unavailable(f"the catalog has to be read again: {error.message}") from error
            raise
        self._remember(catalog)

    def _drop_points(
        self, catalog: Catalog, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]]
    ) -> tuple[str, ...]:
        dropped = tuple(plan(catalog.points))
        with self._doubting():
            catalog.drop_points(dropped)
        self._remember(catalog)
        return dropped
