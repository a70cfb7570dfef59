"""Boot traces: what an item's guest read of its disks in the first minute of its last boots.

Owns: the trace's value, its object beside the catalog, how a new boot changes it. Must not know:
who reads, who fetches ahead. A trace is advice: whoever cannot read one does without. FORMAT.md 10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from leeward.core.errors import NotFound, ObjectExists, SegmentCorrupt
from leeward.object_store.store import ObjectStore
from leeward.replica.catalog import Catalog
from leeward.replica.envelope import (
    KIND_RECORD,
    KIND_SNAPSHOT,
    KIND_TRACE,
    open_envelope,
    parse_envelope,
    read_small_object,
    seal_envelope,
)
from leeward.replica.layout import record_name, snapshot_name, trace_name, traces_prefix
from leeward.replica.sealing import keys_of

RUNS_MAX = 16384
"""Runs of one disk, inclusive."""
CHUNKS_MAX = 8192
"""Chunks of one disk: 512 MiB."""
MISSES_MAX = 2
"""Boots in a row that may do without a chunk before it is left out."""
_CHUNK_NUMBER_MAX = 1 << 34

Run = tuple[int, int, int]
"""(first chunk, count, how many boots in a row have not read it). Chunks are 64 KiB of the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootTrace:
    """boot: which boot it was last recorded from. disks: each disk's runs, in the order in which
    they were first read."""

    boot: str = ""
    disks: dict[str, list[Run]] = field(default_factory=dict)


NO_TRACE = BootTrace()


def chunks_of(runs: Iterable[Run]) -> Iterator[int]:
    """Yield the chunks of the runs, in order."""
    for first, count, _ in runs:
        yield from range(first, first + count)


def merge_boot(
    known: BootTrace, boot: str, chunks_by_disk: Mapping[str, Iterable[int]]
) -> BootTrace:
    """Return the trace after a boot that has read these chunks, in this order.

    What it has not read is kept behind them for `MISSES_MAX` boots: a disk that is made local while
    its guest boots hides some of what the guest reads. Recording one boot again, further, counts
    as one.
    """
    missed = 0 if known.boot == boot else 1
    disks = {}
    for disk in sorted(known.disks.keys() | chunks_by_disk.keys()):
        misses = dict.fromkeys(chunks_by_disk.get(disk, ()), 0)
        for first, count, before in known.disks.get(disk, ()):
            if before + missed <= MISSES_MAX:
                for chunk in range(first, first + count):
                    misses.setdefault(chunk, before + missed)
        disks[disk] = _runs(list(misses.items())[:CHUNKS_MAX])
    return BootTrace(boot=boot, disks=disks)


def read_trace(store: ObjectStore, item_id: str) -> BootTrace:
    """Return the item's newest trace, an empty one if there is none.

    Raises: SegmentCorrupt, KeyMissing, Unavailable.
    """
    numbers = _numbers(store, item_id)
    if not numbers:
        return NO_TRACE
    try:
        data = read_small_object(store, trace_name(item_id, numbers[-1]))
    except NotFound:  # a newer one has just taken its place
        return NO_TRACE
    return decode_trace(store, data)


def decode_trace(store: ObjectStore, data: bytes) -> BootTrace:
    """Return the trace in an object's bytes, read with the store's keys.

    Raises: SegmentCorrupt, KeyMissing.
    """
    trace = parse_envelope(data, KIND_TRACE, BootTrace, keys_of(store))[1]
    for runs in trace.disks.values():
        if len(runs) > RUNS_MAX or sum(max(0, count) for _, count, _ in runs) > CHUNKS_MAX:
            raise SegmentCorrupt("a boot trace is too long")
        if any(
            first < 0 or count < 1 or misses < 0 or first + count > _CHUNK_NUMBER_MAX
            for first, count, misses in runs
        ):
            raise SegmentCorrupt("a boot trace has a run that cannot be")
    return trace


def write_trace(store: ObjectStore, item_id: str, epoch: int, trace: BootTrace) -> None:
    """Make the trace the item's newest, sealed with the key that the store is written with, and
    the older ones not exist. If another export is just doing so, its trace is as good.

    Raises: KeyMissing, Unavailable.
    """
    numbers = _numbers(store, item_id)
    name = trace_name(item_id, numbers[-1] + 1 if numbers else 1)
    try:
        store.create(name, seal_envelope(KIND_TRACE, epoch, trace, keys_of(store).writing))
    except ObjectExists:
        return
    for number in numbers:
        store.delete(trace_name(item_id, number))


def sealing_of(store: ObjectStore, item_id: str) -> tuple[int, str]:
    """Return (epoch, id of the key or "") under which the item's catalog was written last.

    Raises: SegmentCorrupt, KeyMissing, Unavailable.
    """
    catalog = Catalog.open(store, item_id)
    kinds = {
        record_name(item_id, catalog.version): KIND_RECORD,
        snapshot_name(item_id, catalog.version): KIND_SNAPSHOT,
    }
    for name, kind in kinds.items():
        try:
            envelope = open_envelope(read_small_object(store, name), kind, keys_of(store))
        except NotFound:
            continue
        return envelope.epoch, envelope.key_id
    raise SegmentCorrupt(f"the newest version of item {item_id}'s catalog is gone")


def _numbers(store: ObjectStore, item_id: str) -> list[int]:
    prefix = traces_prefix(item_id)
    names = (name.removeprefix(prefix) for name in store.list(prefix))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{8}", name))


def _runs(chunks: Sequence[tuple[int, int]]) -> list[Run]:
    """Return [(chunk, misses), ...] as runs, the order kept."""
    runs: list[Run] = []
    for chunk, misses in chunks:
        if runs and (sum(runs[-1][:2]), runs[-1][2]) == (chunk, misses):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, misses)
        else:
            runs.append((chunk, 1, misses))
    return runs
