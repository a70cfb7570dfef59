"""Where vaults lie meanwhile: in memory, if the machine has a place for files there.

They are fsynced at every step of every verb, and no test of this room is about the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a directory of the test's own."""
    place = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix="leeward-test-", dir=place) as directory:
        yield Path(directory)
