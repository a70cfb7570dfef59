"""What initial-sync compares with: programs that bring a disk's content, compressed, into a file or
repository.

Owns: their command lines, each at its fastest setting with compression on, all durable at the end.
All are flattered: the image's holes are hidden from restic, which would read them, and none of
them verifies or lists anything a second time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.common import Invalid
from bench.content import data_ranges

PEER_SECONDS = 300.0


class Peers:
    """The peers of this machine; `absent` are the names of those that are not installed."""

    def __init__(self, root: Path, image: Path) -> None:
        """root: for what they write and for their caches."""
        self._root = root
        self._image = image
        self._packed = root / "packed.raw"
        known: dict[str, tuple[str, Callable[[], Sequence[str]]]] = {
            "qemu_img": ("qemu-img", self._qemu_img),
            "restic": ("restic", self._restic),
            "borg_lz4": ("borg", lambda: self._borg("lz4")),
            "borg_zstd": ("borg", lambda: self._borg("zstd,1")),
        }
        self._known = {name: make for name, (tool, make) in known.items() if shutil.which(tool)}
        self.absent = sorted(name for name, (tool, _) in known.items() if not shutil.which(tool))

    def prepare(self) -> None:
        """Have the image without its holes, for who would read them, in the page cache."""
        with self._image.open("rb") as source, self._packed.open("wb") as target:
            for start, end in data_ranges(self._image):
                source.seek(start)
                while start < end:
                    piece = source.read(min(1 << 20, end - start))
                    target.write(piece)
                    start += len(piece)

    def run_all(self) -> dict[str, float]:
        """Return seconds until what each peer has written is durable."""
        return {name: self._run(make) for name, make in self._known.items()}

    def _run(self, make: Callable[[], Sequence[str]]) -> float:
        command = make()
        began = time.monotonic()
        self._call(command)
        for path in self._written():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        seconds = time.monotonic() - began
        shutil.rmtree(self._out)
        return seconds

    @property
    def _out(self) -> Path:
        return self._root / "out"

    def _written(self) -> list[Path]:
        return [path for path in self._out.rglob("*") if path.is_file()]

    def _qemu_img(self) -> Sequence[str]:
        self._out.mkdir()
        options = (
            "-c",
            "-W",
            "-m",
            "16",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
        )
        return ("qemu-img", "convert", *options, str(self._image), str(self._out / "disk.qcow2"))

    def _restic(self) -> Sequence[str]:
        base = ("restic", "-r", str(self._out), "--no-cache", "--quiet")
        self._call((*base, "--repository-version", "2", "init"))
        return (*base, "--compression", "auto", "--pack-size", "64", "backup", str(self._packed))

    def _borg(self, compression: str) -> Sequence[str]:
        self._call(("borg", "init", "-e", "none", str(self._out)))
        options = ("-C", compression, "--chunker-params", "fixed,4194304", "--sparse")
        return ("borg", "create", *options, f"{self._out}::disk", str(self._image))

    def _call(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PEER_SECONDS,
            check=False,
            env={
                **os.environ,
                "RESTIC_PASSWORD": "bench",
                "BORG_BASE_DIR": str(self._root / "borg"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            },
        )
        if done.returncode:
            raise Invalid(f"{command[0]} failed: {done.stderr[-500:]}")
