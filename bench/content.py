"""A disk with real file data, for benchmarks in which content counts.

Owns: which files, and the image they are packed into. Must not know: what is measured with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bench.common import Invalid

SOURCES = ("/usr/bin", "/usr/lib", "/usr/share", "/usr/include", "/opt")
"""Programs, libraries and texts of this machine, as found on any."""


def make_disk(root: Path, *, disk_bytes: int, content_bytes: int) -> Path:
    """Return a raw image with an ext4 file system that holds about so many bytes of real files.

    Raises: Invalid where there are not enough files.
    """
    tree, image = root / "tree", root / "content.raw"
    left = content_bytes
    for number, path in enumerate(_files()):
        size = path.stat().st_size
        if size > left:
            continue
        folder = tree / str(number // 1000)
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # one that may not be read
            shutil.copyfile(path, folder / str(number))
            left -= size
        if left < content_bytes // 1000:
            break
    else:
        raise Invalid(f"{', '.join(SOURCES)} lack {left} bytes of {content_bytes}")
    with image.open("wb") as file:
        file.truncate(disk_bytes)
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", "-d", str(tree)]
    subprocess.run([*make, str(image)], check=True)
    shutil.rmtree(tree)
    return image


def data_ranges(image: Path) -> list[tuple[int, int]]:
    """Return (start, end) of what the image's file system has allocated, bytes, in order."""
    ranges = []
    with image.open("rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            ranges.append((start, at))
    return ranges


def _files() -> Iterator[Path]:
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_file() and not path.is_symlink():
                    yield path
