"""What crosses between regions when a failed-over VM is reprotected.

Owns: metrics ratio and diverged_mb. A disk of 64 GiB, 4 GiB of it full, has failed over after its
source was drained; since then the VM has written 1 % of the 4 GiB, single 4 KiB blocks at random,
with data that does not compress. Its old disk seeds the new replica inside its own region. Counted
is every byte that is stored in the cache, by either side, until the first recovery point; it is
compared with the disk before it counts.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import Invalid, Result, scratch
from leeward.core.clock import SystemClock
from leeward.core.units import BLOCK, GIB, MIB
from leeward.mobility.replicator import Places, Replicator
from leeward.mobility.tap_client import stop_watchdog
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.object_store.store import Buffer, ObjectStore
from leeward.processor.item import ItemProcessor
from leeward.processor.seed import seed_replica
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk, ReplicationSpec, SeedSpec
from leeward.qemu.image_server import serve_image
from leeward.qemu.nbd_exports import ensure_nbd_server
from leeward.qemu.overlay import add_overlay_bitmaps, create_overlay
from leeward.qemu.session import QmpSession
from leeward.replica.disk import PointDisk, open_point

ITEM, DISK, EPOCH = "item-1", "d", 4
PIECES = 256
"""Into so many pieces the full part of the disk is cut, spread evenly."""
POINT_SECONDS = 300.0


def run(size_gib: float = 64, full_gib: float = 4, changed_percent: float = 1) -> Result:
    """Reprotect once and return the figures."""
    with scratch() as root, ExitStack() as stack:
        stack.callback(shutil.rmtree, root / "shm", ignore_errors=True)
        old, size = root / "old.raw", int(size_gib * GIB)
        full = _fill(old, size, int(full_gib * GIB))
        target = create_file_store(root / "target")
        seeded_s = _seed(root, old, target)
        session = stack.enter_context(_failed_over(root, old, size))
        changed = _write(root, full, int(full_gib * GIB * changed_percent / 100))
        cache = Counting(create_file_store(root / "cache"))
        sent_s = _replicate(root, session, cache, target)
        _compare(root, target)
    diverged = changed * BLOCK
    return Result(
        {
            "ratio": [cache.bytes_stored / diverged],
            "diverged_mb": [diverged / 1e6],
            "seed_s": [seeded_s],
            "send_s": [sent_s],
        },
        {"ratio": "≤ 1.1"},
    )


@dataclass
class Counting:
    """A store that counts what is put into it."""

    store: ObjectStore
    bytes_stored: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.store.url

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        with self._lock:
            self.bytes_stored += sum(memoryview(part).nbytes for part in parts)
        self.store.create(name, data)

    def get(self, name: str) -> bytes:
        return self.store.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self.store.get_range(name, offset, length)

    def size(self, name: str) -> int:
        return self.store.size(name)

    def list(self, prefix: str) -> list[str]:
        return self.store.list(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self.store.sizes(prefix)

    def delete(self, name: str) -> None:
        self.store.delete(name)


# ── before ───────────────────────────────────────────────────────────────────────────────────────


def _fill(path: Path, size: int, full: int) -> list[tuple[int, int]]:
    """Return the (offset, length) of the pieces that hold data."""
    length, step = full // PIECES // BLOCK * BLOCK, size // PIECES // MIB * MIB
    noise = random.Random(1).randbytes(length)
    with path.open("wb") as file:
        file.truncate(size)
        for index in range(PIECES):
            file.seek(index * step)
            file.write(index.to_bytes(8, "big") + noise[8:])
    return [(index * step, length) for index in range(PIECES)]


def _seed(root: Path, old: Path, target: ObjectStore) -> float:
    """Return the seconds it took to make the old disk the target's newest state."""
    began = time.monotonic()
    with serve_image(old, "raw", root) as disk:
        replica = ReplicaDisk(disk=DISK, size_bytes=disk.size_bytes, target_url=target.url)
        spec = SeedSpec(
            item_id=ITEM,
            epoch=EPOCH - 1,
            vm_id="vm",
            catalog_url=target.url,
            replicas=(replica,),
        )
        seed_replica(spec, lambda _: target, {DISK: disk}, SystemClock())
    return time.monotonic() - began


@contextmanager
def _failed_over(root: Path, old: Path, size: int) -> Iterator[QmpSession]:
    """A storage daemon stands for the VM: an overlay over what the old disk held, its bitmap on."""
    create_overlay(root / "new.qcow2", size)
    base = f"driver=file,node-name=old,filename={old},read-only=on"
    nodes = (
        base,
        "driver=raw,node-name=base,file=old,read-only=on",
        f"driver=file,node-name=file-{DISK},filename={root / 'new.qcow2'}",
        f"driver=qcow2,node-name=disk-{DISK},file=file-{DISK},backing=base",
    )
    command = ["qemu-storage-daemon"]
    for node in nodes:
        command += ["--blockdev", node]
    command += ["--chardev", f"socket,id=qmp,path={root / 'qmp'},server=on,wait=off"]
    command += ["--monitor", "chardev=qmp"]
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(lambda: (root / "qmp").exists(), "a storage daemon", 10)
        session = QmpSession.connect(root / "qmp")
        ensure_nbd_server(session, root / "nbd")
        export = {"type": "nbd", "id": "guest", "node-name": f"disk-{DISK}", "name": "guest"}
        session.execute("block-export-add", {**export, "writable": True})
        add_overlay_bitmaps(session, [DISK])
        yield session
        session.close()
    finally:
        daemon.kill()
        daemon.wait()


def _write(root: Path, full: list[tuple[int, int]], changed: int) -> int:
    """Return how many blocks were written, each once, with noise."""
    chance = random.Random(2)
    per_piece = full[0][1] // BLOCK
    count = changed // BLOCK
    with NbdClient.connect(root / "nbd", "guest") as guest:
        for index in chance.sample(range(PIECES * per_piece), count):
            offset = full[index // per_piece][0] + index % per_piece * BLOCK
            guest.write(offset, chance.randbytes(BLOCK))
        guest.flush()
    return count


# ── measured ─────────────────────────────────────────────────────────────────────────────────────


def _replicate(root: Path, session: QmpSession, cache: ObjectStore, target: ObjectStore) -> float:
    """Return the seconds until the target listed its first recovery point."""
    began = time.monotonic()
    replica = ReplicaDisk(disk=DISK, size_bytes=0, target_url=target.url)
    processor = ItemProcessor(
        ProcessingSpec(
            item_id=ITEM,
            epoch=EPOCH,
            cache_url=cache.url,
            catalog_url=target.url,
            replicas=(replica,),
        ),
        {cache.url: cache, target.url: target}.__getitem__,
        SystemClock(),
    )
    replicator = Replicator(
        ReplicationSpec(
            item_id=ITEM,
            epoch=EPOCH,
            vm_id="vm",
            disks=(DISK,),
            cache_url=cache.url,
            is_based=True,
        ),
        open_session=lambda: session,
        open_store=lambda _: cache,
        places=Places(
            run_dir=root / "run",
            shm_dir=root / "shm",
            data_dir=root / "data",
            nbd_socket=root / "nbd",
        ),
    )
    replicator.start()
    try:

        def is_listed() -> bool:
            processor.step()
            return bool(processor.points)

        _wait(is_listed, f"a recovery point ({replicator.status()})", POINT_SECONDS)
        return time.monotonic() - began
    finally:
        replicator.stop(detach=True)
        stop_watchdog(root / "run")
        processor.close()


def _compare(root: Path, target: ObjectStore) -> None:
    """Return if the newest point is the disk, byte by byte. Raises: Invalid."""
    (point,) = open_point(target, {DISK: target}, ITEM, "latest").values()
    with NbdClient.connect(root / "nbd", "guest") as guest, point:
        for offset in range(0, point.size_bytes, 64 * MIB):
            length = min(64 * MIB, point.size_bytes - offset)
            if not _is_equal(guest, point, offset, length):
                raise Invalid(f"the recovery point differs from the disk at {offset}")


def _is_equal(guest: NbdClient, point: PointDisk, offset: int, length: int) -> bool:
    """Say whether both hold the same; where neither has data nothing is read."""
    at = offset
    for count, flags in guest.block_status(offset, length):
        has_data = any(has for _, has in point.extents(at, count))
        if (has_data or not flags & 2) and point.read(at, count) != guest.read(at, count):
            return False
        at += count
    return True


def _wait(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Invalid(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
