"""A guest with QEMU's agent in it, and an agent of ours that freezes it, as a process if need be.

Owns: their beginning and end. Must not know: what a test wants to show. Run as
`python -m tests.integration.freeze_rig ROOT EVERY_SECONDS`, it replicates until it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.fabric_rig import REPOSITORY, Rig, ask, rig, wait_for_records
from tests.integration.replication_rig import ITEM
from tests.integration.storage_daemon import wait_until

from leeward.fabric.processes import find
from leeward.fabric.qemu_driver import QemuDriver
from leeward.mobility.replicator import Places, Replicator
from leeward.mobility.tap_client import stop_watchdog
from leeward.model.recovery import ReplicationState
from leeward.object_store.file import FileStore, create_file_store
from leeward.object_store.store import ObjectStore
from leeward.protocol.fabric import ReplicationSpec

VM = "frozen"


def replicator_of(root: Path, driver: QemuDriver, *, every_seconds: int) -> Replicator:
    """Return the VM's replicator, not yet started."""
    store = FileStore(root / "cache")
    spec = ReplicationSpec(
        item_id=ITEM,
        epoch=1,
        vm_id=VM,
        disks=("system", "data"),
        cache_url=store.url,
        cut_interval_seconds=0.2,
        app_consistent_seconds=every_seconds,
    )
    return Replicator(
        spec,
        open_session=lambda: driver.qmp(VM),
        open_store=lambda _: store,
        places=Places(
            run_dir=root / "run",
            shm_dir=root / "shm",
            data_dir=root / "data",
            nbd_socket=root / "run" / "nbd.sock",
            agent_socket=lambda: driver.agent_socket(VM),
        ),
    )


@dataclass
class Guest:
    """A VM with the demo's guest, and what replicates it."""

    host: Rig
    driver: QemuDriver
    port: int
    store: ObjectStore

    @property
    def root(self) -> Path:
        return self.host.directory

    @contextmanager
    def replicated(self, *, every_seconds: int = 0) -> Iterator[Replicator]:
        """Its replication, streaming."""
        (self.root / "data" / "replication" / f"{ITEM}.freeze.json").unlink(missing_ok=True)
        replicator = replicator_of(self.root, self.driver, every_seconds=every_seconds)
        replicator.start()
        try:
            wait_until(
                lambda: replicator.status().state is ReplicationState.STREAMING,
                "streaming",
                seconds=60,
            )
            yield replicator
        finally:
            replicator.stop(detach=False)

    @contextmanager
    def agent(self, *, every_seconds: int) -> Iterator[subprocess.Popen[bytes]]:
        """A process that replicates it; killed at the end."""
        (self.root / "data" / "replication" / f"{ITEM}.freeze.json").unlink(missing_ok=True)
        self.driver.close()  # QEMU serves one client
        argv = [sys.executable, "-m", "tests.integration.freeze_rig", str(self.root)]
        with subprocess.Popen([*argv, str(every_seconds)], cwd=REPOSITORY) as process:
            try:
                yield process
            finally:
                process.kill()

    def hooks(self, seconds: int | None = None) -> tuple[int, int]:
        """Return how often it was frozen and thawed; freezing lasts so much longer from now on."""
        path = "/freezes" if seconds is None else f"/freezes?hook={seconds}"
        said = ask(self.port, path)
        assert said is not None
        return int(said["freezes"]), int(said["thaws"])

    def records(self) -> int:
        said = ask(self.port, "/counter")
        assert said is not None
        assert not said["problem"]
        return int(said["acknowledged"])

    def assert_goes_on(self) -> None:
        """It is thawed as often as it was frozen, and writes."""
        wait_until(lambda: len(set(self.hooks())) == 1, "as many thaws as freezes", seconds=60)
        before = self.records()
        wait_until(lambda: self.records() > before + 3, "the guest writes on", seconds=60)

    def guard_pid(self) -> int:
        process = find(self.root / "run" / "freeze" / ITEM / "guard.pid")
        return process.pid if process is not None else 0


@contextmanager
def running_guest() -> Iterator[Guest]:
    """A guest that writes its records; afterwards nothing of it is left."""
    with rig() as host:
        driver = host.driver()
        network = host.network("f")
        driver.apply_network(network)
        status = driver.create_vm(host.guest_vm(VM, host.nics(network)))
        store = create_file_store(host.directory / "cache")
        guest = Guest(host, driver, status.forwards[0].host_port, store)
        try:
            wait_for_records(guest.port, beyond=3)
            yield guest
        finally:
            driver.stop_vm(VM, force=True)
            process = find(guest.root / "run" / "tap" / ITEM / "tap.pid")
            if process is not None:
                os.kill(process.pid, signal.SIGKILL)
            stop_watchdog(guest.root / "run")


def main() -> None:
    """Replicate the VM in the directory named first until killed."""
    root = Path(sys.argv[1])
    driver = QemuDriver(root / "data", root / "run")
    replicator_of(root, driver, every_seconds=int(sys.argv[2])).start()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
