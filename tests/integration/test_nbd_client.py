"""The client against QEMU's own NBD server."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.sockets import listens

from leeward.core.errors import InvalidRequest, NotFound, Unavailable
from leeward.nbd import wire
from leeward.nbd.client import NbdClient

pytestmark = pytest.mark.integration

SIZE = 64 << 20


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Path]:
    """A storage daemon exporting a writable disk "w": 1 MiB of data at 1 MiB, the rest a hole."""
    run = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    disk = tmp_path / "d.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
        file.seek(1 << 20)
        file.write(b"\x07" * (1 << 20))
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=f0,filename={disk}"),
            *("--blockdev", "driver=raw,node-name=d0,file=f0"),
            *("--nbd-server", f"addr.type=unix,addr.path={run}/nbd.sock"),
            *("--export", "type=nbd,id=e0,node-name=d0,name=w,writable=on"),
        ]
    )
    deadline = time.monotonic() + 90
    while not listens(run / "nbd.sock") and time.monotonic() < deadline:
        time.sleep(0.01)
    yield run / "nbd.sock"
    daemon.terminate()
    daemon.wait(60)
    for left in run.iterdir():
        left.unlink()
    run.rmdir()


def test_reads_what_was_written_at_any_alignment(qemu: Path) -> None:
    with NbdClient.connect(qemu, "w") as client:
        assert client.size_bytes == SIZE
        assert not client.is_read_only
        data = os.urandom(100_003)
        client.write(5_000_001, data)
        client.flush()
        assert client.read(5_000_001, len(data)) == data
        assert client.read((1 << 20) - 3, 6) == b"\0\0\0\7\7\7"


def test_reads_beyond_one_request_are_split(qemu: Path) -> None:
    with NbdClient.connect(qemu, "w") as client:
        data = client.read(0, SIZE)
        assert data.count(b"\7") == 1 << 20
        assert data[1 << 20 : 2 << 20] == b"\7" * (1 << 20)


def test_block_status_covers_the_range_exactly(qemu: Path) -> None:
    hole = wire.STATE_HOLE | wire.STATE_ZERO
    with NbdClient.connect(qemu, "w") as client:
        assert client.block_status(0, SIZE) == [
            (1 << 20, hole),
            (1 << 20, 0),
            (SIZE - (2 << 20), hole),
        ]
        assert client.block_status(1 << 20, 65536) == [(65536, 0)]


def test_pipelined_reads_arrive_whole_and_note_when_they_began(qemu: Path) -> None:
    begun: list[int] = []

    def ranges() -> Iterator[tuple[int, int]]:
        for offset in range(0, 4 << 20, 65536):
            begun.append(offset)
            yield offset, 65536

    with NbdClient.connect(qemu, "w") as client:
        reads = client.pread_many(ranges(), depth=4)
        first_offset, _ = next(reads)
        assert len(begun) == 4
        seen = {first_offset} | {offset for offset, _ in reads}
        assert seen == set(begun)
        # dropped half-way, the connection stays in step
        half = client.pread_many(iter([(0, 4096), (1 << 20, 4096)]), depth=2)
        next(half)
        half.close()  # type: ignore[attr-defined]
        assert client.read(1 << 20, 4) == b"\7\7\7\7"


def test_what_does_not_exist_is_said(qemu: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        NbdClient.connect(qemu, "nothing")
    with pytest.raises(NotFound):
        NbdClient.connect(qemu, "w", ("qemu:dirty-bitmap:none",))
    with pytest.raises(Unavailable):
        NbdClient.connect(tmp_path / "none.sock", "w")
    with NbdClient.connect(qemu, "w") as client, pytest.raises(InvalidRequest):
        client.read(SIZE - 1, 2)
