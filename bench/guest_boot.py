"""How long the demo's guest takes to boot, from a local disk and from an export.

Owns: one boot, timed from asking for it until the guest has checked its disks and says that it is
ready. Must not know: ratios. The guest, its devices and QEMU are the product's own; so are export,
overlays and hydration.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.common import Invalid
from leeward.core.errors import Unavailable
from leeward.export.hydration import HydrationPlan, Hydrator
from leeward.export.start import begin_export
from leeward.protocol.fabric import ReplicaDisk
from leeward.qemu.machine import Accelerator, Machine, MachineDisk, command_line
from leeward.qemu.overlay import add_overlay_bitmaps, create_overlay
from leeward.qemu.session import QmpSession

DISKS = ("system", "data")
READY = b"leeward: ready"
TROUBLE = (b"cannot mount", b"I/O error", b"Kernel panic")
BOOT_SECONDS_MAX = 300.0
_BUILD = Path(__file__).resolve().parents[1] / "guest" / "build.py"


@dataclass(frozen=True, slots=True)
class Replica:
    """Where the guest's recovery point is."""

    url: str
    item_id: str
    point_id: str
    sizes: Mapping[str, int]

    def disks(self) -> list[ReplicaDisk]:
        return [
            ReplicaDisk(disk=disk, size_bytes=size, target_url=self.url)
            for disk, size in self.sizes.items()
        ]


def build_images(root: Path) -> dict[str, Path]:
    """Return the guest's disks as raw images. Raises: Invalid."""
    command = [sys.executable, str(_BUILD), "--out", str(root / "images")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise Invalid(f"the guest cannot be built: {done.stderr.strip()}")
    return {disk: root / "images" / f"{disk}.raw" for disk in DISKS}


def boot_local(root: Path, images: Mapping[str, Path]) -> float:
    """Return the seconds of a boot from copies of the images, in the page cache."""
    copies = {disk: root / f"local-{disk}.raw" for disk in images}
    for disk, image in images.items():
        subprocess.run(["cp", "--sparse=always", str(image), str(copies[disk])], check=True)
    disks = [MachineDisk(name=disk, path=path, format="raw") for disk, path in copies.items()]
    began = time.monotonic()
    with _Guest(root, disks) as guest:
        guest.wait_ready()
    return time.monotonic() - began


def boot_from_export(root: Path, replica: Replica, *, is_hydrated: bool = False) -> float:
    """Return the seconds of a boot from the recovery point, its export's start included."""
    overlays = {disk: root / f"overlay-{disk}.qcow2" for disk in replica.sizes}
    for path in overlays.values():
        path.unlink(missing_ok=True)
    began = time.monotonic()
    export = begin_export(
        *(root / "run", root / "host", "boot", replica.url, replica.item_id, replica.point_id),
        replicas=replica.disks(),
    )
    with ExitStack() as stack:
        stack.callback(export.stop)
        for disk, path in overlays.items():
            create_overlay(path, replica.sizes[disk])
        disks = [
            MachineDisk(
                name=disk, path=path, format="qcow2", is_overlay=True, base_socket=export.socket
            )
            for disk, path in overlays.items()
        ]
        guest = stack.enter_context(_Guest(root, disks))
        if is_hydrated:
            plan = HydrationPlan(vm_id="b", disks=DISKS, nbd_socket=root / "nbd.sock")
            hydrator = Hydrator(plan, qmp=lambda: guest.session, base=export)
            hydrator.start()
            stack.callback(hydrator.stop)
        guest.wait_ready()
        return time.monotonic() - began


class _Guest:
    """QEMU with the guest in it, running from `__enter__` on."""

    def __init__(self, root: Path, disks: Sequence[MachineDisk]) -> None:
        self._console = root / "console.log"
        self._console.unlink(missing_ok=True)
        self._disks = disks
        self._machine = Machine(
            name="bench",
            vcpus=1,
            memory_mib=256,
            accelerator=Accelerator.TCG,
            disks=tuple(disks),
            nics=(),
            qmp_socket=root / "qmp.sock",
            spare_qmp_socket=root / "spare.sock",
            agent_socket=root / "agent.sock",
            console_log=self._console,
        )
        self._log = root / "qemu.log"

    def __enter__(self) -> _Guest:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command_line(self._machine), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            self.session = self._connect()
            if self._disks[0].is_overlay:
                add_overlay_bitmaps(self.session, [disk.name for disk in self._disks])
            self.session.execute("cont")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self._kill()

    def wait_ready(self) -> None:
        """Return when the guest has checked its disks. Raises: Invalid if it has trouble."""
        deadline = time.monotonic() + BOOT_SECONDS_MAX
        while True:
            said = self._console.read_bytes() if self._console.exists() else b""
            if any(sign in said for sign in TROUBLE):
                raise Invalid(f"the guest has trouble: {said[-400:]!r}")
            verdict, line_end, _ = said.partition(READY)[2].partition(b"\n")
            if line_end:
                if not verdict.strip().endswith(b"fsck 0 0"):
                    raise Invalid(f"the guest's disks are not clean: {verdict!r}")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Invalid(f"the guest did not boot: {self._log.read_text()} {said[-400:]!r}")
            time.sleep(0.01)

    def _connect(self) -> QmpSession:
        deadline = time.monotonic() + 60
        while True:
            try:
                return QmpSession.connect(self._machine.qmp_socket)
            except Unavailable as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise Invalid(f"QEMU did not start: {self._log.read_text()}") from error
                time.sleep(0.005)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait(20)
        machine = self._machine
        for socket in (machine.qmp_socket, machine.spare_qmp_socket, machine.agent_socket):
            socket.unlink(missing_ok=True)
