"""What a replicator must still know when the agent has been restarted, in one small file.

Owns: that file. Must not know: how any of it is used. Written before the act it speaks of.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest, Unavailable
from leeward.mobility.sweep import SweepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationRecord:
    """epoch: of the stream it speaks of. sweep: the sweep that is not finished, NONE if none.

    disk_sizes: as at the last attach, to read journals by while the VM is not there.
    sweep_offsets: disk → how far the cuts in the cache contain that sweep. journals: taps whose
    journals may hold something not yet in a cut; one that cannot be found is a hole in the stream.
    initial_done: a consistent cut of this epoch has been uploaded. needs_sequence: what a target
    that has applied this cut lacks, the generations know; 0: no cut is known to be enough.
    newest_generation: a QEMU without it runs on disks of an earlier time, whose bitmaps lie.
    unswept: disks that came later and are in no finished sweep: whatever is swept, they are, whole.
    compares: a full sweep asks the target what it holds; False once it is known to hold nothing.
    """

    epoch: int
    sweep: SweepKind = SweepKind.FULL
    disk_sizes: dict[str, int] = field(default_factory=dict)
    sweep_offsets: dict[str, int] = field(default_factory=dict)
    journals: tuple[int, ...] = ()
    initial_done: bool = False
    needs_sequence: int = 0
    compares: bool = True
    newest_generation: int = 0
    unswept: tuple[str, ...] = ()


class RecordFile:
    """The record of one item and epoch, and the file it is kept in. Used by one thread."""

    def __init__(self, path: Path, epoch: int) -> None:
        self._path = path
        saved = _read(path)
        self.is_known = saved is not None and saved.epoch == epoch
        """False when nothing may be presumed: no readable record of this epoch was there."""
        self.value = (
            saved if saved is not None and self.is_known else ReplicationRecord(epoch=epoch)
        )

    def save(self, record: ReplicationRecord) -> None:
        """Make the record durable, whole or not at all. Raises: Unavailable."""
        if record != self.value or not self.is_known:
            _write(self._path, record)
            self.value, self.is_known = record, True

    def delete(self) -> None:
        """Make the file not exist. Idempotent."""
        with suppress(FileNotFoundError):
            self._path.unlink()


def _read(path: Path) -> ReplicationRecord | None:
    try:
        return from_json(path.read_bytes(), ReplicationRecord)
    except (OSError, InvalidRequest):
        return None


def _write(path: Path, record: ReplicationRecord) -> None:
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
