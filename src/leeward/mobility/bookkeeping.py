"""What the record says after a sweep has begun, or a portion has had its outcome: pure.

Owns: which facts of a stream outlive the agent. Must not know: files, QEMU, threads. Between
cutter.py's outcomes and record.py, called by stream.py.
"""

from __future__ import annotations

from dataclasses import replace

from leeward.mobility.baseline import Baseline
from leeward.mobility.cutter import Outcome
from leeward.mobility.record import ReplicationRecord
from leeward.mobility.sweep import SweepKind
from leeward.model.recovery import Consistency


def is_point(outcome: Outcome) -> bool:
    """Say whether the cut uploaded can be recovered to."""
    return outcome.consistency is not Consistency.NONE


def after_beginning(record: ReplicationRecord, baseline: Baseline) -> ReplicationRecord:
    """Return the record of a stream whose sweep is due from the start."""
    if baseline is Baseline.FULL:
        return replace(
            record, sweep=SweepKind.FULL, sweep_offsets={}, needs_sequence=0, compares=True
        )
    return replace(record, sweep=SweepKind.CHANGED, sweep_offsets={})


def after_outcome(
    record: ReplicationRecord, outcome: Outcome, *, is_current: bool
) -> ReplicationRecord:
    """Return the record with what the outcome says of journals, points and sweep.

    is_current: no sweep has begun anew since the portion was made.
    """
    portion = outcome.portion
    if portion.is_last:
        left = tuple(n for n in record.journals if n != portion.journal.instance)
        record = replace(record, journals=left)
    if is_point(outcome):
        record = replace(record, initial_done=True)
    if not is_current:
        return record
    if portion.digests and record.epoch == outcome.sequence == 1:
        record = replace(record, compares=False)  # the first cut that the target ever gets
    if is_point(outcome) and not record.needs_sequence:
        record = replace(record, needs_sequence=outcome.sequence)
    if portion.sweep_offsets is None:
        return record
    if all(portion.sweep_offsets[disk.name] >= disk.size_bytes for disk in portion.disks):
        return replace(record, sweep=SweepKind.NONE, sweep_offsets={}, unswept=())
    return replace(record, sweep_offsets=dict(portion.sweep_offsets))


def suffices(record: ReplicationRecord, applied: int) -> bool:
    """Say whether the generations know all that a target lacks which has applied up to there.

    Not if some were retired for a later cut, or the first sweep ended in one.
    """
    return 0 < record.needs_sequence <= applied


def after_retiring(record: ReplicationRecord, applied: int) -> ReplicationRecord:
    """Return the record of a stream whose generations go because of what has been applied."""
    return replace(record, needs_sequence=max(record.needs_sequence, applied))
