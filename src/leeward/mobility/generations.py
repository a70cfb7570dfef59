"""When a bitmap generation may go: a pure ledger of which cut covers which generation.

Owns: invariant 3's rule. Must not know: QMP, stores. Between qemu/bitmaps.py and the replicator.

Generation n notes every write from the moment it was added until it is removed. All that was
written before generation n+1 was added is in every consistent cut marked after that moment; once
the target has durably applied one of those, generation n says nothing that n+1 does not say too.
Cuts that are not consistent prove nothing: while a mirror catches up or a sweep runs, the stream
lacks writes that only the bitmaps know.
"""

from __future__ import annotations

from collections.abc import Iterable

GENERATIONS_MAX = 6
"""Beyond that no generation is added: each costs QEMU memory and time in every write."""
OF_STARTS_MAX = 4 * GENERATIONS_MAX
"""Beyond that not even the one by which a QEMU's disks are told from those of the QEMU before."""


class GenerationLedger:
    """The generations that exist, oldest first, and the sequence of the cut that covers each."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._live = sorted(numbers)
        self._covered_by: dict[int, int] = {}

    @property
    def live(self) -> tuple[int, ...]:
        return tuple(self._live)

    @property
    def newest(self) -> int:
        """The number added last; 0 before the first."""
        return self._live[-1] if self._live else 0

    @property
    def may_grow(self) -> bool:
        return len(self._live) < GENERATIONS_MAX

    @property
    def may_note_start(self) -> bool:
        """As `may_grow`, for a QEMU that has just been met."""
        return len(self._live) < OF_STARTS_MAX

    def added(self, number: int) -> None:
        """Note that the generation records on all disks from now on."""
        self._live.append(number)

    def removed(self, numbers: Iterable[int]) -> None:
        """Note that those generations exist no more."""
        gone = set(numbers)
        self._live = [number for number in self._live if number not in gone]
        for number in gone:
            self._covered_by.pop(number, None)

    def consistent_cut(self, *, sequence: int, newest_at_mark: int) -> None:
        """Note a consistent cut whose mark was set when `newest_at_mark` was the newest."""
        for number in self._live:
            if number < newest_at_mark:
                self._covered_by.setdefault(number, sequence)

    def retirable(self, applied_sequence: int) -> tuple[int, ...]:
        """Return the generations that the target, having applied up to there, makes needless."""
        return tuple(
            number
            for number in self._live
            if 0 < self._covered_by.get(number, 0) <= applied_sequence
        )

    @property
    def awaits_application(self) -> bool:
        """True when news of the target's progress could retire a generation."""
        return any(number in self._covered_by for number in self._live)
