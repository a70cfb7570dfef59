"""Disk images of VMs: created, imported, deleted; never half there.

Owns: image files and qemu-img. Must not know: VMs' processes. An image appears under its name only
when it is whole.
"""

from __future__ import annotations

import fcntl
import glob
import json
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.core.units import SECTOR
from leeward.protocol.fabric import DiskSpec
from leeward.qemu.overlay import create_overlay

FORMATS = ("raw", "qcow2")
IMPORT_SECONDS = 3600.0
QUICK_SECONDS = 30.0
OPEN_SECONDS = 10.0
"""How long a program takes to open what it writes, at most, on a machine that has much to do."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img says of an image."""

    format: str
    size_bytes: int
    refers_to: str
    """Another file it needs (backing or data file); "" for none."""


def image_path(vm_id: str, disk: DiskSpec) -> Path:
    """Return where the VM's image lies."""
    return Path(disk.directory) / f"{vm_id}-{disk.name}.{disk.format}"


def overlay_path(vm_id: str, disk: DiskSpec, nonce: str) -> Path:
    """Return where the VM's overlay lies. nonce: of this boot from a recovery point, used by no
    other: hosts share stores, and one that was away deletes what it had under its own name."""
    return Path(disk.directory) / f"{vm_id}-{disk.name}{nonce and '.'}{nonce}.qcow2"


def check_new(path: Path, disk: DiskSpec) -> None:
    """Return if an image may be created at `path`. Raises: Conflict, InvalidRequest."""
    if disk.format not in FORMATS:
        raise InvalidRequest(
            f"disk {disk.name}: {disk.format!r} is not a disk format",
            field="format",
            hint="use raw or qcow2",
        )
    if path.exists():
        raise Conflict(f"disk {disk.name}: {path} exists already", field="disks")


def create_image(path: Path, disk: DiskSpec) -> None:
    """Make `path` the disk's image: empty, or with its image's content.

    Raises: InvalidRequest when there is no such image or it is larger than the disk; Unavailable
    when it cannot be written.
    """
    with _making(path) as (partial, held):
        if disk.image:
            _import(partial, disk, held)
        else:
            _create_empty(partial, disk, held)
        _settle(partial, path)


def create_overlay_image(path: Path, disk: DiskSpec, base_socket: Path) -> None:
    """Make `path` an empty overlay as large as the disk, or as the base if no size is given."""
    size_bytes = disk.size_bytes or _base_size(disk.name, base_socket)
    with _making(path) as (partial, held):
        create_overlay(partial, size_bytes, held=held)
        _settle(partial, path)


@contextmanager
def _making(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give the name that the image has until it is whole, and a file to be kept open by whatever
    makes it: locked, it tells who takes the image away that an agent's child has outlived it."""
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield partial, held
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _wait_made(partial: Path) -> None:
    """Return when nothing makes the image any more, or has had time to open it at least: what
    opens it later than it was taken away would make it once more."""
    deadline = time.monotonic() + OPEN_SECONDS
    with suppress(FileNotFoundError), partial.open("r+b") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)


def delete_image(path: Path) -> None:
    """Make neither the image nor a part of it exist. Idempotent."""
    try:
        _wait_made(_partial(path))
        _partial(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot delete {path}: {error.strerror}") from error


def keep_image(path: Path) -> None:
    """Make the image stay under another name when its VM is deleted, beside what was kept so
    before. Idempotent."""
    names = (path.with_name(f"{path.name}.kept{number or ''}") for number in count())
    try:
        if path.exists():
            path.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise Unavailable(f"cannot rename {path}: {error.strerror}") from error


def check_unused(vm_id: str, disk: DiskSpec) -> None:
    """Return if nobody uses an overlay of the VM's disk that is there already, left by another host
    in a store that both share: the VM would run twice. Raises: Conflict."""
    stem = glob.escape(f"{vm_id}-{disk.name}.")
    for path in sorted(Path(disk.directory).glob(f"{stem}*qcow2")):
        try:
            _qemu_img("info", str(path))
        except Unavailable as error:
            with suppress(Unavailable):
                _qemu_img("info", "-U", str(path))
                raise Conflict(f"{path} is in use: {error}", field="disks") from error


def image_size(path: Path, image_format: str) -> int:
    """Return the size a guest sees, in bytes; works while a VM has it open."""
    if image_format == "raw":
        try:
            return path.stat().st_size
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    return _inspect(str(path), "-U", "-f", image_format).size_bytes


def allocated_bytes(path: Path) -> int:
    """Return how much space the image takes."""
    try:
        return path.stat().st_blocks * SECTOR
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error


def grow_image(path: Path, image_format: str, size_bytes: int) -> None:
    """Make the image that nobody uses so large. Idempotent. Raises: Unavailable."""
    if image_size(path, image_format) < size_bytes:
        _qemu_img("resize", "-q", "-f", image_format, str(path), str(size_bytes))


def is_direct_possible(directory: Path) -> bool:
    """Say whether files in `directory` can be used past the page cache (O_DIRECT)."""
    with tempfile.TemporaryFile(dir=directory) as probe:  # without a name: a kill leaves nothing
        try:
            descriptor = os.open(f"/proc/self/fd/{probe.fileno()}", os.O_RDWR | os.O_DIRECT)
        except OSError:
            return False
        try:
            with mmap.mmap(-1, 4096) as page:  # page-aligned, as O_DIRECT asks
                return os.write(descriptor, page) == 4096
        except OSError:
            return False
        finally:
            os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _create_empty(path: Path, disk: DiskSpec, held: BinaryIO) -> None:
    if disk.size_bytes <= 0 or disk.size_bytes % SECTOR:
        raise InvalidRequest(
            f"disk {disk.name}: {disk.size_bytes} bytes is no size for an empty disk",
            field="size_bytes",
            hint="a multiple of 512",
        )
    _qemu_img("create", "-q", "-f", disk.format, str(path), str(disk.size_bytes), held=held)


def _import(path: Path, disk: DiskSpec, held: BinaryIO) -> None:
    source = Path(disk.image)
    if not source.is_file():
        raise InvalidRequest(f"disk {disk.name}: there is no image {source}", field="image")
    info = _inspect(str(source))
    if info.refers_to:
        raise InvalidRequest(
            f"disk {disk.name}: {source} needs another file, {info.refers_to}",
            field="image",
            hint="flatten it first: qemu-img convert",
        )
    if disk.size_bytes and disk.size_bytes < info.size_bytes:
        raise InvalidRequest(
            f"disk {disk.name}: {source} needs {info.size_bytes} bytes, not {disk.size_bytes}",
            field="size_bytes",
        )
    if info.format == disk.format == "raw":
        copy = ("cp", "--reflink=auto", "--sparse=always", "--", str(source), str(path))
        _run(*copy, held=held)
    else:
        formats = ("-f", info.format, "-O", disk.format)
        convert = ("convert", "-q", *formats, str(source), str(path))
        _qemu_img(*convert, seconds=IMPORT_SECONDS, held=held)
    if disk.size_bytes > info.size_bytes:
        _qemu_img("resize", "-q", "-f", disk.format, str(path), str(disk.size_bytes), held=held)


def _settle(partial: Path, path: Path) -> None:
    """Give a finished image its name, durably. Raises: Conflict rather than overwrite."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.chmod(0o600)
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise Conflict(f"{path} exists already", field="disks") from error


def _base_size(disk: str, socket: Path) -> int:
    server = {"type": "unix", "path": str(socket)}
    options = {"driver": "nbd", "server": server, "export": disk}
    return _inspect("json:" + json.dumps({"driver": "raw", "file": options})).size_bytes


def _inspect(name: str, *options: str) -> ImageInfo:
    raw = json.loads(_qemu_img("info", "--output=json", *options, name))
    specific = (raw.get("format-specific") or {}).get("data") or {}
    return ImageInfo(
        format=raw["format"],
        size_bytes=raw["virtual-size"],
        refers_to=raw.get("backing-filename") or specific.get("data-file") or "",
    )


def _qemu_img(*arguments: str, seconds: float = QUICK_SECONDS, held: BinaryIO | None = None) -> str:
    return _run("qemu-img", *arguments, seconds=seconds, held=held)


def _run(*argv: str, seconds: float = IMPORT_SECONDS, held: BinaryIO | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=held or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise InvalidRequest(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{argv[0]} {argv[1]} took longer than {seconds:g} s") from error
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise Unavailable(f"{argv[0]} {argv[1]} failed: {said.splitlines()[-1]}")
    return done.stdout
