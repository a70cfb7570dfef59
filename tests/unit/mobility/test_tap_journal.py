"""The journal: what was published is read back, nothing is reused before it is released."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from leeward.core.errors import Conflict, NotFound, SegmentCorrupt
from leeward.mobility.journal import KIND_MARK, KIND_WRITE, RECORD_DTYPE, JournalReader
from leeward.mobility.journal_writer import RECORD, RECORD_BYTES, Buffer, JournalWriter

MIB = 1 << 20


def make(tmp_path: Path, *, capacity: int = 64, buffer_count: int = 3) -> JournalWriter:
    return JournalWriter(
        tmp_path / "00000007",
        instance=7,
        buffer_bytes=2 * MIB,
        buffer_count=buffer_count,
        capacity=capacity,
    )


def write(journal: JournalWriter, buffer: Buffer, position: int, data: bytes) -> None:
    assert journal.make_room(1)
    buffer.view[position : position + len(data)] = data
    RECORD.pack_into(
        journal.index,
        journal.position % journal.capacity * RECORD_BYTES,
        KIND_WRITE | 3 << 8 | len(data) << 32,
        4096,
        buffer.buffer_id | position << 32,
        99,
    )
    journal.publish(journal.position + 1)


def test_reader_sees_what_was_published(tmp_path: Path) -> None:
    journal = make(tmp_path)
    reader = JournalReader.open(tmp_path / "00000007")
    assert (reader.instance, reader.position()) == (7, 0)
    buffer = journal.take_buffer()
    assert buffer is not None
    write(journal, buffer, 28, b"abc")
    assert journal.append(KIND_MARK, disk=0, length=0, offset=5, time_ns=100)
    first, mark = reader.records(0, 2)
    assert first.item() == (KIND_WRITE, 3, 0, 3, 4096, buffer.buffer_id, 28, 99)
    assert bytes(reader.payload(first)) == b"abc"
    assert (mark["kind"], mark["offset"], mark["time_ns"]) == (KIND_MARK, 5, 100)
    journal.close()
    assert bytes(reader.payload(first)) == b"abc"  # it outlives its writer
    reader.close()
    reader.close()


def test_ring_wraps_and_waits_for_the_consumer(tmp_path: Path) -> None:
    journal = make(tmp_path, capacity=64)
    reader = JournalReader(tmp_path / "00000007")
    for number in range(64):
        assert journal.append(KIND_MARK, disk=0, length=0, offset=number, time_ns=0)
    assert not journal.append(KIND_MARK, disk=0, length=0, offset=64, time_ns=0)
    reader.release(40)
    for number in range(64, 104):
        assert journal.append(KIND_MARK, disk=0, length=0, offset=number, time_ns=0)
    assert not journal.make_room(1)
    assert reader.records(40, 104)["offset"].tolist() == list(range(40, 104))
    assert reader.records(50, 50).dtype == RECORD_DTYPE
    with pytest.raises(Conflict):
        reader.records(39, 50)
    with pytest.raises(Conflict):
        reader.records(50, 105)
    journal.close()
    reader.close()


def test_buffer_is_reused_only_after_its_records_are_released(tmp_path: Path) -> None:
    journal = make(tmp_path, buffer_count=2)
    reader = JournalReader(tmp_path / "00000007")
    first, second = journal.take_buffer(), journal.take_buffer()
    assert first is not None
    assert second is not None
    assert journal.take_buffer() is None
    write(journal, first, 0, b"1")
    write(journal, second, 0, b"2")
    journal.retire(first)
    reader.release(1)
    assert journal.free_buffers == 0  # records up to the retirement count, whoever wrote them
    reader.release(2)
    assert journal.free_buffers == 1
    assert journal.take_buffer() is first
    journal.close()
    reader.close()


def test_release_never_goes_back_nor_past_the_end(tmp_path: Path) -> None:
    journal = make(tmp_path)
    reader = JournalReader(tmp_path / "00000007")
    for number in range(10):
        journal.append(KIND_MARK, disk=0, length=0, offset=number, time_ns=0)
    reader.release(8)
    reader.release(3)
    assert journal.released == 8
    reader.release(1000)
    assert journal.released == 10
    journal.close()
    reader.close()


def test_trim_gives_unneeded_memory_back(tmp_path: Path) -> None:
    journal = make(tmp_path, buffer_count=3)
    reader = JournalReader(tmp_path / "00000007")
    buffers = [journal.take_buffer() for _ in range(3)]
    for buffer in buffers:
        assert buffer is not None
        journal.retire(buffer)
    journal.trim(keep=1)
    assert sum(b.claimed > 0 for b in buffers if b) == 3  # needed since the call before
    journal.trim(keep=1)
    kept = [b for b in buffers if b and b.claimed]
    assert len(kept) == 1 or not hasattr(os, "posix_fallocate")
    again = journal.take_buffer()
    assert again is not None
    assert again.claimed > 0
    journal.close()
    reader.close()


def test_machine_without_memory_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Touching a page that a full tmpfs cannot give is a SIGBUS; asking first is an answer."""
    journal = make(tmp_path)
    taken = journal.take_buffer()
    assert taken is not None

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not taken.claim()
    assert journal.take_buffer() is None
    assert not journal.append(KIND_MARK, disk=0, length=0, offset=0, time_ns=0)
    monkeypatch.undo()
    assert journal.take_buffer() is not None
    journal.close()


def test_directory_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        JournalReader(tmp_path / "none")
    journal = make(tmp_path)
    journal.close()
    head = tmp_path / "00000007" / "head"
    head.write_bytes(b"x" * 4096)
    with pytest.raises(SegmentCorrupt):
        JournalReader(head.parent)
    head.write_bytes(b"")
    with pytest.raises(SegmentCorrupt):
        JournalReader(head.parent)
