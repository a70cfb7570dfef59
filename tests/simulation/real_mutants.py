"""Defects of the source's side: planted in an agent that replicates a real storage daemon, or in
the receiving end of a tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

from leeward.mobility.capture import Look
from leeward.mobility.connection import _WRITES, REQUEST, REQUEST_BYTES, Connection
from leeward.mobility.generations import GenerationLedger
from leeward.mobility.journal_writer import RECORD, RECORD_BYTES, Buffer

REAL_MUTANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {}


def real_mutant(
    make: Callable[[], Iterator[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Register the defect under its function's name."""
    planted = contextmanager(make)
    REAL_MUTANTS[make.__name__.replace("_", "-")] = planted
    return planted


@real_mutant
def bitmap_retired_early() -> Iterator[None]:
    """A generation goes as soon as the next one is there, whatever the target has applied."""

    def all_but_the_newest(self: GenerationLedger, applied_sequence: int) -> tuple[int, ...]:
        return self.live[:-1]

    with patch.object(GenerationLedger, "retirable", all_but_the_newest):
        yield


@real_mutant
def generation_added_after_the_mark() -> Iterator[None]:
    """A cut is taken to cover what was written until the rotation that came after its mark."""
    consistent_cut, retirable = GenerationLedger.consistent_cut, GenerationLedger.retirable

    def generous(self: GenerationLedger, *, sequence: int, newest_at_mark: int) -> None:
        consistent_cut(self, sequence=sequence, newest_at_mark=newest_at_mark + 1)

    def but_the_newest(self: GenerationLedger, applied_sequence: int) -> tuple[int, ...]:
        return tuple(n for n in retirable(self, applied_sequence) if n != self.newest)

    with (
        patch.object(GenerationLedger, "consistent_cut", generous),
        patch.object(GenerationLedger, "retirable", but_the_newest),
    ):
        yield


@real_mutant
def sealed_while_not_clean() -> Iterator[None]:
    """A cut counts although QEMU still copies what the tap has missed."""
    with patch.object(Look, "is_clean", property(lambda self: self.is_live)):
        yield


@real_mutant
def cut_across_a_half_received_request() -> Iterator[None]:
    """A write is in the journal as soon as its header has come."""
    parse = Connection._parse

    def hasty(self: Connection, buffer: Buffer, end: int) -> None:
        parse(self, buffer, end)
        if self._end - self._start < REQUEST_BYTES:
            return
        command, _, offset, length = REQUEST.unpack_from(buffer.map, self._start)
        journal, payload = self._journal, self._start + REQUEST_BYTES
        if command in _WRITES and journal.make_room(1):
            place = journal.position % journal.capacity * RECORD_BYTES
            where = buffer.buffer_id | payload << 32
            RECORD.pack_into(journal.index, place, self._base | length << 32, offset, where, 0)
            journal.publish(journal.position + 1)

    with patch.object(Connection, "_parse", hasty):
        yield
