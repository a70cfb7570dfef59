"""How fast a disk gets its first recovery point: 2 GiB of real file data in an 8 GiB disk.

Owns: metrics mb_s, best_peer_mb_s, ratio, and each peer's own. Measured from the start of the
replication to the first point listed in the target storage, compression on, both stores durable.
The disk's content is in the page cache for all. MB/s count what the image has allocated.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench.archive_peers import Peers
from bench.common import Invalid, Result, scratch
from bench.content import data_ranges, make_disk
from bench.path import Protection, begun, guest
from bench.sides import DISK, ITEM
from leeward.core.units import GIB, MIB
from leeward.object_store.open import open_store
from leeward.replica.disk import open_point

DISK_BYTES = 8 * GIB
CONTENT_BYTES = 2 * GIB
LOOK_SECONDS = 0.02
SYNC_SECONDS = 300.0


def run(rounds: float = 3, peers: float = 1) -> Result:
    """Measure `rounds` times; peers=0 leaves the peers out."""
    figures: dict[str, list[float]] = {}
    with scratch() as root:
        image = make_disk(root, disk_bytes=DISK_BYTES, content_bytes=CONTENT_BYTES)
        megabytes = sum(end - start for start, end in data_ranges(image)) / 1e6
        others = Peers(root, image)
        if peers:
            others.prepare()
            if others.absent:
                print(f"absent, not compared with: {', '.join(others.absent)}")
        _read(image)
        for number in range(int(rounds)):
            mb_s = megabytes / _synchronize(root / str(number), image, is_checked=not number)
            figures.setdefault("mb_s", []).append(mb_s)
            if peers:
                found = {name: megabytes / took for name, took in others.run_all().items()}
                best = max(found.values())
                figures.setdefault("best_peer_mb_s", []).append(best)
                figures.setdefault("ratio", []).append(mb_s / best)
                for name, value in found.items():
                    figures.setdefault(f"{name}_mb_s", []).append(value)
    return Result(figures, {"ratio": "≥ 2.5"})


def _read(image: Path) -> None:
    with image.open("rb") as file:
        for start, end in data_ranges(image):
            file.seek(start)
            while start < end:
                start += len(file.read(min(MIB, end - start)))


def _synchronize(root: Path, image: Path, *, is_checked: bool) -> float:
    """Return seconds until the first point was listed. Raises: Invalid if it holds anything else
    than the image, as far as asked."""
    with guest(root, "guest", DISK_BYTES, image) as of, begun(root / "path", of) as protection:
        began = protection.agent.look()["began"]
        while not protection.newest_time_ns():
            if time.monotonic() > began + SYNC_SECONDS:
                raise protection.agent.failure("does not get a first point")
            time.sleep(LOOK_SECONDS)
        seconds = float(time.monotonic() - began)
        _check(protection)
        if is_checked:
            _compare(protection, image)
    shutil.rmtree(root)
    return seconds


def _check(protection: Protection) -> None:
    agent, worker = protection.agent.look(), protection.worker.look()
    if agent["problem"] or worker["problem"] or agent["breaks"]:
        raise Invalid(f"replication did not run well: {agent}, {worker}")
    print(f"  agent {agent['cpu']:.1f} s and worker {worker['cpu']:.1f} s of processor time")


def _compare(protection: Protection, image: Path) -> None:
    """Return if the newest point is the image, wherever that has data."""
    store = open_store(protection.target_url)
    with open_point(store, {DISK: store}, ITEM, "latest")[DISK] as disk, image.open("rb") as file:
        for start, end in data_ranges(image):
            file.seek(start)
            for at in range(start, end, 16 * MIB):
                count = min(16 * MIB, end - at)
                if disk.read(at, count) != file.read(count):
                    raise Invalid(f"the recovery point differs from the disk at {at}")
