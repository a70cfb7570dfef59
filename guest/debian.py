#!/usr/bin/env python3
"""Build a Debian guest: `python guest/debian.py --out DIR` leaves system.raw and data.raw there.

Owns: what is in it: systemd, PostgreSQL, QEMU's guest agent; the database's files are on the data
disk, its write-ahead log is on the system disk. It is built once, by mmdebstrap as root; see
cache.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import cache
import disk
import initramfs
import packages

FILES = Path(__file__).resolve().parent / "debian"
INCLUDED = ("dbus", "e2fsprogs", "postgresql-15", "qemu-guest-agent", "systemd-sysv", "udev")
EXCLUDED = (
    *("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"),
    *(
        "/usr/lib/x86_64-linux-gnu/libLLVM*",
        "/usr/lib/llvm*",
        "/usr/lib/postgresql/15/lib/bitcode/*",
    ),
)
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("fstrim.timer", "e2scrub_reap.service", "getty@tty1.service", "serial-getty@ttyS0.service"),
    *("systemd-update-utmp.service", "systemd-tmpfiles-clean.timer"),
)
SYSTEM_MIB, DATA_MIB = 768, 320
APPEND = "net.ifnames=0 systemd.show_status=0"
DATABASE = "var/lib/postgresql"
LOG = "var/lib/postgresql-wal"


def main() -> int:
    """Build or take from the cache. Returns: the exit code."""
    parser = argparse.ArgumentParser(description="Build a Debian guest with PostgreSQL.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the images")
    options = parser.parse_args()
    try:
        kernel = packages.kernel_package()
        tools = packages.candidate_versions((kernel, *packages.TOOLS))
        versions = tools | packages.candidate_versions(INCLUDED)
        cache.copy_cached(
            "postgres",
            versions,
            FILES.iterdir(),
            lambda scratch: build(scratch, tools, kernel.removeprefix("linux-image-")),
            options.out,
        )
    except (packages.BuildFailed, OSError) as error:
        print(f"guest/debian.py: {error}", file=sys.stderr)
        return 1
    print(f"guest images are in {options.out}")
    return 0


def build(scratch: Path, tools: dict[str, str], release: str) -> None:
    """Leave the images in `scratch`/images. Raises: BuildFailed."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        raise packages.BuildFailed("needs root and mmdebstrap: apt-get install mmdebstrap")
    print("building a Debian guest; this takes minutes")
    unpacked, debian, images = scratch / "root", scratch / "debian", scratch / "images"
    packages.unpack(tools, unpacked)
    install(debian)
    configure(debian)
    data = scratch / "data"
    shutil.move(debian / DATABASE, data)
    (debian / DATABASE).mkdir()
    images.mkdir()
    disk.system_disk(
        images / "system.raw",
        root=unpacked,
        kernel=unpacked / "boot" / f"vmlinuz-{release}",
        initramfs=initramfs.build_minimal(unpacked, release, (FILES / "init").read_bytes()),
        mib=SYSTEM_MIB,
        append=APPEND,
        content=debian,
    )
    disk.ext4(images / "data.raw", mib=DATA_MIB, label="data", identity=2, content=data)


def install(debian: Path) -> None:
    """Have the packages installed under `debian`."""
    packages.run(
        "mmdebstrap",
        *("--variant=minbase", "--mode=root", f"--include={','.join(INCLUDED)}"),
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        *("bookworm", debian),
    )


def configure(debian: Path) -> None:
    """Have the guest boot to a database that answers on its network, and an agent with a hook."""
    for name, place in (
        ("fstab", "etc/fstab"),
        ("eth.network", "etc/systemd/network/eth.network"),
        ("leeward.conf", "etc/postgresql/15/main/conf.d/leeward.conf"),
        ("pg_hba.conf", "etc/postgresql/15/main/pg_hba.conf"),
        ("qemu-guest-agent.conf", "etc/systemd/system/qemu-guest-agent.service.d/leeward.conf"),
        ("note-freeze", "etc/qemu/fsfreeze-hook.d/note-freeze"),
    ):
        path = debian / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((FILES / name).read_bytes())
    (debian / "etc/qemu/fsfreeze-hook.d/note-freeze").chmod(0o755)
    (debian / "etc/hostname").write_text("postgres\n")
    (debian / "etc/machine-id").write_text("")
    system = debian / "etc/systemd/system"
    for unit in MASKED:
        (system / unit).unlink(missing_ok=True)
        (system / unit).symlink_to("/dev/null")
    wanted = system / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    link = wanted / "systemd-networkd.service"
    link.unlink(missing_ok=True)
    link.symlink_to("/lib/systemd/system/systemd-networkd.service")
    log = debian / DATABASE / "15/main/pg_wal"
    shutil.move(log, debian / LOG)
    log.symlink_to(f"/{LOG}")
    owner = (debian / DATABASE / "15/main").stat()
    os.chown(log, owner.st_uid, owner.st_gid, follow_symlinks=False)


if __name__ == "__main__":
    sys.exit(main())
