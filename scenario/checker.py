"""Judging disk images from outside: file systems whole, records gapless, in order, on time.

Owns: reading a recovery point with nothing but its stores, e2fsck, the records' format. Must not
know: how the image came to be.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from leeward.core.units import MIB
from leeward.export.offline import export_to_raw, find_point

SYSTEM_PARTITION = 32 * MIB
RECORD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Image:
    """What a recovery point holds. times_ms: of the system disk's records, the guest's clock;
    boots: the id of the boot that wrote each. count: how far a pair's guest has counted."""

    system: int
    data: int
    times_ms: list[int]
    boots: list[str]
    count: int = 0

    def max_stall_s(self, *, since_ms: int) -> float:
        """Return the longest pause between two records of one boot written after `since_ms`."""
        written = list(zip(self.times_ms, self.boots, strict=True))
        pauses = [
            after - before
            for (before, boot), (after, same) in itertools.pairwise(written)
            if boot == same and before >= since_ms
        ]
        return max(pauses, default=0) / 1000


def read_image(store_urls: list[str], item_id: str, point_id: str, scratch: Path) -> Image:
    """Return what the point holds, having checked all that must be true of any point."""
    found = find_point(store_urls, item_id, point_id)
    files = {}
    for replica in found.replicas:
        files[replica.disk] = scratch / f"{replica.disk}.raw"
        files[replica.disk].unlink(missing_ok=True)
        export_to_raw(found, replica.disk, files[replica.disk])
    system_fs = scratch / "system.ext4"
    _cut(files["system"], SYSTEM_PARTITION, system_fs)
    system, times_ms, boots = _records(system_fs, point_id)
    data, _, _ = _records(files["data"], point_id)
    assert data <= system, f"{point_id}: data disk {data} ahead of system disk {system}"
    assert system - data <= 1, f"{point_id}: record {system} waits for none before it, {data}"
    return Image(system, data, times_ms, boots, int(_content(files["data"], "/count") or b"0"))


def _cut(image: Path, offset: int, to: Path) -> None:
    command = ["dd", f"if={image}", f"of={to}", "bs=1M", f"skip={offset // MIB}", "conv=sparse"]
    subprocess.run(command, check=True, capture_output=True)


def _records(file_system: Path, point_id: str) -> tuple[int, list[int], list[str]]:
    """Return (how many, their times, their boots), the file system clean and no record missing."""
    _e2fsck("-E", "journal_only", "-p", str(file_system))
    code, said = _e2fsck("-f", "-n", str(file_system))
    assert code == 0, f"{point_id}: {file_system.name} is not clean: {said}"
    content = _content(file_system, "/records")
    assert len(content) % RECORD_BYTES == 0, f"{point_id}: a torn record in {file_system.name}"
    lines = content.decode("ascii").splitlines()
    for index, line in enumerate(lines):
        assert line[:10] == f"{index + 1:010d}", f"{point_id}: {file_system.name} has a gap: {line}"
    fields = [line.split() for line in lines]
    return len(lines), [int(each[1]) for each in fields], [each[2] for each in fields]


def _content(file_system: Path, name: str) -> bytes:
    """Return what the file holds, nothing if it is not there."""
    command = ["debugfs", "-R", f"cat {name}", str(file_system)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _e2fsck(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["e2fsck", *arguments], check=False, capture_output=True, text=True, env={"PATH": "/sbin"}
    )
    return done.returncode, done.stdout + done.stderr
