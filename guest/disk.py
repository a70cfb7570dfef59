"""The guest's disk images, made without mounting, loop devices or root.

Owns: partition table, boot partition (FAT16 with syslinux), ext4 file systems. Must not know: what
the kernel and the initramfs hold. Same input, same bytes.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from packages import run

MIB = 1 << 20
SECTOR = 512
SYSTEM_MIB = 128
JOURNAL_MIB = 4
BOOT_START_MIB, BOOT_MIB = 1, 31
DATA_MIB = 64
EPOCH = "1700000000"
"""What every time stamp says, so that the same packages give the same image."""

SYSLINUX = """\
DEFAULT leeward
PROMPT 0
TIMEOUT 0
LABEL leeward
  KERNEL vmlinuz
  INITRD initrd
  APPEND console=ttyS0 quiet mitigations=off no_timer_check panic=1 {append}
"""


def system_disk(
    path: Path,
    *,
    root: Path,
    kernel: Path,
    initramfs: bytes,
    mib: int = SYSTEM_MIB,
    append: str = "leeward.rate=30",
    content: Path | None = None,
) -> None:
    """Write a disk that SeaBIOS boots, its second partition an ext4 file system.

    root: the unpacked packages. append: to the kernel's command line. content: a directory that the
    file system is filled with; None leaves it empty.
    """
    root_start_mib = BOOT_START_MIB + BOOT_MIB
    with path.open("wb") as image:
        image.truncate(mib * MIB)
        image.write((root / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440])
        image.seek(440)
        image.write(b"LWRD\0\0")  # disk signature
        image.write(_partition(0x80, 0x0E, BOOT_START_MIB, BOOT_MIB))
        image.write(_partition(0x00, 0x83, root_start_mib, mib - root_start_mib))
        image.seek(510)
        image.write(b"\x55\xaa")
    settings = SYSLINUX.format(append=append)
    _boot_partition(path, root=root, kernel=kernel, initramfs=initramfs, settings=settings)
    file_system = path.with_suffix(".ext4")
    ext4(file_system, mib=mib - root_start_mib, label="system", identity=1, content=content)
    _copy_sparse(file_system, path, root_start_mib * MIB)
    file_system.unlink()


def _partition(active: int, kind: int, start_mib: int, mib: int) -> bytes:
    """Return a partition table entry; the CHS fields say "see the LBA"."""
    per_mib = MIB // SECTOR
    beyond = b"\xfe\xff\xff"
    return struct.pack(
        "<B3sB3sII", active, beyond, kind, beyond, start_mib * per_mib, mib * per_mib
    )


def _boot_partition(
    path: Path, *, root: Path, kernel: Path, initramfs: bytes, settings: str
) -> None:
    offset = BOOT_START_MIB * MIB
    drive = f"{path}@@{offset}"
    files = path.with_suffix(".files")
    files.mkdir()
    shutil.copyfile(kernel, files / "vmlinuz")
    (files / "initrd").write_bytes(initramfs)
    (files / "syslinux.cfg").write_text(settings)
    tools = f"{root}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": tools, "MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": EPOCH, "TZ": "UTC"}
    sectors = str(BOOT_MIB * MIB // SECTOR)
    # sectors in all, heads, sectors per track, sectors before it, sectors per cluster, serial
    shape = ("-T", sectors, "-h", "16", "-s", "63", "-H", str(offset // SECTOR), "-c", "8")
    run("mformat", "-i", drive, *shape, "-N", "4c575244", "::", environment=environment)
    run(root / "usr/bin/syslinux", "-i", "-t", str(offset), path, environment=environment)
    contents = sorted(files.iterdir())
    run("mcopy", "-i", drive, *contents, "::", environment=environment)
    shutil.rmtree(files)


def ext4(path: Path, *, mib: int, label: str, identity: int, content: Path | None = None) -> None:
    """Write a file that is an ext4 file system with the content of a directory, its owners
    included, or an empty one; `identity` makes its UUID."""
    uuid = f"6c656577-6172-4d64-8000-{identity:012d}"
    with path.open("wb") as image:
        image.truncate(mib * MIB)
    options = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed={uuid}"
    features = ("-O", "^resize_inode,^metadata_csum_seed", "-J", f"size={JOURNAL_MIB}")
    filled = ("-d", content) if content is not None else ()
    run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-U", uuid),
        *(*features, *filled, "-E", options, path),
        environment={"E2FSPROGS_FAKE_TIME": EPOCH, "PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    )


def _copy_sparse(source: Path, target: Path, offset: int) -> None:
    """Copy `source` into `target` at `offset`, leaving what is zero a hole."""
    with source.open("rb") as reading, target.open("r+b") as writing:
        position = offset
        while block := reading.read(64 * 1024):
            if block.strip(b"\0"):
                writing.seek(position)
                writing.write(block)
            position += len(block)
