"""Keeping one item's space in the target bounded: compaction, then deleting what it leaves, and
old records of the catalog.

Owns: what a round does and when one is due. Must not know: how a log is compacted or garbage told,
threads. Driven by loop.py, beside the item's steps, and by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from leeward.core.clock import Clock
from leeward.core.errors import Conflict, DataIntegrity
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.processor.compaction import DiskCompactor
from leeward.processor.disk_log import DiskCompaction
from leeward.processor.garbage import GRACE_SECONDS, Collected, Collector, LogOwner, Stand
from leeward.processor.trimming import CatalogOwner, CatalogTrimmer
from leeward.protocol.messages import SpaceReport
from leeward.replica.segment import BLOCKS, Compression

ROUNDS_MAX = 64
"""Of one disk, when everything that can be freed is to be freed."""
COLLECT_SECONDS = GRACE_SECONDS / 2
"""How often what is stored is listed while nothing has been compacted."""


class SpaceOwner(LogOwner, CatalogOwner, Protocol):
    """The item's one writer, as far as compaction and deleting need it."""

    def compact(self, made: DiskCompaction) -> bool: ...


class Space:
    """One item's space. Thread-safe; rounds exclude each other."""

    def __init__(
        self,
        owner: SpaceOwner,
        item_id: str,
        catalog_store: ObjectStore,
        stores: Mapping[str, ObjectStore],
        clock: Clock,
        *,
        compression: Compression,
    ) -> None:
        self._owner = owner
        self._item_id = item_id
        self._clock = clock
        self._collector = Collector(owner, item_id, catalog_store, stores, clock)
        self._compactors = {
            disk: DiskCompactor(store, item_id, disk, compression=compression, sleep=clock.sleep)
            for disk, store in stores.items()
        }
        self._trimmer = CatalogTrimmer(owner, item_id, catalog_store)
        self._running = threading.Lock()
        self._version = -1
        self._collect_at = float("-inf")
        self._log = get_logger(item=item_id)

    def is_due(self, version: int) -> bool:
        """Say whether a round may find something to do at that catalog version. Asks no store."""
        if version != self._version or self._trimmer.is_waiting:
            return True
        return self._collector.is_waiting and self._clock.monotonic() >= self._collect_at

    def round(
        self,
        *,
        is_thorough: bool = False,
        dry_run: bool = False,
        held_version: int | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> SpaceReport:
        """Compact what is worth it, delete what is due, and return how the space stands.

        is_thorough: compact all that can be, list what is stored. dry_run: only say what that would
        be. held_version: somebody in this process reads the item as of that catalog version.
        Raises: Conflict while another round is under way; Fenced; Unavailable; DataIntegrity.
        """
        if not self._running.acquire(blocking=False):
            raise Conflict(
                "a compaction of this item is under way already", hint="wait for its end"
            )
        try:
            stand = self._owner.stand()
            made: list[DiskCompaction] = []
            for disk in self._compactors:
                made += self._compact_disk(
                    disk, is_thorough=is_thorough, dry_run=dry_run, is_stopping=is_stopping
                )
            collected = Collected()
            if made or is_thorough or self._clock.monotonic() >= self._collect_at:
                collected = self._collector.collect(
                    dry_run=dry_run, held_version=held_version, is_stopping=is_stopping
                )
                self._collect_at = self._clock.monotonic() + COLLECT_SECONDS
            trimmed = 0
            if not dry_run:
                trimmed = self._trimmer.trim(is_thorough=is_thorough, is_stopping=is_stopping)
                self._version = stand.state.version if made else self._stand().state.version
            catalog_bytes = self._trimmer.stored_bytes() if is_thorough else 0
            report = self._report(made, collected)
            return replace(report, catalog_bytes=catalog_bytes, trimmed_records=trimmed)
        finally:
            for compactor in self._compactors.values():
                compactor.forget()
            self._running.release()

    def _stand(self) -> Stand:
        return self._owner.stand()

    def _compact_disk(
        self, disk: str, *, is_thorough: bool, dry_run: bool, is_stopping: Callable[[], bool]
    ) -> list[DiskCompaction]:
        compactor, made = self._compactors[disk], list[DiskCompaction]()
        for _ in range(ROUNDS_MAX if is_thorough else 1):
            stand = self._stand()
            if stand.state.healing()[1] is not None:
                break  # what is damaged is being replaced
            try:
                compactor.survey(stand.state)
                if dry_run or not (is_thorough or compactor.is_worthwhile()):
                    break
                plans = compactor.plan(stand.state, is_thorough=is_thorough)
                if not plans:
                    break
                compaction = compactor.make(
                    stand.state, plans, stand.numbers, is_stopping=is_stopping
                )
            except (DataIntegrity, Conflict) as error:
                self._log.warning("disk_not_compacted", disk=disk, problem=str(error))
                break
            if not self._owner.compact(compaction):
                break
            made.append(compaction)
            self._log.info(
                "disk_compacted",
                disk=disk,
                victims=compaction.victims,
                moved_bytes=compaction.moved_bytes,
            )
        return made

    def _report(self, made: list[DiskCompaction], collected: Collected) -> SpaceReport:
        figures = [compactor.figures for compactor in self._compactors.values()]
        return SpaceReport(
            item_id=self._item_id,
            stored_bytes=collected.stored_bytes,
            live_bytes=sum(each.live for each in figures) * BLOCKS,
            dead_bytes=sum(each.dead for each in figures) * BLOCKS,
            reclaimable_bytes=sum(each.freeable for each in figures) * BLOCKS,
            garbage_bytes=collected.garbage_bytes,
            freed_objects=collected.freed_objects,
            freed_bytes=collected.freed_bytes,
            rewritten_bytes=sum(each.written_bytes for each in made),
            pins=collected.pins,
        )
