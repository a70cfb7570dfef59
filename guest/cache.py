"""Built guests, kept under $LEEWARD_CACHE or ~/.cache/leeward until nobody wants them any more.

Owns: their names, the lock, what goes. Must not know: how any guest is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import packages

HERE = Path(__file__).resolve().parent
UNUSED_SECONDS = 7 * 24 * 3600.0


def copy_cached(
    kind: str,
    versions: dict[str, str],
    files: Iterable[Path],
    build: Callable[[Path], None],
    out: Path,
) -> None:
    """Leave the images of a guest in `out`, built now if they were not in the cache.

    versions, files: what it is built from, besides these programs. build: leaves the images in the
    subdirectory "images" of the scratch directory it is given.
    """
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    wanted = cache / f"{kind}-{fingerprint(versions, files)}"
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once: the second finds the first's result
        if not wanted.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{kind}-building-") as scratch:
                build(Path(scratch))
                (Path(scratch) / "images").rename(wanted)
        os.utime(wanted)
        for image in sorted(wanted.iterdir()):
            packages.run("cp", "--reflink=auto", "--sparse=always", image, out / image.name)
        remove_unused(cache, kind)


def cache_root() -> Path:
    """Return where built guests are kept."""
    chosen = os.environ.get("LEEWARD_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "leeward"


def fingerprint(versions: dict[str, str], files: Iterable[Path]) -> str:
    """Return a name for what a build of these programs from these packages and files gives."""
    digest = hashlib.sha256(repr(sorted(versions.items())).encode())
    for path in sorted([*HERE.glob("*.py"), *files]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def remove_unused(cache: Path, kind: str) -> None:
    """Remove the guests that no checkout has wanted for a week."""
    for old in cache.glob(f"{kind}-" + "[0-9a-f]" * 16):
        if time.time() - old.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
