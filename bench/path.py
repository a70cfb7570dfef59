"""A guest's disk with the whole data path behind it: what guest-impact and rpo measure.

Owns: a storage daemon as guest, agent and worker processes, writing by fio, what makes a run valid.
Must not know: which figures are made of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import Invalid, fio
from bench.sides import DISK, ITEM, Setup
from leeward.core.codec import to_json
from leeward.object_store.file import create_file_store
from leeward.object_store.open import open_store
from leeward.qemu.session import QmpSession
from leeward.replica.catalog import Catalog

READY_SECONDS = 60.0
STREAMING_SHARE_MIN = 0.99
ACHIEVED_RATIO_MIN = 0.95
SHIPPED_RATIO = (0.3, 0.7)
"""Shipped ÷ written, if payload is half compressible and hardly anything is written twice."""
DEPTH = 16


class Guest:
    """A disk in a storage daemon: of `disk_bytes`, allocated, written to with direct I/O; or an
    image that is there, read through the page cache. aio: as QEMU names it, for direct I/O."""

    def __init__(
        self, root: Path, disk_bytes: int, image: Path | None = None, *, aio: str = "native"
    ) -> None:
        root.mkdir(parents=True)
        self.disk_bytes = disk_bytes
        self.nbd_socket = root / "nbd.sock"
        self.qmp_socket = root / "qmp.sock"
        below = f"driver=file,node-name=file-{DISK},filename={image}"
        if image is None:
            image = root / "disk.raw"
            create = ["qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=full"]
            subprocess.run([*create, str(image), str(disk_bytes)], check=True)
            below = f"driver=file,node-name=file-{DISK},filename={image},cache.direct=on,aio={aio}"
        self._process = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", below),
                *("--blockdev", f"driver=raw,node-name=disk-{DISK},file=file-{DISK}"),
                *("--nbd-server", f"addr.type=unix,addr.path={self.nbd_socket},max-connections=0"),
                *("--export", f"type=nbd,id=guest,node-name=disk-{DISK},name={DISK},writable=on"),
                *("--chardev", f"socket,path={self.qmp_socket},server=on,wait=off,id=qmp"),
                *("--monitor", "chardev=qmp"),
            ]
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self.qmp_socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Invalid("qemu-storage-daemon does not come up")
            time.sleep(0.02)

    def write(self, seconds: float, *options: str) -> dict[str, Any]:
        """Return fio's figures of random writes, payload new every time and half compressible."""
        job = fio(
            "--ioengine=nbd",
            f"--uri=nbd+unix:///{DISK}?socket={self.nbd_socket}",
            "--rw=randwrite",
            f"--iodepth={DEPTH}",
            f"--size={self.disk_bytes}",
            "--time_based",
            f"--runtime={seconds}s",
            "--norandommap",
            "--randrepeat=0",
            "--refill_buffers",
            "--buffer_compress_percentage=50",
            "--buffer_compress_chunk=4096",
            *options,
        )
        figures: dict[str, Any] = job["write"]
        return figures

    def session(self) -> QmpSession:
        """Return its one QMP session; the caller closes it."""
        return QmpSession.connect(self.qmp_socket)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Side:
    """A process of bench.sides."""

    def __init__(self, role: str, setup: Path, log: Path) -> None:
        self._role = role
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.sides", role, str(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def look(self) -> dict[str, Any]:
        """Return how it stands. Raises: Invalid when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise self.failure("has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def failure(self, what: str) -> Invalid:
        """Return the error that says what is wrong with it, and its last words."""
        return Invalid(f"the {self._role} {what}: {self._log.read_text()[-2000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(slots=True)
class Window:
    """What replication went through during a run."""

    streaming_share: float = 0.0
    seconds: float = 0.0
    written: int = 0
    shipped: int = 0


class Protection:
    """A guest's replication, all of it: tap and watchdog, agent, worker, both stores."""

    def __init__(self, guest: Guest, agent: Side, worker: Side, target_url: str) -> None:
        self.guest = guest
        self.agent = agent
        self.worker = worker
        self.target_url = target_url
        self.catalog = Catalog.open(open_store(target_url), ITEM)

    def newest_time_ns(self) -> int:
        """Return the source's time of the newest point in the target storage; 0 if there is none.

        It is read from there, not from anybody's word.
        """
        self.catalog.refresh()
        points = self.catalog.points
        return points[-1].time_ns if points else 0

    def settle(self) -> None:
        """Return when it streams and the target has what was written so far. Raises: Invalid."""
        began, deadline = time.time_ns(), time.monotonic() + READY_SECONDS
        while self.agent.look()["state"] != "streaming" or self.newest_time_ns() < began:
            if time.monotonic() > deadline:
                raise self.agent.failure(f"does not come to stream: {self.agent.look()}")
            self.guest.write(0.05, "--bs=4k", "--number_ios=1")  # an idle VM makes no cuts
            time.sleep(0.2)

    @contextmanager
    def watched(self) -> Iterator[Window]:
        """Give what the window will be filled with when the run within has ended.

        Raises: Invalid if replication did not really run all the while.
        """
        window, before, applied = Window(), self.agent.look(), self.worker.look()["applied"]
        yield window
        after, worker = self.agent.look(), self.worker.look()
        samples = after["samples"] - before["samples"]
        window.streaming_share = (after["streaming"] - before["streaming"]) / max(samples, 1)
        window.seconds = after["time"] - before["time"]
        window.written = after["written"] - before["written"]
        window.shipped = after["shipped"] - before["shipped"]
        if after.get("breaks") != before.get("breaks") or after.get("detached"):
            raise Invalid(f"the tap was detached: {after}")
        if window.streaming_share < STREAMING_SHARE_MIN:
            raise Invalid(f"replication streamed only {window.streaming_share:.1%} of the time")
        if worker["problem"] or worker["applied"] <= applied:
            raise Invalid(f"the worker does not apply: {worker}")
        low, high = SHIPPED_RATIO
        if not low * window.written <= window.shipped <= high * window.written:
            raise Invalid(f"{window.shipped} bytes were shipped for {window.written} written")


@contextmanager
def guest(
    root: Path, name: str, disk_bytes: int, image: Path | None = None, *, aio: str = "native"
) -> Iterator[Guest]:
    """Give a guest under `root`."""
    made = Guest(root / name, disk_bytes, image, aio=aio)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def protected(root: Path, of: Guest) -> Iterator[Protection]:
    """Give the guest's protection, streaming."""
    with begun(root, of) as protection:
        protection.settle()
        yield protection


@contextmanager
def begun(root: Path, of: Guest) -> Iterator[Protection]:
    """Give the guest's protection as soon as its initial replication has begun."""
    root.mkdir(exist_ok=True)
    with ExitStack() as stack:
        shm = tempfile.mkdtemp(dir="/dev/shm", prefix="lwb")
        stack.callback(shutil.rmtree, shm, ignore_errors=True)
        setup = Setup(
            root=str(root),
            shm=shm,
            disk_bytes=of.disk_bytes,
            qmp_socket=str(of.qmp_socket),
            nbd_socket=str(of.nbd_socket),
            cache_url=create_file_store(root / "cache").url,
            target_url=create_file_store(root / "target").url,
        )
        path = root / "setup.json"
        path.write_bytes(to_json(setup))
        worker = Side("worker", path, root / "worker.log")
        stack.callback(worker.close)
        worker.look()  # it is up
        agent = Side("agent", path, root / "agent.log")
        stack.callback(agent.close)
        yield Protection(of, agent, worker, setup.target_url)
