"""What a replicator builds upon, when generations go, what survives a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeward.core.errors import Unavailable
from leeward.mobility.baseline import Baseline, Found, plan_baseline
from leeward.mobility.generations import GENERATIONS_MAX, GenerationLedger
from leeward.mobility.record import RecordFile, ReplicationRecord
from leeward.mobility.sweep import SweepKind

ALL = Found(newest_generation=3, has_mirrors=True, has_journals=True, has_sweep_bitmap=True)


def found(**changes: int) -> Found:
    fields = {name: getattr(ALL, name) for name in Found.__dataclass_fields__}
    return Found(**(fields | changes))


@pytest.mark.parametrize(
    ("sweep", "what", "expected"),
    [
        (SweepKind.NONE, found(), Baseline.KEEP),
        (SweepKind.NONE, found(has_sweep_bitmap=False), Baseline.KEEP),
        (SweepKind.NONE, found(has_mirrors=False), Baseline.CHANGED),
        (SweepKind.NONE, found(has_journals=False), Baseline.CHANGED),
        (SweepKind.NONE, found(newest_generation=0), Baseline.FULL),
        (SweepKind.NONE, found(newest_generation=2), Baseline.FULL),
        (SweepKind.NONE, found(newest_generation=4), Baseline.KEEP),
        (SweepKind.FULL, found(has_sweep_bitmap=False), Baseline.KEEP),
        (SweepKind.FULL, found(has_mirrors=False), Baseline.FULL),
        (SweepKind.FULL, found(has_journals=False), Baseline.FULL),
        (SweepKind.CHANGED, found(), Baseline.KEEP),
        (SweepKind.CHANGED, found(has_sweep_bitmap=False), Baseline.CHANGED),
        (SweepKind.CHANGED, found(has_mirrors=False), Baseline.CHANGED),
        (SweepKind.CHANGED, found(has_journals=False), Baseline.CHANGED),
        (SweepKind.CHANGED, found(newest_generation=0), Baseline.FULL),
    ],
)
def test_the_smallest_sweep_that_makes_up_for_what_is_lost(
    sweep: SweepKind, what: Found, expected: Baseline
) -> None:
    record = ReplicationRecord(
        epoch=1, sweep=sweep, sweep_offsets={"sys": 4096}, newest_generation=3
    )
    assert plan_baseline(record, 1, what) is expected


def test_a_sweep_written_down_and_not_begun_gets_a_merged_bitmap_of_its_own() -> None:
    """Killed between the record and the merge, the bitmap found is that of an earlier sweep."""
    record = ReplicationRecord(epoch=1, sweep=SweepKind.CHANGED, sweep_offsets={})
    assert plan_baseline(record, 1, ALL) is Baseline.CHANGED


def test_without_a_record_of_this_epoch_nothing_is_presumed() -> None:
    assert plan_baseline(None, 1, ALL) is Baseline.FULL
    other = ReplicationRecord(epoch=1, sweep=SweepKind.NONE)
    assert plan_baseline(other, 2, ALL) is Baseline.FULL


def test_invariant_3_a_generation_goes_when_a_later_rotation_s_cut_is_applied() -> None:
    ledger = GenerationLedger([1])
    ledger.consistent_cut(sequence=5, newest_at_mark=1)
    assert ledger.retirable(99) == ()  # nothing else notes what came after cut 5
    ledger.added(2)
    assert ledger.retirable(99) == ()  # a rotation proves nothing: a cut marked after it does
    ledger.consistent_cut(sequence=6, newest_at_mark=1)  # marked before the rotation
    assert ledger.retirable(99) == ()
    ledger.consistent_cut(sequence=7, newest_at_mark=2)
    ledger.consistent_cut(sequence=8, newest_at_mark=2)
    assert ledger.retirable(6) == ()
    assert ledger.retirable(7) == (1,)
    ledger.removed([1])
    assert ledger.live == (2,)
    assert ledger.retirable(99) == ()
    assert not ledger.awaits_application


def test_a_ledger_found_again_after_a_restart_waits_for_a_cut_of_its_own() -> None:
    ledger = GenerationLedger([4, 3])
    assert (ledger.live, ledger.newest) == ((3, 4), 4)
    assert ledger.retirable(99) == ()
    ledger.consistent_cut(sequence=20, newest_at_mark=4)
    assert ledger.awaits_application
    assert ledger.retirable(20) == (3,)


def test_generations_are_bounded() -> None:
    ledger = GenerationLedger()
    while ledger.may_grow:
        ledger.added(ledger.newest + 1)
    assert len(ledger.live) == GENERATIONS_MAX


def test_a_record_survives_and_one_of_another_epoch_or_torn_is_not_presumed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "replication" / "item.json"
    file = RecordFile(path, 2)
    assert not file.is_known
    record = ReplicationRecord(
        epoch=2, sweep=SweepKind.CHANGED, sweep_offsets={"sys": 7}, journals=(1, 3)
    )
    file.save(record)
    again = RecordFile(path, 2)
    assert (again.is_known, again.value) == (True, record)
    assert not RecordFile(path, 3).is_known
    path.write_bytes(path.read_bytes()[:10])
    torn = RecordFile(path, 2)
    assert not torn.is_known
    torn.delete()
    torn.delete()
    assert not path.exists()


def test_a_record_that_cannot_be_written_is_an_error_not_a_guess(tmp_path: Path) -> None:
    (tmp_path / "replication").write_text("a file where a directory should be")
    file = RecordFile(tmp_path / "replication" / "item.json", 1)
    with pytest.raises(Unavailable):
        file.save(ReplicationRecord(epoch=1, sweep=SweepKind.NONE))
    assert not file.is_known
