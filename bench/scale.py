"""What protected VMs cost their hosts: memory and processor time of everything of ours.

Owns: metrics mib_per_idle_vm and core_percent_per_idle_vm of 100 idle VMs, all of it divided by
100, and the same of 1 and 10 (their share of what a host has once is larger), and of 10 VMs that
each write 200 times a second. VMs are storage daemons with a disk; everything of ours is agent,
worker, taps and watchdog. Memory is proportional share (PSS), the taps' buffers left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.common import Invalid, Result, scratch
from bench.fleet import FleetSetup, FleetVm
from bench.path import Guest, guest
from bench.tap import pss_mib
from leeward.core.codec import to_json
from leeward.core.units import MIB
from leeward.object_store.file import create_file_store

DISK_BYTES = 64 * MIB
AIO = "threads"
"""The kernel's own has room for about 60 storage daemons unless it is told otherwise."""
SETTLE_SECONDS = 20.0
"""After the last cut: a worker believes for ten seconds that more will come."""
COME_UP_SECONDS = 300.0
TELL_SECONDS = 1.0
BUSY_IOPS = 200
_TICKS = os.sysconf("SC_CLK_TCK")


def run(vms: float = 100, seconds: float = 30.0) -> Result:
    """Measure fleets of 1, 10 and `vms` idle VMs and of 10 busy ones for `seconds` each."""
    figures: dict[str, list[float]] = {}
    for count in sorted({1, 10, int(vms)}):
        with scratch() as root, _fleet(root, count) as fleet:
            fleet.settle()
            mib, percent = fleet.cost(seconds)
            tag = "" if count == int(vms) else f"_{count}"
            figures[f"mib_per_idle_vm{tag}"] = [mib]
            figures[f"core_percent_per_idle_vm{tag}"] = [percent]
            print(f"{count} idle VMs: {mib:.1f} MiB and {percent:.2f} % of a core each", flush=True)
            if count == 10:
                mib, percent = fleet.busy_cost(seconds)
                figures["mib_per_busy_vm_10"] = [mib]
                figures["core_percent_per_busy_vm_10"] = [percent]
    figures["vms"] = [vms]
    return Result(figures, {"mib_per_idle_vm": "≤ 20", "core_percent_per_idle_vm": "≤ 0.2"})


class _Fleet:
    """Guests, one agent, one worker; a thread passes announcements on."""

    def __init__(self, root: Path, guests: list[Guest], agent: _Half, worker: _Half) -> None:
        self._root = root
        self._guests = guests
        self._agent = agent
        self._worker = worker
        self._said: dict[str, Any] = {}
        self._applied: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def settle(self) -> None:
        """Return when every VM streams, has all it wrote in a point, and is idle."""
        deadline = time.monotonic() + COME_UP_SECONDS
        while not self._is_settled():
            if time.monotonic() > deadline or not self._thread.is_alive():
                behind = {i: s for i, s in self._said.items() if s[0] != "streaming"}
                raise Invalid(f"not all VMs come to stream: {behind or 'points are missing'}")
            time.sleep(0.5)
        time.sleep(SETTLE_SECONDS)

    def _is_settled(self) -> bool:
        return bool(self._said) and all(
            state == "streaming" and 0 < sequence == self._applied.get(item_id)
            for item_id, (state, sequence) in self._said.items()
        )

    def cost(self, seconds: float) -> tuple[float, float]:
        """Return (MiB, percent of a core) per VM. Raises: Invalid if one does not stream."""
        processes = self._processes()
        taps = sum("leeward.mobility.tap" in command for command in processes.values())
        if taps != len(self._guests):
            raise Invalid(f"{taps} taps of {len(self._guests)} VMs run")
        before, began = _cpu_seconds(processes), time.monotonic()
        time.sleep(seconds)
        used = _cpu_seconds(processes) - before
        took, count = time.monotonic() - began, len(self._guests)
        if any(state != "streaming" for state, _ in self._said.values()):
            raise Invalid("a VM did not stream all the time")
        return sum(map(pss_mib, processes)) / count, 100 * used / took / count

    def busy_cost(self, seconds: float) -> tuple[float, float]:
        """Return the same while each VM writes."""
        load = ("--bs=4k", f"--rate_iops={BUSY_IOPS}")
        writers = [
            threading.Thread(target=each.write, args=(seconds + 10, *load)) for each in self._guests
        ]
        for writer in writers:
            writer.start()
        time.sleep(5)
        found = self.cost(seconds)
        for writer in writers:
            writer.join()
        return found

    def _processes(self) -> dict[int, str]:
        """Return all processes of ours, by id, with their command lines."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue  # it has ended
                is_side = "bench.fleet" in command or "leeward.mobility" in command
                if is_side and str(self._root) in command:
                    found[int(folder.name)] = command
        return found

    def _tell(self) -> None:
        while not self._stop.wait(TELL_SECONDS):
            self._said = self._agent.ask({})
            self._applied = self._worker.ask(self._said)


class _Half:
    """A process of bench.fleet."""

    def __init__(self, role: str, setup: Path, log: Path) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.fleet", role, str(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def ask(self, said: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _fleet(root: Path, count: int) -> Iterator[_Fleet]:
    with ExitStack() as stack:
        guests = [
            stack.enter_context(guest(root, f"g{number}", DISK_BYTES, aio=AIO))
            for number in range(count)
        ]
        shm = tempfile.mkdtemp(dir="/dev/shm", prefix="lwb")
        stack.callback(shutil.rmtree, shm, ignore_errors=True)
        setup = FleetSetup(
            root=str(root),
            shm=shm,
            disk_bytes=DISK_BYTES,
            cache_url=create_file_store(root / "cache").url,
            target_url=create_file_store(root / "target").url,
            vms=tuple(
                FleetVm(
                    item_id=f"vm{number}",
                    qmp_socket=str(each.qmp_socket),
                    nbd_socket=str(each.nbd_socket),
                )
                for number, each in enumerate(guests)
            ),
        )
        path = root / "setup.json"
        path.write_bytes(to_json(setup))
        worker = _Half("worker", path, root / "worker.log")
        stack.callback(worker.close)
        agent = _Half("agent", path, root / "agent.log")
        stack.callback(agent.close)
        fleet = _Fleet(root, guests, agent, worker)
        stack.callback(fleet.close)
        yield fleet


def _cpu_seconds(processes: dict[int, str]) -> float:
    """Return the processor time these have used so far. Raises: Invalid if one has ended."""
    total = 0
    for pid, command in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            raise Invalid(f"a process has ended: {command}") from None
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS
