"""The two sides of a real item as processes that can be killed: agent and worker.

Owns: what `python -m tests.simulation.real_sides agent|worker CONFIG.json` runs: production's
replicator, or production's item loop. Must not know: faults, checks.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from tests.integration.replication_rig import FaultyStore
from tests.simulation.real_mutants import REAL_MUTANTS

from leeward.core.clock import SystemClock
from leeward.core.errors import Conflict, LeewardError
from leeward.core.units import MIB
from leeward.mobility.replicator import Places, Replicator, Tuning
from leeward.object_store.file import FileStore
from leeward.object_store.store import ObjectStore
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import ItemLoop
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk, ReplicationSpec
from leeward.qemu.session import QmpSession

ITEM = "item-1"
CACHE_FAILS = "cache-fails"
"""While a file of this name is in the item's directory, the agent's cache refuses everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideConfig:
    """Where everything of one item is. disks: name and bytes. mutant: "" for none."""

    root: str
    shm: str
    disks: tuple[tuple[str, int], ...]
    mutant: str = ""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> SideConfig:
        raw = json.loads(path.read_text())
        return cls(
            **(raw | {"disks": tuple((str(name), int(size)) for name, size in raw["disks"])})
        )

    def store_path(self, name: str) -> Path:
        return Path(self.root, name)

    @property
    def processing(self) -> ProcessingSpec:
        return ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=self.store_path("cache").as_uri(),
            catalog_url=self.store_path("target").as_uri(),
            replicas=tuple(
                ReplicaDisk(
                    disk=disk, size_bytes=size, target_url=self.store_path("target").as_uri()
                )
                for disk, size in self.disks
            ),
        )


class _Sessions:
    """The VM's one QMP session, opened when it is gone, as a fabric driver does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: QmpSession | None = None

    def __call__(self) -> QmpSession:
        if self._session is None or not self._session.is_connected:
            if self._session is not None:
                self._session.close()
                self._session = None
            try:
                self._session = QmpSession.connect(self._path)
            except LeewardError as error:
                raise Conflict(f"the storage daemon does not answer: {error}") from error
        return self._session


class _SometimesFailing(FaultyStore):
    """Refuses while there is a file that says so."""

    def __init__(self, store: ObjectStore, switch: Path) -> None:
        super().__init__(store)
        self._switch = switch

    def _check(self) -> None:
        self.refusal = "the cache is away" if self._switch.exists() else ""
        super()._check()


def run_agent(config: SideConfig, ended: threading.Event) -> None:
    """Replicate until asked to end; taps, mirrors and bitmaps stay."""
    root = Path(config.root)
    replicator = Replicator(
        ReplicationSpec(
            item_id=ITEM,
            epoch=1,
            vm_id="vm-1",
            disks=tuple(disk for disk, _ in config.disks),
            cache_url=config.store_path("cache").as_uri(),
            cut_interval_seconds=0.05,
            vm_config={"name": "vm"},
        ),
        open_session=_Sessions(root / "guest-qmp.sock"),
        open_store=lambda _: _SometimesFailing(
            FileStore(config.store_path("cache")), root / CACHE_FAILS
        ),
        places=Places(
            run_dir=root / "run",
            shm_dir=Path(config.shm),
            data_dir=root / "data",
            nbd_socket=root / "guest-nbd.sock",
        ),
        tuning=Tuning(
            buffer_bytes=MIB,
            buffer_count=24,
            idle_cut_seconds=0.5,
            rotate_seconds=0.6,
            applied_seconds=0.05,
            digests_seconds=0.5,
        ),
    )
    replicator.start()
    ended.wait()
    replicator.stop(detach=False)


def run_worker(config: SideConfig, ended: threading.Event) -> None:
    """Apply cuts until asked to end."""
    stores = {
        config.store_path(name).as_uri(): FileStore(config.store_path(name))
        for name in ("cache", "target")
    }
    processor = ItemProcessor(config.processing, stores.__getitem__, SystemClock(), copiers=1)
    processor.take_over()
    loop = ItemLoop(config.processing, processor, lambda points: (), SystemClock())
    loop.start()
    ended.wait()
    loop.stop()


def main() -> None:
    """Run one side until SIGTERM, with the mutant planted that the configuration names."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    config = SideConfig.load(Path(sys.argv[2]))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    run = {"agent": run_agent, "worker": run_worker}[sys.argv[1]]
    if config.mutant:
        with REAL_MUTANTS[config.mutant]():
            run(config, ended)
    else:
        run(config, ended)


if __name__ == "__main__":
    main()
