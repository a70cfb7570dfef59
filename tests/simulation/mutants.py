"""Defects planted in production code, one at a time: the campaign must catch each.

A mutant is a context in which the code does one thing wrong that a maintainer might get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from leeward.core.errors import Unavailable
from leeward.mobility import cut as cut_module
from leeward.mobility.journal import KIND_ZEROES
from leeward.mobility.upload import Uploader
from leeward.model.recovery import Consistency
from leeward.processor import compaction as compaction_module
from leeward.processor import compaction_plan, garbage, trimming
from leeward.processor import item as item_module
from leeward.processor import replicas as replicas_module
from leeward.processor.apply import store_segment
from leeward.processor.item import ItemProcessor
from leeward.processor.old_blocks import OldBlocks
from leeward.replica import catalog_state, records, snapshots
from leeward.replica.catalog import Catalog
from leeward.replica.layout import NUMBER_BITS
from leeward.replica.manifest import SegmentRef
from leeward.replica.pins import PinWatch

Mutant = Callable[[], AbstractContextManager[None]]
MUTANTS: dict[str, Mutant] = {}


def mutant(make: Callable[[], Iterator[None]]) -> Mutant:
    """Register the defect under its function's name."""
    planted = contextmanager(make)
    MUTANTS[make.__name__.replace("_", "-")] = planted
    return planted


@mutant
def manifest_before_its_segments() -> Iterator[None]:
    """A segment that could not be stored is named by the manifest all the same."""
    send = Uploader._send

    def careless(self: Uploader, name: str, header: Any, content: Any) -> SegmentRef:
        try:
            return send(self, name, header, content)
        except Unavailable:
            return SegmentRef(name=name, bytes=64, sha256="0" * 64, unit=content.unit)

    with patch.object(Uploader, "_send", careless):
        yield


@mutant
def older_epoch_accepted() -> Iterator[None]:
    """The catalog takes claims and cuts of any epoch."""
    with patch.object(Catalog, "_check_epoch", lambda self, epoch: None):
        yield


@mutant
def applied_before_the_catalog() -> Iterator[None]:
    """The source is told before the catalog has the cuts."""
    commit = ItemProcessor._commit

    def hasty(self: ItemProcessor, catalog: Catalog, ready: Any) -> None:
        self._cache.mark_applied(ready[-1][0].head)
        commit(self, catalog, ready)

    with patch.object(ItemProcessor, "_commit", hasty):
        yield


@mutant
def cache_emptied_before_the_catalog() -> Iterator[None]:
    """Cuts are removed from the cache before the catalog has them."""
    commit = ItemProcessor._commit

    def hasty(self: ItemProcessor, catalog: Catalog, ready: Any) -> None:
        self._cache.remove_cuts([cut for cut, _ in ready])
        commit(self, catalog, ready)

    with patch.object(ItemProcessor, "_commit", hasty):
        yield


@mutant
def catalog_before_its_segments() -> Iterator[None]:
    """Segments of blocks are stored after the catalog has named them."""
    commit = ItemProcessor._commit
    waiting: list[Callable[[], object]] = []

    class _Later:
        def __init__(self, store: Any) -> None:
            self._store = store

        def create(self, name: str, data: Any) -> None:
            waiting.append(lambda: self._store.create(name, data))

    def deferred(store: Any, *rest: Any) -> Any:
        return store_segment(_Later(store), *rest)  # type: ignore[arg-type]

    def commit_then_store(self: ItemProcessor, catalog: Catalog, ready: Any) -> None:
        try:
            commit(self, catalog, ready)
            for create in waiting:
                create()
        finally:
            waiting.clear()

    with (
        patch("leeward.processor.fetching.store_segment", deferred),
        patch.object(ItemProcessor, "_commit", commit_then_store),
    ):
        yield


@mutant
def sectors_without_their_old_block() -> Iterator[None]:
    """What a write of sectors leaves of a block is taken for zeros."""
    read = OldBlocks.read

    def blank(self: OldBlocks, blocks: Any) -> Any:
        return np.zeros_like(read(self, blocks))

    with patch.object(OldBlocks, "read", blank):
        yield


@mutant
def zeroes_dropped() -> Iterator[None]:
    """Writes of zeroes never arrive."""
    pieces = cut_module._journal_pieces

    def forgetful(records: Any, buffer_of: Any) -> Any:
        kept = records.copy()
        kept["length"][kept["kind"] == KIND_ZEROES] = 0
        return pieces(kept, buffer_of)

    with patch.object(cut_module, "_journal_pieces", forgetful):
        yield


@mutant
def first_writer_wins() -> Iterator[None]:
    """Of two writes to one place within a cut the earlier one counts."""
    with_sweep = cut_module._with_sweep

    def reversed_order(*arguments: Any) -> Any:
        pieces = with_sweep(*arguments)
        return pieces.select(np.arange(pieces.start.size)[::-1])

    with patch.object(cut_module, "_with_sweep", reversed_order):
        yield


@mutant
def sweep_over_a_newer_write() -> Iterator[None]:
    """What a sweep has read goes over what was written after the read began."""
    with_sweep = cut_module._with_sweep

    def late(journal: Any, positions: Any, reads: Any, first_source: int) -> Any:
        last = int(positions[-1]) + 1 if len(positions) else 0
        moved = [(index, replace(read, position=last)) for index, read in reads]
        return with_sweep(journal, positions, moved, first_source)

    with patch.object(cut_module, "_with_sweep", late):
        yield


@mutant
def checkpoint_without_the_last_cut() -> Iterator[None]:
    """A map is stored before the cut that it is to include has been brought in."""
    apply = replicas_module._applied
    stored: dict[str, str] = {}

    def early(replicas: Any, cut: Any, fetched: Any) -> Any:
        stored.clear()
        for name, disk in replicas.items():
            if disk.needs_checkpoint:
                stored[name] = disk.checkpoint(cut.manifest.epoch)
        return apply(replicas, cut, fetched)

    def attach(replicas: Any, cut: Any) -> Any:
        disks = tuple(
            replace(disk, checkpoint=stored.get(disk.disk, disk.checkpoint)) for disk in cut.disks
        )
        return replace(cut, disks=disks)

    with (
        patch.object(replicas_module, "_applied", early),
        patch.object(replicas_module, "_with_checkpoints", attach),
    ):
        yield


@mutant
def claim_not_renewed() -> Iterator[None]:
    """A worker that takes over goes on under the claim of the one before."""
    take_over = Catalog.take_over

    def reuse(self: Catalog, epoch: int, **more: Any) -> int:
        self.refresh()
        if self._state.claim and self.epoch == epoch:
            self._claim = self._state.claim
            return self._claim
        return take_over(self, epoch, **more)

    with patch.object(Catalog, "take_over", reuse):
        yield


@mutant
def segments_in_any_order() -> Iterator[None]:
    """A point is opened with its newest segments first."""
    disk_log = catalog_state.State.disk_log

    def backwards(self: Any, disk: str, index: int) -> tuple[str, tuple[int, ...]]:
        checkpoint, segments = disk_log(self, disk, index)
        return checkpoint, segments[::-1]

    with patch.object(catalog_state.State, "disk_log", backwards):
        yield


@mutant
def unfinished_cuts_listed() -> Iterator[None]:
    """Cuts that are data only count as recovery points."""
    apply = replicas_module._applied

    def promote(replicas: Any, cut: Any, fetched: Any) -> Any:
        applied = apply(replicas, cut, fetched)
        return replace(applied, consistency=Consistency.CRASH)

    with patch.object(replicas_module, "_applied", promote):
        yield


@mutant
def lost_replies_taken_for_failures() -> Iterator[None]:
    """A manifest whose reply was lost is published again under the next number."""
    publish = Uploader._publish

    def impatient(self: Uploader, pending: Any) -> None:
        try:
            publish(self, pending)
        except Unavailable:
            pending.sequence += 1
            pending.manifest = b""
            raise

    with patch.object(Uploader, "_publish", impatient):
        yield


@mutant
def compaction_ignores_pins() -> Iterator[None]:
    """What a reader has pinned is deleted all the same."""
    with patch.object(PinWatch, "versions", lambda self: []):
        yield


@mutant
def grace_ignored() -> Iterator[None]:
    """What has become garbage is deleted at once."""
    with patch.object(garbage, "GRACE_SECONDS", 0.0):
        yield


@mutant
def live_run_dropped() -> Iterator[None]:
    """A compaction leaves out a run that is live, and nobody compares."""
    make = compaction_plan._group

    def careless(pieces: Any, ids: Any) -> Any:
        return make(pieces[1:] if len(pieces) > 2 else pieces, ids)

    with (
        patch.object(compaction_plan, "_group", careless),
        patch.object(compaction_module, "check_window", lambda *_: None),
        patch.object(compaction_module, "check_maps", lambda *_: None),
    ):
        yield


@mutant
def newer_cuts_compacted_away() -> Iterator[None]:
    """A compacted log replaces the log as it is now by what it was when the compaction began."""

    def hasty(state: Any, made: Any) -> Any:
        positions = {cut.position for cut, _ in state.disk_entries(made.disk)}
        return [logged for at, logged in made.log.items() if at in positions]

    with patch.object(item_module, "compacted_log", hasty):
        yield


@mutant
def maps_of_victims_kept() -> Iterator[None]:
    """Maps that refer to segments which were written anew stay in the log."""
    store_maps = compaction_module.DiskCompactor._store_maps

    def forgetful(self: Any, log: Any, new: Any, *rest: Any) -> Any:
        store_maps(self, log, new, *rest)
        return [
            replace(entry, checkpoint=old.checkpoint) for entry, old in zip(new, log, strict=True)
        ]

    with patch.object(compaction_module.DiskCompactor, "_store_maps", forgetful):
        yield


@mutant
def copied_segments_are_garbage() -> Iterator[None]:
    """What a step has stored and not listed yet is deleted."""

    def unknown(self: Any, number: int) -> bool:
        return bool(number >> NUMBER_BITS > self.numbers.claim)

    with patch.object(garbage.Stand, "may_become_named", unknown):
        yield


@mutant
def owner_does_not_look_at_the_floor() -> Iterator[None]:
    """A worker that has created the next version believes it, whatever has been deleted."""
    with patch.object(Catalog, "_counts", lambda self, version: True):
        yield


@mutant
def reader_does_not_look_at_the_floor() -> Iterator[None]:
    """Where no next version is, the catalog ends, even if that has been deleted."""

    def blind(self: Catalog) -> None:
        self._state, _, problem = records.read_on(self._store, self._state)
        if problem is not None:
            raise problem

    with patch.object(Catalog, "refresh", blind):
        yield


@mutant
def floor_after_the_deletes() -> Iterator[None]:
    """Records are deleted up to where the floor will be, and then it is raised."""
    raise_floor = trimming.CatalogTrimmer._raise_floor

    def late(self: Any, state: Any) -> Any:
        versions = snapshots.snapshot_versions(self._store, self._item_id)[-3:]
        end = versions[0] if versions else 0
        self._clear(replace(state.floor, previous=end), is_thorough=True, is_stopping=lambda: False)
        return raise_floor(self, state)

    with patch.object(trimming.CatalogTrimmer, "_raise_floor", late):
        yield


@mutant
def deletes_above_the_floor() -> Iterator[None]:
    """Everything up to the newest version but one is deleted."""
    clear = trimming.CatalogTrimmer._clear

    def greedy(self: Any, floor: Any, **how: Any) -> Any:
        newest = self._owner.stand().state.version
        return clear(self, replace(floor, previous=newest if floor.number else 0), **how)

    with patch.object(trimming.CatalogTrimmer, "_clear", greedy):
        yield


@mutant
def floor_before_its_snapshot() -> Iterator[None]:
    """The newest version becomes the floor, and no snapshot has been stored yet."""

    def at_once(self: Any, state: Any) -> Any:
        self._owner.raise_floor(state.version, state.sha256)
        return self._owner.stand().state

    with (
        patch.object(trimming.CatalogTrimmer, "_raise_floor", at_once),
        patch.object(snapshots.Snapshots, "has", lambda *_: True),
        patch.object(snapshots.Snapshots, "store", lambda *_: None),
    ):
        yield
