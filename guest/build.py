#!/usr/bin/env python3
"""Build the demo's guest: `python guest/build.py --out DIR` leaves system.raw and data.raw there.

Owns: the order of the steps. The guest is Debian's cloud kernel with a busybox initramfs that boots
wholly from its own disk; see files/init for what it then does. It is built once, see cache.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cache
import disk
import initramfs
import packages


def main() -> int:
    """Build or take from the cache. Returns: the exit code."""
    parser = argparse.ArgumentParser(description="Build the demo's guest disks.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the images")
    options = parser.parse_args()
    try:
        kernel = packages.kernel_package()
        versions = packages.candidate_versions((kernel, *packages.TOOLS, *packages.AGENT))
        release = kernel.removeprefix("linux-image-")
        cache.copy_cached(
            "guest",
            versions,
            initramfs.FILES.iterdir(),
            lambda scratch: build(scratch, versions, release),
            options.out,
        )
    except (packages.BuildFailed, OSError) as error:
        print(f"guest/build.py: {error}", file=sys.stderr)
        return 1
    print(f"guest images are in {options.out}")
    return 0


def build(scratch: Path, versions: dict[str, str], release: str) -> None:
    """Leave the images in `scratch`/images."""
    print("building the guest from " + ", ".join(f"{n} {v}" for n, v in sorted(versions.items())))
    root = scratch / "root"
    packages.unpack(versions, root)
    images = scratch / "images"
    images.mkdir()
    disk.system_disk(
        images / "system.raw",
        root=root,
        kernel=root / "boot" / f"vmlinuz-{release}",
        initramfs=initramfs.build(root, release),
    )
    disk.ext4(images / "data.raw", mib=disk.DATA_MIB, label="data", identity=2)


if __name__ == "__main__":
    sys.exit(main())
