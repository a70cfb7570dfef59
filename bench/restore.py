"""How fast a recovery point becomes a raw image, against QEMU's own conversion of the same content.

Owns: metrics mb_s (bytes of data restored per second by what `leeward export --raw` runs, in a
running process, finding and opening the point included) and ratio (÷ qemu-img convert from a zstd
qcow2 to raw). Both end with the image durable on disk, both leave holes where there is no data,
both read from the page cache. cpu_ratio compares the processor time that they took: on a machine
with other work, that is what can be compared.
"""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path

from bench.common import Invalid, Result, scratch
from bench.content import make_disk
from bench.image_replica import write_replica
from leeward.core.units import GIB, MIB, SECTOR
from leeward.export.offline import export_to_raw, find_point
from leeward.object_store.file import create_file_store

RUNS = 5
SIZE_BYTES = 4 * GIB
DATA_BYTES = GIB
ITEM = "item-restore"
DISK = "disk"


def run(runs: float = RUNS, data_mib: float = DATA_BYTES // MIB) -> Result:
    """Restore the same content both ways, in turn."""
    with scratch() as root:
        image = make_disk(root, disk_bytes=SIZE_BYTES, content_bytes=int(data_mib) * MIB)
        data_bytes = image.stat().st_blocks * SECTOR
        store = create_file_store(root / "store")
        write_replica(store, ITEM, {DISK: image})
        packed = root / "image.qcow2"
        _qemu_img("convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", image, packed)
        ours: list[float] = []
        peers: list[float] = []
        cpu_ratios: list[float] = []
        for number in range(int(runs) + 1):
            mine, theirs = root / "ours.raw", root / "theirs.raw"
            cpu = [_cpu_seconds()]
            began = time.monotonic()
            export_to_raw(find_point([store.url], ITEM, "latest"), DISK, mine)
            between = time.monotonic()
            cpu.append(_cpu_seconds())
            _qemu_img("convert", "-t", "writeback", "-O", "raw", packed, theirs)
            ended = time.monotonic()
            cpu.append(_cpu_seconds())
            if number:  # the first brings everything into the page cache
                ours.append(data_bytes / 1e6 / (between - began))
                peers.append(data_bytes / 1e6 / (ended - between))
                cpu_ratios.append((cpu[1] - cpu[0]) / (cpu[2] - cpu[1]))
            else:
                _qemu_img("compare", "-f", "raw", "-F", "raw", image, mine)
                _check_sparse(mine, theirs)
            mine.unlink()
            theirs.unlink()
    return Result(
        {
            "mb_s": ours,
            "qemu_img_mb_s": peers,
            "ratio": [mine / theirs for mine, theirs in zip(ours, peers, strict=True)],
            "cpu_ratio": cpu_ratios,
        },
        {"ratio": "≥ 1.0"},
    )


def _check_sparse(mine: Path, theirs: Path) -> None:
    """Raises: Invalid unless our image takes about as little space as the peer's."""
    ours, peers = (path.stat().st_blocks for path in (mine, theirs))
    if ours > peers * 1.1:
        raise Invalid(f"our image takes {ours} sectors of the disk, the peer's {peers}")


def _cpu_seconds() -> float:
    """Return what this process and the programs that it has waited for have taken."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _qemu_img(*arguments: object) -> None:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Invalid(f"qemu-img: {done.stderr.strip()}")
