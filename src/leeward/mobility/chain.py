"""How far an uploader's chain of cuts has come, known without asking the cache.

Owns: one number in a small file, so that cuts which vanished from the cache are missed. Must not
know: cuts, stores. Kept by upload.py, beside the replicator's record.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import Unavailable


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """The newest cut of the epoch that the target has, or can still apply; 0 and "": none.
    is_damaged: what it has is damaged: everything must be swept."""

    sequence: int
    manifest_sha256: str
    is_damaged: bool = False


class ChainNote:
    """The newest sequence known to be committed. Used by one thread.

    Never more than one behind the truth: no cut is published before the one before it is noted. Not
    synced: a crash of the host that could take the file back takes QEMU's bitmaps too, and then all
    is swept anyway.
    """

    def __init__(self, path: Path | None, epoch: int) -> None:
        """path: None keeps the number in memory."""
        self._path = path
        self._epoch = epoch
        self.sequence = self._read()

    def save(self, sequence: int) -> None:
        """Have the number known to the next process. Raises: Unavailable."""
        if sequence == self.sequence:
            return
        if self._path is not None:
            new = self._path.with_name(self._path.name + ".new")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                new.write_text(f"{self._epoch} {sequence}")
                new.replace(self._path)
            except OSError as error:
                raise Unavailable(f"cannot write {self._path}: {error.strerror}") from error
        self.sequence = sequence

    def delete(self) -> None:
        """Make the file not exist. Idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> int:
        with suppress(OSError, ValueError):
            epoch, sequence = map(int, self._path.read_text().split() if self._path else ())
            return sequence if epoch == self._epoch else 0
        return 0
