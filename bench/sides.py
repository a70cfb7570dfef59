"""Agent side and worker side of a benchmark, each a process of its own as in production.

Owns: making the replicator or the item's loop of production's parts, and saying how it stands: one
JSON line per line on standard input, whose end ends the process. Must not know: what is measured.
Run as `python -m bench.sides agent|worker SETUP.json`; started by path.py.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leeward.core.clock import SystemClock
from leeward.core.codec import from_json
from leeward.core.errors import Conflict, LeewardError
from leeward.mobility.replicator import Places, Replicator
from leeward.mobility.tap_client import Tap, TapConfig, stop_watchdog
from leeward.model.recovery import ReplicationState
from leeward.object_store.open import open_store
from leeward.observability.log import configure_logging
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import ItemLoop
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk, ReplicationSpec
from leeward.qemu.session import QmpSession
from leeward.recovery_points.retention import plan_retention

ITEM = "item-bench"
DISK = "disk"
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where everything is. root: short, it holds unix sockets. shm: for the tap's journal."""

    root: str
    shm: str
    disk_bytes: int
    qmp_socket: str
    nbd_socket: str
    cache_url: str
    target_url: str


def run_agent(setup: Setup) -> None:
    """The guest is protected until standard input ends; then nothing of ours is left in it."""
    session = Session(Path(setup.qmp_socket))
    places = Places(
        run_dir=Path(setup.root) / "run",
        shm_dir=Path(setup.shm),
        data_dir=Path(setup.root) / "data",
        nbd_socket=Path(setup.nbd_socket),
    )
    spec = ReplicationSpec(
        item_id=ITEM, epoch=1, vm_id="vm-bench", disks=(DISK,), cache_url=setup.cache_url
    )
    replicator = Replicator(spec, open_session=session.get, open_store=open_store, places=places)
    watch = _Watch(replicator, places, setup.disk_bytes)
    began = time.monotonic()
    replicator.start()
    watch.start()
    _answer(lambda: {**watch.look(), "began": began})
    watch.stop()
    replicator.stop(detach=True)
    stop_watchdog(places.run_dir)


def run_worker(setup: Setup) -> None:
    """The item is processed until standard input ends."""
    spec = ProcessingSpec(
        item_id=ITEM,
        epoch=1,
        cache_url=setup.cache_url,
        catalog_url=setup.target_url,
        replicas=(
            ReplicaDisk(disk=DISK, size_bytes=setup.disk_bytes, target_url=setup.target_url),
        ),
    )
    clock = SystemClock()
    processor = ItemProcessor(spec, open_store, clock)
    loop = ItemLoop(spec, processor, lambda points: plan_retention(points, spec.tiers), clock)
    loop.start()
    _answer(
        lambda: {
            "problem": loop.status().problem,
            "applied": processor.applied_sequence,
            "cpu": sum(os.times()[:2]),
        }
    )
    loop.stop()


class Session:
    """The guest's one QMP session, as a fabric driver gives it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: QmpSession | None = None

    def get(self) -> QmpSession:
        if self._session is None or not self._session.is_connected:
            if not self._path.exists():
                raise Conflict("the storage daemon does not run")
            self._session = QmpSession.connect(self._path)
        return self._session


class _Watch:
    """Counts how often the replicator was seen streaming, and what its tap has been through."""

    def __init__(self, replicator: Replicator, places: Places, disk_bytes: int) -> None:
        self._replicator = replicator
        self._config = TapConfig(
            item_id=ITEM,
            disks=((DISK, disk_bytes),),
            run_dir=places.run_dir,
            shm_dir=places.shm_dir,
            data_dir=places.data_dir,
        )
        self._samples = self._streaming = 0
        self._tap: Tap | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self._tap is not None:
            self._tap.close()

    def _count(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            self._samples += 1
            self._streaming += self._replicator.status().state is ReplicationState.STREAMING

    def look(self) -> dict[str, object]:
        status = self._replicator.status()
        found: dict[str, object] = {
            "state": status.state.value,
            "problem": status.problem,
            "samples": self._samples,
            "streaming": self._streaming,
            "sequence": status.uploaded_sequence,
            "written": status.bytes_written,
            "shipped": status.bytes_shipped,
            "cpu": sum(os.times()[:2]),
        }
        if status.state is ReplicationState.STREAMING and self._tap is None:
            self._tap = Tap.start_or_adopt(self._config)
        if self._tap is not None:
            tap = self._tap.status()
            found |= {"breaks": tap.breaks, "detached": tap.detached_reason}
            found |= {"free_buffers": tap.free_buffers, "last_break": tap.last_break}
        return found


def _answer(look: Callable[[], dict[str, object]]) -> None:
    for _ in sys.stdin:
        try:
            found = look()
        except LeewardError as error:
            found = {"problem": str(error)}
        print(json.dumps({**found, "time": time.monotonic()}), flush=True)


def main() -> None:
    """Be the side named on the command line."""
    configure_logging()
    setup = from_json(Path(sys.argv[2]).read_bytes(), Setup)
    {"agent": run_agent, "worker": run_worker}[sys.argv[1]](setup)


if __name__ == "__main__":
    main()
