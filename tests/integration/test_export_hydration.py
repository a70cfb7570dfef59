"""Hydration under a storage daemon whose root node is written to at the same time."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.sockets import open_monitor

from leeward.core.errors import Unavailable
from leeward.export.hydration import HydrationPlan, Hydrator
from leeward.export.patience import Patience, PatientDevice
from leeward.nbd.client import NbdClient
from leeward.nbd.server import NbdServer
from leeward.qemu.nbd_exports import ensure_nbd_server
from leeward.qemu.nodes import block_nodes
from leeward.qemu.overlay import add_overlay_bitmaps, create_overlay, overlay_nodes

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 48 * MIB
DISKS = ("system", "data")


class Store:
    """A disk's bytes in memory, away whenever `is_away`, and slow by `delay_seconds` a read."""

    size_bytes = SIZE

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        self.content = bytearray(SIZE)
        for offset in range(MIB, SIZE, 5 * MIB):  # ragged data extents with holes in between
            length = source.randrange(1, 2 * MIB // 4096) * 4096
            self.content[offset : offset + length] = source.randbytes(length)
        self.is_away = threading.Event()
        self.delay_seconds = 0.0
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self._reach()
        time.sleep(self.delay_seconds)
        self.reads += 1
        return bytes(self.content[offset : offset + length])

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        self._reach()
        return [
            (4096, self.content.count(0, at, at + 4096) < 4096)
            for at in range(offset, offset + length, 4096)
        ]

    def _reach(self) -> None:
        if self.is_away.is_set():
            raise Unavailable("the store is away")


class InProcessBase:
    """What start_export gives, without its processes."""

    def __init__(self, directory: Path, stores: dict[str, Store]) -> None:
        self.socket = directory / "base.sock"
        self.stopped = False
        self._patience = Patience()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(8)
        devices = {name: PatientDevice(store, self._patience) for name, store in stores.items()}
        self._server = NbdServer(self._listener, devices)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def ensure_running(self) -> None:
        pass

    def first_read_ns(self) -> int:
        return 1

    def stop(self) -> None:
        self.stopped = True
        if self._listener.fileno() < 0:
            return
        self._patience.give_up()
        self._server.stop()
        self._thread.join(60)
        self._listener.close()


class Machine:
    """A storage daemon with an overlay per disk, its root exported writable to play the guest."""

    def __init__(self, directory: Path, stores: dict[str, Store]) -> None:
        self.directory = directory
        self.stores = stores
        self.base = InProcessBase(directory, stores)
        arguments = []
        for disk in stores:
            create_overlay(directory / f"{disk}.qcow2", SIZE)
            for node in overlay_nodes(disk, directory / f"{disk}.qcow2", self.base.socket):
                arguments += ["--blockdev", json.dumps(node)]
        monitor = f"socket,path={directory}/qmp.sock,server=on,wait=off,id=c"
        self._process = subprocess.Popen(
            ["qemu-storage-daemon", *arguments, "--chardev", monitor, "--monitor", "chardev=c"]
        )
        self.session = open_monitor(directory / "qmp.sock")
        self.nbd_socket = directory / "qemu-nbd.sock"
        add_overlay_bitmaps(self.session, list(stores))
        ensure_nbd_server(self.session, self.nbd_socket)
        for disk in stores:
            self.session.execute(
                "block-export-add",
                {
                    "type": "nbd",
                    "id": f"guest-{disk}",
                    "node-name": f"root-{disk}",
                    "name": disk,
                    "writable": True,
                },
            )

    def hydrator(self) -> Hydrator:
        plan = HydrationPlan(vm_id="vm", disks=tuple(self.stores), nbd_socket=self.nbd_socket)
        return Hydrator(plan, qmp=lambda: self.session, base=self.base)

    def end(self) -> None:
        self.base.stop()
        self.session.close()
        self._process.terminate()
        self._process.wait(60)

    def kill(self) -> None:
        """What the daemon has not written to its images is lost."""
        self._process.kill()
        self._process.wait(60)

    def compare(self, expected: dict[str, bytearray]) -> None:
        """End the daemon and compare each overlay, standing alone, with what it should hold."""
        self.end()
        for disk, content in expected.items():
            wanted = self.directory / f"{disk}.raw"
            wanted.write_bytes(content)
            overlay = self.directory / f"{disk}.qcow2"
            argv = ("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(wanted), str(overlay))
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


class Guest:
    """Writes at random, sector-exact, and knows what every disk must hold."""

    def __init__(self, machine: Machine) -> None:
        self.expected = {disk: bytearray(store.content) for disk, store in machine.stores.items()}
        self.errors: list[Exception] = []
        self.writes = 0
        self._socket = machine.nbd_socket
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        source = random.Random(7)
        clients = {disk: NbdClient.connect(self._socket, disk) for disk in self.expected}
        try:
            while not self._stopped.wait(0.002):
                disk = source.choice(list(clients))
                offset = source.randrange(SIZE // 512 - 64) * 512
                data = source.randbytes(source.choice((512, 4096, 12800)))
                clients[disk].write(offset, data)
                self.expected[disk][offset : offset + len(data)] = data
                at = source.randrange(SIZE - 4096)
                assert clients[disk].read(at, 4096) == self.expected[disk][at : at + 4096]
                self.writes += 1
        except Exception as error:
            self.errors.append(error)
        finally:
            for client in clients.values():
                client.close()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(60)
        assert self.errors == []  # paused, perhaps, but never failed
        assert not self._thread.is_alive()


@pytest.fixture
def machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    machine = Machine(directory, {disk: Store(seed) for seed, disk in enumerate(DISKS)})
    yield machine
    machine.end()
    shutil.rmtree(directory)


def test_a_written_disk_becomes_local_and_equal(machine: Machine) -> None:
    filled: list[list[str]] = []
    guest = Guest(machine)
    plan = HydrationPlan(vm_id="vm", disks=DISKS, nbd_socket=machine.nbd_socket)
    hydrator = Hydrator(
        plan,
        qmp=lambda: machine.session,
        base=machine.base,
        on_filled=lambda: filled.append(sorted(block_nodes(machine.session))),
    )
    hydrator.start()
    assert hydrator.wait_done(timeout_seconds=60)
    time.sleep(0.2)  # the guest goes on writing, on the overlay alone
    guest.stop()
    status = hydrator.status()
    total = sum(
        length
        for store in machine.stores.values()
        for length, is_data in store.extents(0, SIZE)
        if is_data
    )
    assert (status.bytes_done, status.bytes_total, status.done) == (total, total, True)
    assert ["base-data" in nodes and "base-system" in nodes for nodes in filled] == [True]
    nodes = block_nodes(machine.session)
    assert not {"base-system", "base-data"} & nodes.keys()
    bitmap = nodes["disk-data"].bitmap("lw-overlay")
    assert bitmap is not None
    assert 0 < bitmap.dirty_bytes < SIZE
    assert machine.base.stopped
    assert guest.writes > 0
    machine.compare(guest.expected)


def test_it_waits_for_the_store_and_a_successor_carries_on(machine: Machine) -> None:
    for store in machine.stores.values():
        store.delay_seconds = 0.02
    guest = Guest(machine)
    first = machine.hydrator()
    first.start()
    _wait_until(lambda: first.status().bytes_done > 2 * MIB)
    for store in machine.stores.values():
        store.is_away.set()
    time.sleep(0.3)
    first.stop()  # the agent dies while the store is away
    assert not first.is_done
    second = machine.hydrator()
    second.start()
    time.sleep(0.3)
    assert not second.is_done
    reads = sum(store.reads for store in machine.stores.values())
    for store in machine.stores.values():
        store.is_away.clear()
    assert second.wait_done(timeout_seconds=60)
    guest.stop()
    status = second.status()
    assert sum(store.reads for store in machine.stores.values()) > reads
    assert status.bytes_done == status.bytes_total > 0
    machine.compare(guest.expected)


def test_a_machine_killed_once_its_bases_are_forgotten_holds_all_its_data(
    machine: Machine,
) -> None:
    """From then on it is started from its overlays alone."""
    plan = HydrationPlan(vm_id="vm", disks=DISKS, nbd_socket=machine.nbd_socket)
    forgotten = threading.Event()

    def forget() -> None:
        machine.kill()
        forgotten.set()

    hydrator = Hydrator(plan, qmp=lambda: machine.session, base=machine.base, on_filled=forget)
    hydrator.start()
    assert forgotten.wait(120)
    hydrator.stop()
    machine.compare({disk: store.content for disk, store in machine.stores.items()})


def test_a_run_with_nothing_left_to_do_ends_the_export(machine: Machine) -> None:
    first = machine.hydrator()
    first.start()
    assert first.wait_done(timeout_seconds=60)
    machine.base.stopped = False
    second = machine.hydrator()
    second.start()
    assert second.wait_done(timeout_seconds=20)
    assert machine.base.stopped
    machine.compare({disk: store.content for disk, store in machine.stores.items()})


def _wait_until(condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
