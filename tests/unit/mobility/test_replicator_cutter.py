"""Portions leave in order, journal space is given back last, damage taints what builds upon it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from leeward.core.clock import SystemClock
from leeward.core.errors import Unavailable
from leeward.mobility import cutter as cutter_module
from leeward.mobility.cut import CutDisk
from leeward.mobility.cutter import Cutter, Outcome, Portion
from leeward.mobility.journal import KIND_WRITE, RECORD_DTYPE, JournalReader, Records
from leeward.mobility.upload import Uploader
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer
from leeward.replica.manifest import (
    AppliedMarker,
    Refusal,
    applied_name,
    cut_name,
    decode_manifest,
    encode_applied,
    encode_refused,
    parse_segment_sequence,
    refused_name,
)

ITEM = "item-1"
DISKS = (CutDisk("sys", 1 << 20),)


class FakeJournal:
    """A journal of 4 KiB writes, each at its own block; what was released is noted."""

    instance = 1

    def __init__(self, count: int = 64) -> None:
        self._records = np.array(
            [(KIND_WRITE, 0, 0, 4096, 4096 * n, 0, 0, 0) for n in range(count)],
            dtype=RECORD_DTYPE,
        )
        self.releases: list[int] = []
        self.on_release: Callable[[], None] = lambda: None

    def records(self, start: int, stop: int) -> Records:
        return cast(Records, self._records[start:stop].copy())

    def buffer(self, _buffer_id: int) -> memoryview:
        return memoryview(bytes(4096))

    def release(self, position: int) -> None:
        self.on_release()
        self.releases.append(position)

    def damage(self, index: int) -> None:
        self._records["length"][index] = 17


class Store(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.healthy = threading.Event()
        self.healthy.set()
        self.refused = threading.Event()

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if not self.healthy.is_set():
            self.refused.set()
            raise Unavailable("No space left on device")
        super().create(name, data)


@contextmanager
def cutting(store: Store) -> Iterator[Cutter]:
    cutter = Cutter(
        lambda: Uploader(store, ITEM, 1, compression="none"),
        {"name": "vm"},
        applied_seconds=0.0,
        clock=SystemClock(),
    )
    try:
        yield cutter
    finally:
        cutter.close()


def portion(journal: FakeJournal, start: int, stop: int) -> Portion:
    return Portion(
        journal=cast(JournalReader, journal),
        disks=DISKS,
        start=start,
        stop=stop,
        release_to=stop + 1,
        time_ns=1 + start,
        consistency=Consistency.CRASH,
        lineage=1,
    )


def outcomes(cutter: Cutter, count: int) -> list[Outcome]:
    found: list[Outcome] = []
    done = threading.Event()
    for _ in range(1000):
        while (outcome := cutter.oldest_outcome()) is not None:
            found.append(outcome)
            cutter.drop_outcome()
        if len(found) >= count:
            return found
        done.wait(0.01)
    raise AssertionError(f"{len(found)} of {count} outcomes")


def test_space_is_given_back_only_after_the_manifest_is_there() -> None:
    store, journal = Store(), FakeJournal()
    seen: list[list[str]] = []
    journal.on_release = lambda: seen.append(store.list(f"items/{ITEM}/cuts/"))
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        cutter.submit(portion(journal, 5, 9))
        ended = outcomes(cutter, 2)
    assert [one.sequence for one in ended] == [1, 2]
    assert journal.releases == [5, 10]
    assert seen == [[cut_name(ITEM, 1, 1)], [cut_name(ITEM, 1, n) for n in (1, 2)]]
    assert decode_manifest(store.get(cut_name(ITEM, 1, 2))).consistency is Consistency.CRASH


def test_a_cache_that_refuses_keeps_everything_in_the_journal_until_it_takes_it() -> None:
    store, journal = Store(), FakeJournal()
    store.healthy.clear()
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        cutter.submit(portion(journal, 4, 8))
        assert cutter.has_room
        cutter.submit(portion(journal, 8, 12))
        assert store.refused.wait(60)
        assert not cutter.has_room
        assert journal.releases == []
        store.healthy.set()
        ended = outcomes(cutter, 3)
        assert cutter.problem == ""
        assert cutter.is_idle
    assert [one.sequence for one in ended] == [1, 2, 3]


class SlowStore(Store):
    """The first cut's segment is only stored, or refused, once the second one's is there; what is
    sent of it afterwards is taken."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__()
        self._refuses = refuses
        self._second = threading.Event()
        self.segments: list[str] = []

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        sent = parse_segment_sequence(name)
        if sent is not None:
            is_first = sent[1] == 1 and name not in self.segments
            self.segments.append(name)
            if not is_first:
                self._second.set()
            else:
                assert self._second.wait(60), "the next portion's segment was not sent"
                if self._refuses:
                    raise Unavailable("No space left on device")
        super().create(name, data)


def test_segments_of_the_next_portion_are_sent_while_the_first_ones_are_on_their_way() -> None:
    store, journal = SlowStore(refuses=False), FakeJournal()
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        cutter.submit(portion(journal, 4, 8))
        ended = outcomes(cutter, 2)
    assert [one.sequence for one in ended] == [1, 2]
    assert len(store.segments) == 2


def test_what_was_sent_ahead_counts_for_nothing_when_the_chain_breaks_before_it() -> None:
    store, journal = SlowStore(refuses=True), FakeJournal()
    refusal = encode_refused(1, Refusal(sequence=0, manifest_sha256=""))
    with cutting(store) as cutter:
        store.create(refused_name(ITEM, 1, 0), refusal)
        cutter.awaits_application = True
        cutter.submit(portion(journal, 0, 4))
        cutter.submit(portion(journal, 4, 8))
        for _ in range(1000):
            if cutter.broken_after is not None:
                break
            threading.Event().wait(0.01)
        cutter.restart(lineage=2)
        first, second = outcomes(cutter, 2)
        cutter.submit(replace(portion(journal, 8, 12), lineage=2))
        third = outcomes(cutter, 1)[0]
    assert [one.consistency for one in (first, second, third)] == [
        Consistency.NONE,
        Consistency.NONE,
        Consistency.CRASH,
    ]
    assert first.sequence < second.sequence < third.sequence


def test_a_damaged_portion_is_not_sent_and_taints_the_points_that_build_upon_it() -> None:
    store, journal = Store(), FakeJournal()
    journal.damage(2)
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        cutter.submit(portion(journal, 4, 8))
        first, second = outcomes(cutter, 2)
        assert journal.releases == [9], "not before a sweep that makes up for it is written down"
        first.portion.give_back()
        assert journal.releases == [9, 5]
        cutter.submit(replace(portion(journal, 8, 12), lineage=2))
        third = outcomes(cutter, 1)[0]
    assert (first.sequence, first.consistency) == (0, Consistency.NONE)
    assert (second.sequence, second.consistency) == (1, Consistency.NONE)
    assert (third.sequence, third.consistency) == (2, Consistency.CRASH)


def test_a_newer_epoch_ends_it() -> None:
    store, journal = Store(), FakeJournal()
    marker = AppliedMarker(sequence=1, manifest_sha256="0" * 64)
    store.create(applied_name(ITEM, 2, 1), encode_applied(2, marker))
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        for _ in range(1000):
            if cutter.fenced:
                break
            threading.Event().wait(0.01)
        assert "newer than 1" in cutter.fenced
    assert journal.releases == []


def test_an_end_while_the_cache_refuses_leaves_everything_in_the_journal() -> None:
    store, journal = Store(), FakeJournal()
    store.healthy.clear()
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        assert store.refused.wait(60)
    assert journal.releases == []
    assert store.list(f"items/{ITEM}/cuts/") == []


def test_what_a_hanging_store_takes_after_the_end_is_left_in_its_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever replicates next may use another cache, and looks for it in the journal alone."""
    monkeypatch.setattr(cutter_module, "END_SECONDS", 0.05)
    store, journal, hangs, goes_on = Store(), FakeJournal(), threading.Event(), threading.Event()
    create = store.create

    def hanging(name: str, data: Buffer | Sequence[Buffer]) -> None:
        if "/cuts/" in name:
            hangs.set()
            assert goes_on.wait(60)
        create(name, data)

    monkeypatch.setattr(store, "create", hanging)
    with cutting(store) as cutter:
        cutter.submit(portion(journal, 0, 4))
        assert hangs.wait(60)
        cutter.close()
        goes_on.set()
        cutter._thread.join(60)
    assert store.list(f"items/{ITEM}/cuts/") == [cut_name(ITEM, 1, 1)]
    assert journal.releases == []
    assert cutter.oldest_outcome() is None
