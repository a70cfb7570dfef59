"""A disk read whole through its export: one digest for one content, and no damage unseen."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from leeward.core.errors import SegmentCorrupt, Unavailable
from leeward.core.units import CHUNK, MIB
from leeward.export import reading
from leeward.export.reading import digest_disks
from leeward.nbd.server import NbdServer

pytestmark = pytest.mark.integration


class Disk:
    """Bytes with extents as somebody describes them; `damaged` cannot be read."""

    def __init__(self, content: bytes, extents: Sequence[tuple[int, bool]], damaged: int = -1):
        self.content, self._extents, self._damaged = content, extents, damaged
        self.size_bytes = len(content)

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self._damaged < offset + length:
            raise SegmentCorrupt("segment 7: frame 3 does not match its checksum")
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        found, at = [], 0
        for size, has_data in self._extents:
            start, stop = max(at, offset), min(at + size, offset + length)
            if start < stop:
                found.append((stop - start, has_data))
            at += size
        return found


@contextmanager
def exported(directory: Path, disk: Disk) -> Iterator[Path]:
    path = directory / "export.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = NbdServer(listener, {"data": disk})
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield path
        finally:
            server.stop()
            thread.join()


def expected(content: bytes) -> str:
    digest = hashlib.sha256()
    for offset in range(0, len(content), CHUNK):
        chunk = content[offset : offset + CHUNK]
        if chunk.strip(b"\0"):
            digest.update(offset.to_bytes(8, "little") + chunk)
    return digest.hexdigest()


CONTENT = bytearray(3 * MIB + 512)
CONTENT[100:200] = b"x" * 100
CONTENT[MIB + 5 : MIB + CHUNK + 5] = b"y" * CHUNK
CONTENT[-1:] = b"z"


def test_the_digest_is_of_the_content_however_it_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WINDOW_BYTES", MIB)
    monkeypatch.setattr(reading, "READ_BYTES", 2 * CHUNK)
    whole = [(len(CONTENT), True)]
    split = [
        (4096, True),
        (MIB - 4096, False),
        (4096, True),
        (4096, False),
        (CHUNK, True),
        (2 * MIB - CHUNK - 8192, False),
        (512, True),
    ]
    for extents in (whole, split):
        with exported(tmp_path, Disk(bytes(CONTENT), extents)) as path:
            (found,) = digest_disks(path, ["data"])
        assert found.sha256 == expected(bytes(CONTENT))
        assert found.size_bytes == len(CONTENT)
    assert found.bytes_read < len(CONTENT), "holes are not read"


def test_damage_is_told_with_its_place(tmp_path: Path) -> None:
    disk = Disk(bytes(CONTENT), [(len(CONTENT), True)], damaged=2 * MIB)
    with exported(tmp_path, disk) as path, pytest.raises(Unavailable) as refusal:
        digest_disks(path, ["data"])
    assert "'data': error 5 at offset 2097152" in str(refusal.value)
    assert "frame 3 does not match its checksum" in str(refusal.value)
