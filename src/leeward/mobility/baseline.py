"""What a replicator that meets a running VM may build upon: a pure decision.

Owns: the catalogue of what can be lost, and the smallest sweep that makes up for it. Must not know:
how any of it is found out or done. Between record.py, qemu/ and the replicator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from leeward.mobility.record import ReplicationRecord
from leeward.mobility.sweep import SweepKind


class Baseline(Enum):
    """KEEP: the stream has no hole that QEMU's own mirror bitmaps do not know of; an unfinished
    sweep goes on. CHANGED: sweep what the generations have noted. FULL: sweep everything."""

    KEEP = "keep"
    CHANGED = "changed"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is there.

    newest_generation: of the trustworthy ones of this epoch, on all disks, 0 if there is none: QEMU
    has run since, or its images have kept them over a clean exit.
    has_mirrors: every disk has its mirror job, running or standing by. has_journals: every journal
    that may hold writes not yet uploaded can be read. has_sweep_bitmap: the merged bitmap of an
    unfinished sweep is on all disks.
    """

    newest_generation: int
    has_mirrors: bool
    has_journals: bool
    has_sweep_bitmap: bool


def plan_baseline(record: ReplicationRecord | None, epoch: int, found: Found) -> Baseline:
    """Return what has to be swept before cuts count again.

    A sweep that was interrupted with a hole in the stream begins anew: what it had read may have
    changed while nobody received it. A changed-sweep that begins anew covers its predecessor, for
    no generation is retired before a consistent cut has been applied. One of which nothing is in
    the cache yet is begun anew too: its merged bitmap may be that of an earlier sweep. Disks that
    lack the newest generation have been put back to an earlier time.
    """
    if record is None or record.epoch != epoch or not found.newest_generation:
        return Baseline.FULL
    if found.newest_generation < record.newest_generation:
        return Baseline.FULL
    has_hole = not (found.has_mirrors and found.has_journals)
    match record.sweep:
        case SweepKind.FULL:
            return Baseline.FULL if has_hole else Baseline.KEEP
        case SweepKind.CHANGED:
            has_begun = any(record.sweep_offsets.values()) and found.has_sweep_bitmap
            keep = has_begun and not has_hole
            return Baseline.KEEP if keep else Baseline.CHANGED
        case SweepKind.NONE:
            return Baseline.CHANGED if has_hole else Baseline.KEEP
