"""A real machine that boots from a recovery point and reads it from end to end, whatever happens.

The guest is a boot sector: it reads the disk through the BIOS, 32 KiB at a time, and says "D" on
its serial port at the end, or "E" at the first error.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import struct
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
from leeward.nbd.server import NbdServer
from leeward.qemu import overlay
from leeward.qemu.mirror import run_state

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 6 * MIB
SECTORS_PER_READ = 64


def boot_sector(size_bytes: int) -> bytes:
    """Return the guest's 512 bytes; it reads so much of its disk."""
    packet = 0x7C00 + 0x80
    lba = packet + 8
    code = b"\x31\xc0\x8e\xd8\x8e\xc0"  # ds = es = 0
    loop = len(code)
    code += b"\xbe" + struct.pack("<H", packet) + b"\xb4\x42\xcd\x13"  # extended read of drive dl
    code += b"\x72\x15"  # carry: error, jump to fail
    code += b"\x66\x83\x06" + struct.pack("<HB", lba, SECTORS_PER_READ)  # lba += count
    code += b"\x66\x81\x3e" + struct.pack("<HI", lba, size_bytes // 512)  # compare with the end
    code += b"\x72" + struct.pack("<b", loop - (len(code) + 2))
    code += b"\xb0D\xeb\x02"  # "D"; fail:
    code += b"\xb0E"  # "E"
    code += b"\xba\xf8\x03\xee\xf4\xeb\xfd"  # out to the serial port, halt for ever
    address = struct.pack("<BBHHHQ", 16, 0, SECTORS_PER_READ, 0, 0x1000, 0)
    return code.ljust(0x80, b"\0") + address + bytes(510 - 0x80 - len(address)) + b"\x55\xaa"


class Store:
    """The disk, every read of it taking a while."""

    size_bytes = SIZE

    def __init__(self) -> None:
        self.content = boot_sector(SIZE) + random.Random(3).randbytes(SIZE - 512)
        self.is_away = False

    def read(self, offset: int, length: int) -> bytes:
        if self.is_away:
            raise Unavailable("the store is away")
        time.sleep(0.01)
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]


class Base:
    """An export that can be taken down and brought back on the same path."""

    def __init__(self, path: Path, store: Store) -> None:
        self.socket = path
        self.is_wanted = False
        self._store = store
        self._listener: socket.socket | None = None

    def ensure_running(self) -> None:
        if self._listener is not None or not self.is_wanted:
            return
        self.socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(8)
        self._patience = Patience()
        device = PatientDevice(self._store, self._patience)
        self._server = NbdServer(self._listener, {"d": device})
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def first_read_ns(self) -> int:
        return 1

    def stop(self) -> None:
        if self._listener is not None:
            self._patience.give_up()
            self._server.stop()
            self._thread.join(60)
            self._listener.close()
            self._listener = None


class Machine:
    """The guest, its base, its QMP session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store()
        self.base = Base(root / "base.sock", self.store)
        self.base.is_wanted = True
        self.base.ensure_running()
        overlay.create_overlay(root / "d.qcow2", SIZE)
        arguments = []
        for node in overlay.overlay_nodes("d", root / "d.qcow2", self.base.socket):
            arguments += ["-blockdev", json.dumps(node)]
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "32"),
                *("-accel", "kvm", "-accel", "tcg"),
                *arguments,
                *("-device", "virtio-blk-pci,drive=root-d,id=dev-d,werror=stop,rerror=stop"),
                *("-serial", f"file:{root}/serial"),
                *("-qmp", f"unix:{root}/qmp.sock,server=on,wait=off"),
            ],
            stderr=subprocess.DEVNULL,
        )
        self.session = open_monitor(root / "qmp.sock")
        overlay.add_overlay_bitmaps(self.session, ["d"])
        overlay.add_overlay_bitmaps(self.session, ["d"])

    def hydrator(self) -> Hydrator:
        plan = HydrationPlan(vm_id="vm", disks=("d",), nbd_socket=self.root / "nbd.sock")
        return Hydrator(plan, qmp=lambda: self.session, base=self.base)

    def said(self) -> str:
        """Return what the guest has written to its serial port, less the BIOS's own."""
        return (self.root / "serial").read_text(errors="replace").strip()

    def end(self) -> None:
        self.session.close()
        self._process.kill()
        self._process.wait(60)
        self.base.stop()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(overlay, "RECONNECT_SECONDS", 1)
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw"))
    machine = Machine(root)
    yield machine
    machine.end()
    shutil.rmtree(root)


def _wait_until(condition: Callable[[], object], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_boots_at_once_and_ends_up_local(machine: Machine) -> None:
    machine.session.execute("cont")
    hydrator = machine.hydrator()
    hydrator.start()
    assert hydrator.wait_done(timeout_seconds=60)
    _wait_until(machine.said)
    assert machine.said() == "D"
    assert run_state(machine.session) == "running"
    names = {node["node-name"] for node in machine.session.execute("query-named-block-nodes")}
    assert "base-d" not in names


def test_an_export_gone_for_too_long_pauses_the_guest_and_no_more(machine: Machine) -> None:
    machine.session.execute("cont")
    overlay_file = machine.root / "d.qcow2"
    _wait_until(lambda: overlay_file.stat().st_size > MIB)
    machine.base.is_wanted = False
    machine.base.stop()
    _wait_until(lambda: run_state(machine.session) == "io-error")
    hydrator = machine.hydrator()
    hydrator.start()
    _wait_until(lambda: hydrator.status().problem)
    assert run_state(machine.session) == "io-error"
    machine.base.is_wanted = True  # the hydrator brings it back, and the guest with it
    assert hydrator.wait_done(timeout_seconds=60)
    _wait_until(machine.said)
    assert machine.said() == "D"
