"""Which parts of a disk a sweep reads: where allocation and bitmap say so, found in one pass."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from leeward.mobility.sweep import _together


class Counted(Sequence[tuple[int, int, int]]):
    """A sequence that counts how often it is looked at."""

    def __init__(self, extents: list[tuple[int, int, int]]) -> None:
        self._extents = extents
        self.looks = 0

    def __len__(self) -> int:
        return len(self._extents)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.looks += 1
        return self._extents[index]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for index in range(len(self._extents)):
            yield self[index]


def extents(rnd: random.Random, end: int) -> list[tuple[int, int, int]]:
    edges = sorted({0, end, *(rnd.randrange(1, end) for _ in range(20))})
    return [(a, b - a, rnd.randrange(4)) for a, b in pairwise(edges)]


def test_it_says_of_every_byte_what_both_say() -> None:
    rnd = random.Random(3)
    for _ in range(50):
        one, two = extents(rnd, 100), extents(rnd, 90)
        found = [pair for low, high, *pair in _together(one, two) for _ in range(low, high)]
        flags = [[flag for _, length, flag in each for _ in range(length)] for each in (one, two)]
        assert found == [list(pair) for pair in zip(*flags, strict=False)]


def test_fragmented_disks_cost_one_pass() -> None:
    """128 MiB of 4 KiB fragments in both took minutes, in which no cut was made."""
    count = 1000
    one = Counted([(n * 2, 2, 0) for n in range(count)])
    two = Counted([(n, 1, 0) for n in range(2 * count)])
    assert len(list(_together(one, two))) == 2 * count
    assert one.looks + two.looks < 8 * count
