"""How fast a tap takes writes: fio's NBD engine straight into a tap whose journal is released.

Owns: metrics writes_per_s_4k (depth 16), mb_per_s_128k, pss_mib (of the process, its shared-memory
journal and buffers not counted). Nothing is compressed or uploaded: this is the tap's own ceiling.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import Invalid, Result, fio, scratch
from leeward.core.units import GIB, MIB
from leeward.mobility.tap_client import Tap, TapConfig, stop_watchdog

RUNS = 3
SECONDS = 4
DISK = "disk"
RELEASE_SECONDS = 0.02


def run() -> Result:
    """Measure a fresh tap `RUNS` times."""
    figures: dict[str, list[float]] = {"writes_per_s_4k": [], "mb_per_s_128k": [], "pss_mib": []}
    with running_tap() as tap:
        for _ in range(RUNS):
            figures["writes_per_s_4k"].append(_write(tap, "4k")["iops"])
            figures["mb_per_s_128k"].append(_write(tap, "128k")["bw_bytes"] / 1e6)
            figures["pss_mib"].append(pss_mib(tap.pid))
    targets = {"writes_per_s_4k": "≥ 80000", "mb_per_s_128k": "≥ 3000", "pss_mib": "≤ 25"}
    return Result(figures, targets)


@contextmanager
def running_tap() -> Iterator[Tap]:
    """Give a tap of one 4 GiB disk, with a consumer that only releases."""
    with scratch() as root, tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lwb") as shm:
        config = TapConfig(
            item_id="item-bench",
            disks=((DISK, 4 * GIB),),
            run_dir=root / "run",
            shm_dir=Path(shm),
            data_dir=root / "data",
        )
        tap = Tap.start_or_adopt(config)
        stop = threading.Event()
        consumer = threading.Thread(target=_release, args=(tap, stop))
        consumer.start()
        try:
            yield tap
        finally:
            stop.set()
            consumer.join()
            tap.stop()
            stop_watchdog(config.run_dir)
            shutil.rmtree(config.journals_dir, ignore_errors=True)


def pss_mib(pid: int) -> float:
    """Return a process's own memory: its proportional share, mappings in shared memory left out."""
    total = 0
    counted = True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = "/dev/shm/" not in line
        elif counted and line.startswith("Pss:"):
            total += int(line.split()[1])
    return total * 1024 / MIB


def _write(tap: Tap, block: str) -> dict[str, float]:
    before = tap.status()
    job = fio(
        "--ioengine=nbd",
        f"--uri=nbd+unix:///{DISK}?socket={tap.socket}",
        "--rw=randwrite",
        f"--bs={block}",
        "--iodepth=16",
        f"--size={4 * GIB}",
        "--time_based",
        f"--runtime={SECONDS}",
        "--norandommap",
        "--randrepeat=0",
        "--refill_buffers=0",
    )
    after = tap.status()
    if after.detached_reason or after.position - before.position < job["write"]["total_ios"]:
        raise Invalid(f"the tap did not take every write: {after}")
    figures: dict[str, float] = job["write"]
    return figures


def _release(tap: Tap, stop: threading.Event) -> None:
    os.nice(5)  # it stands for work that must not compete with the tap
    while not stop.wait(RELEASE_SECONDS):
        tap.release(tap.journal.position())
