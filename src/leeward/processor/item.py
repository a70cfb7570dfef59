"""One item's cuts become recovery points: drain, verify, apply, list, acknowledge.

Owns: the order in which things become durable, and being the item's only writer. Must not know:
the service, schedules, threads of its own lifetime. Sits in the worker, driven by loop.py.

Order: segments, then maps, then the catalog record that lists them, then the applied marker, then
removal from the cache. Whatever dies in between is done again by whoever comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TypeVar

from leeward.core.clock import Clock
from leeward.core.errors import (
    ChainBroken,
    Conflict,
    DataIntegrity,
    Fenced,
    LeewardError,
    Unavailable,
)
from leeward.model.recovery import RecoveryPoint
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.processor.acknowledge import Acknowledgements
from leeward.processor.apply import (
    DiskReplica,
    Fetched,
    Numbers,
    StoredSegment,
    check_extents,
    open_replica,
    store_segment,
)
from leeward.processor.digesting import Digesting
from leeward.processor.disk_log import DiskCompaction, compacted_log
from leeward.processor.drain import ArrivedCut, Cache, ChainHead
from leeward.processor.garbage import Garbage, Stand
from leeward.processor.held_points import plan_around_held
from leeward.processor.scrub import Findings, read_everything
from leeward.processor.seal import drain_aside, seal_catalog
from leeward.processor.space import Space
from leeward.protocol.fabric import ProcessingSpec
from leeward.protocol.messages import ScrubReport, SpaceReport
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk
from leeward.replica.frame_codec import known_compression
from leeward.replica.holds import HoldWatch
from leeward.replica.manifest import SegmentRef
from leeward.replica.pins import PinWatch
from leeward.replica.segment import BLOCKS, SegmentHeader

BATCH_CUTS_MAX = 32
BATCH_BYTES_MAX = 128 << 20
"""Stored bytes of the cuts that one catalog record takes, unless one cut alone has more."""
GAP_SECONDS = 30.0
RESTART_SECONDS = 1.0
"""Between looks for the cut with which the source begins anew."""
FETCH_SECONDS = 300.0
"""How long the segments of a batch may take before the step is to be made again."""

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
        cache_store = open_store(spec.cache_url)
        self._cache = Cache(cache_store, spec.item_id, spec.epoch)
        self._digesting = Digesting(cache_store, spec.item_id)
        self._acknowledgements = Acknowledgements(self._cache, clock)
        self._catalog_store = open_store(spec.catalog_url)
        self._stores = {replica.disk: open_store(replica.target_url) for replica in spec.replicas}
        self._pool = ThreadPoolExecutor(copiers, thread_name_prefix=f"copy-{spec.item_id}")
        self._log = get_logger(item=spec.item_id, epoch=spec.epoch)
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._is_catalog_stale = False
        self._numbers = Numbers(0)
        self._replicas: dict[str, DiskReplica] | None = None
        self._copied: dict[str, StoredSegment] = {}
        self._gap_at = 0.0
        self._broken_at: ChainHead | None = None
        self._ended: Fenced | None = None
        self._points: tuple[RecoveryPoint, ...] = ()
        self._newest: AppliedCut | None = None
        self._quarantined: frozenset[str] = frozenset()
        self._awaits_restart = False
        self._doubted: Mapping[str, frozenset[int]] = {}
        self._late: set[Future[Fetched]] = set()
        self._scrubbed_version: int | None = None
        self._pins = PinWatch(self._catalog_store, spec.item_id, clock.monotonic)
        self._holds = HoldWatch(self._catalog_store, spec.item_id, clock.monotonic)
        self._space = Space(
            self,
            spec.item_id,
            self._catalog_store,
            self._stores,
            clock,
            compression=known_compression(spec.compression),
        )

    def close(self) -> None:
        """End the threads. Takes nothing back; not to be called during a step."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._forget()

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
        self._gap_at = 0.0
        self._doubted = found.segments
        catalog.quarantine(affected, released=catalog.quarantined - affected)
        self._remember(catalog)
        self._forget()

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
        self._late = {job for job in self._late if not job.done()}
        return Stand(
            state=catalog.state,
            numbers=self._numbers,
            settled=0 if self._late else self._numbers.taken,
            copied=frozenset(stored.segment_id for stored in list(self._copied.values())),
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
        self._forget()
        try:
            catalog.compact(made.disk, log)
        except BaseException:
            self._is_catalog_stale = True
            raise
        self._remember(catalog)
        return True

    def free(self, choose: Callable[[Stand], Garbage]) -> Garbage:
        """Have the catalog say that what `choose` returns is being deleted, and return it: from
        then on no version can name it. Nothing is said of nothing. Raises: as `step`."""
        with self._lock:
            self._check_not_ended()
            return self._guarded(lambda catalog: self._free(catalog, choose(self._stand(catalog))))

    def _free(self, catalog: Catalog, garbage: Garbage) -> Garbage:
        if garbage.names:
            try:
                catalog.free(objects=len(garbage.names), bytes=garbage.bytes)
            except BaseException:
                self._is_catalog_stale = True
                raise
        return garbage

    # -------------------------------------------------------------------------- the end

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
                    self._refuse()
                raise
        except Fenced as error:
            self._ended = error
            self._log.warning("item_fenced", problem=str(error))
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
        self._forget()
        self._digesting.forget()
        self._copied.clear()
        self._acknowledgements.doubt()
        self._remember(catalog)
        self._log.info("item_taken_over", claim=claim, applied=self.applied_sequence)
        return catalog

    def _remember(self, catalog: Catalog) -> None:
        self._points, self._newest = catalog.points, catalog.newest_cut
        self._quarantined = catalog.quarantined
        self._awaits_restart, _ = catalog.healing

    def _forget(self) -> None:
        """Throw away the maps: they may be ahead of the catalog."""
        for replica in (self._replicas or {}).values():
            replica.close()
        self._replicas = None

    def _head(self) -> ChainHead:
        newest = self._newest
        if newest is None or newest.epoch != self._spec.epoch:
            return ChainHead(0, "")
        return ChainHead(newest.sequence, newest.manifest_sha256)

    # -------------------------------------------------------------------------- a step

    def _step(self, catalog: Catalog) -> StepResult:
        self._acknowledgements.clean(self._head())
        cuts = self._drain()
        if not cuts:
            return StepResult(idle=not self._answer_digests(catalog))
        ready, failure = self._fetch(cuts)
        if failure is not None and not ready:
            raise failure
        known = len(self._points)
        self._commit(catalog, ready)
        for cut, _ in ready:
            for _, ref in cut.segments:
                self._copied.pop(ref.name, None)
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
        self._digesting.work(self._open_replicas(catalog), self._doubted if is_healing else whole)
        return True

    def _refuse(self) -> None:
        """Ask the source for a new chain, once the same place was found broken twice: what was
        only read wrong costs no new sweep."""
        head = self._head()
        if self._broken_at != head:
            self._broken_at = head
            return
        try:
            self._cache.refuse(head)
        except LeewardError as error:
            self._log.warning("refusal_failed", problem=str(error))

    def _drain(self) -> list[ArrivedCut]:
        """Return the cuts that wait, each verified to follow the one before it."""
        if self._awaits_restart:
            return self._drain_restart(self._head())
        cuts: list[ArrivedCut] = []
        head, stored_bytes = self._head(), 0
        while len(cuts) < BATCH_CUTS_MAX and stored_bytes < BATCH_BYTES_MAX:
            try:
                cut = self._cache.next_cut(head, self._stores)
                if cut is None and not cuts:
                    cut = self._look_beyond_gap(head)
            except LeewardError:
                if cuts:
                    break  # met again, and reported, once these have been applied
                raise
            if cut is None:
                break
            cuts.append(cut)
            head = cut.head
            stored_bytes += cut.stored_bytes
        return cuts

    def _drain_restart(self, head: ChainHead) -> list[ArrivedCut]:
        """Return the cut with which the source begins anew, if it has arrived: nothing else may
        follow a state that is damaged. Until then the source is asked for it."""
        now = self._clock.monotonic()
        if now < self._gap_at:
            return []
        self._gap_at = now + RESTART_SECONDS
        self._cache.refuse(head, is_damaged=True)
        try:
            cut = self._cache.next_beyond_gap(head, self._stores)
        except ChainBroken:
            return []  # what the source had sent before it heard of it
        return [cut] if cut is not None and cut.manifest.restarts else []

    def _look_beyond_gap(self, head: ChainHead) -> ArrivedCut | None:
        """Return the cut that restarts the chain behind a gap, if there is one; looked for now and
        then. Raises: ChainBroken if later cuts wait for one that is missing."""
        now = self._clock.monotonic()
        if now < self._gap_at and self._broken_at != head:
            return None
        self._gap_at = now + GAP_SECONDS
        cut = self._cache.next_beyond_gap(head, self._stores)
        if cut is not None:
            self._acknowledgements.doubt()  # remove what the new chain has made void
            self._copied.clear()
            self._log.info("chain_restarted", after=head.sequence, sequence=cut.manifest.sequence)
        return cut

    def _fetch(
        self, cuts: Sequence[ArrivedCut]
    ) -> tuple[list[tuple[ArrivedCut, list[Fetched]]], BaseException | None]:
        """Return the cuts whose segments have all been verified, up to the first that failed,
        and how that one failed. Segments of blocks are in the target then."""
        jobs = [
            [self._pool.submit(self._fetch_segment, cut, disk, ref) for disk, ref in cut.segments]
            for cut in cuts
        ]
        late = wait([job for cut_jobs in jobs for job in cut_jobs], FETCH_SECONDS).not_done
        for job in late:
            job.cancel()
        self._late |= late
        if late:
            raise Unavailable(f"a store takes too long over {len(late)} segments")
        ready: list[tuple[ArrivedCut, list[Fetched]]] = []
        for cut, cut_jobs in zip(cuts, jobs, strict=True):
            failures = [error for job in cut_jobs if (error := job.exception()) is not None]
            if failures:
                return ready, failures[0]
            ready.append((cut, [job.result() for job in cut_jobs]))
        return ready, None

    def _fetch_segment(self, cut: ArrivedCut, disk: str, ref: SegmentRef) -> Fetched:
        """Verify one segment and, if it is of blocks, store it. Runs in the pool."""
        copied = self._copied.get(ref.name)
        if copied is not None:
            return copied  # a step that failed later had come this far
        segment = self._cache.read_segment(disk, cut.manifest.sequence, ref)
        check_extents(segment, cut.size_bytes(disk))
        if ref.unit != BLOCKS:
            return segment
        copied = store_segment(self._stores[disk], self._spec.item_id, disk, self._numbers, segment)
        self._copied[ref.name] = copied
        return copied

    # -------------------------------------------------------------------------- making it count

    def _commit(self, catalog: Catalog, ready: Sequence[tuple[ArrivedCut, list[Fetched]]]) -> None:
        """Make the cuts part of the catalog, their points listed, all or none."""
        try:
            replicas = self._open_replicas(catalog)
            applied = [self._apply(replicas, cut, fetched) for cut, fetched in ready]
            applied[-1] = self._with_checkpoints(replicas, applied[-1])
            catalog.append_cuts(applied)
        except BaseException as error:
            self._forget()
            self._is_catalog_stale = True
            if isinstance(error, Conflict) and not isinstance(error, Fenced):
                raise Unavailable(f"the catalog has to be read again: {error.message}") from error
            raise
        self._remember(catalog)

    def _open_replicas(self, catalog: Catalog) -> dict[str, DiskReplica]:
        if self._replicas is None:
            self._replicas = {
                disk: open_replica(
                    catalog,
                    store,
                    disk,
                    self._numbers,
                    compression=known_compression(self._spec.compression),
                )
                for disk, store in self._stores.items()
            }
        return self._replicas

    def _apply(
        self, replicas: dict[str, DiskReplica], cut: ArrivedCut, fetched: Sequence[Fetched]
    ) -> AppliedCut:
        """Bring the maps from the state before the cut to the state after it."""
        manifest = cut.manifest
        added: dict[str, list[int]] = {}
        for disk in manifest.disks:
            replicas[disk.disk].grow(disk.size_bytes)
            added[disk.disk] = replicas[disk.disk].begin(
                SegmentHeader(
                    manifest.item_id, disk.disk, manifest.epoch, manifest.sequence, BLOCKS
                )
            )
        for (disk_name, _), segment in zip(cut.segments, fetched, strict=True):
            added[disk_name] += replicas[disk_name].take(segment)
        return AppliedCut(
            epoch=manifest.epoch,
            sequence=manifest.sequence,
            manifest_sha256=cut.manifest_sha256,
            time_ns=manifest.time_ns,
            consistency=manifest.consistency,
            disks=tuple(
                AppliedDisk(
                    disk=disk.disk, size_bytes=disk.size_bytes, segments=tuple(added[disk.disk])
                )
                for disk in manifest.disks
            ),
            vm_config=manifest.vm_config,
            restarts=manifest.restarts,
            shared=manifest.shared,
            frozen=manifest.frozen,
        )

    def _with_checkpoints(self, replicas: dict[str, DiskReplica], cut: AppliedCut) -> AppliedCut:
        """Return the newest cut with a map stored for every disk that needs one."""
        disks = tuple(
            replace(disk, checkpoint=replicas[disk.disk].checkpoint(cut.epoch))
            if replicas[disk.disk].needs_checkpoint
            else disk
            for disk in cut.disks
        )
        return replace(cut, disks=disks)

    def _drop_points(
        self, catalog: Catalog, plan: Callable[[Sequence[RecoveryPoint]], Sequence[str]]
    ) -> tuple[str, ...]:
        dropped = tuple(plan(catalog.points))
        try:
            catalog.drop_points(dropped)
        except BaseException:
            self._is_catalog_stale = True
            raise
        self._remember(catalog)
        return dropped
