"""Leeward whole, on this machine, as the command line starts it, and hands to break it with.

Owns: the directory, start and end, one protected VM, finding processes by what they were started
as. Must not know: what a scenario wants to show. Everything is asked over REST or typed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from demo.fire import kill_all, processes_of
from demo.poller import Poller, ask

from leeward.client.client import Client
from leeward.client.config import load_config
from leeward.client.jobs import ENDED
from leeward.client.rest import Rest
from leeward.client.views import ItemView, MachineView
from leeward.core.errors import LeewardError
from leeward.daemons.places import run_directory
from leeward.model.recovery import ItemState, Job, RecoveryPoint
from leeward.model.resources import StorageAccount
from leeward.protocol.messages import HydrationStatus
from leeward.qemu.session import QmpSession
from scenario.leaks import homes_of

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-m", "leeward.cli.main")
GUEST_PORT = 8080
HEALED_SECONDS = 150.0
"""A guard against hanging, not a bar: machines that run tests are shared."""
RPO_SECONDS = 5.0
CACHE_MIB = 160
PLACE = ("--region", "east", "--resource-group", "web-rg")


class Part(Enum):
    """A process of Leeward, named by the arguments it was started with: (index, argument)."""

    UP = ((2, "leeward.cli.main"), (3, "up"))
    SERVICE = ((2, "leeward.cli.main"), (3, "serve"))
    AGENT = ((2, "leeward.cli.main"), (3, "agent"))
    WORKER = ((2, "leeward.cli.main"), (3, "worker"))
    TAP = ((2, "leeward.mobility.tap"),)
    WATCHDOG = ((2, "leeward.mobility.watchdog"),)
    EXPORT_SERVER = ((2, "leeward.export.server"),)
    EXPORT_SUPERVISOR = ((1, "-SP"),)


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    said: str


class Rig:
    """One data directory with two regions, east and west, and what runs in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._client: Client | None = None

    # -- life --------------------------------------------------------------------------------------

    def up(
        self, port: int, *, hosts: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        """Both regions and the service run, so many hosts in each. environment: more for them."""
        words = ("--regions", "east,west", "--hosts", str(hosts), "--port", str(port))
        self.run("up", "--detach", *words, environment=environment)

    def down(self) -> None:
        """Nothing of it runs and nothing of it is left but the directory."""
        for pid in processes_of(self.data):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.try_run("down", "--vms", seconds=90)
        kill_all(processes_of(self.data))
        if self._client is not None:
            self._client.close()

    def forget_client(self) -> None:
        """Another service may answer at the next question."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- asking ------------------------------------------------------------------------------------

    def try_run(
        self, *arguments: str, seconds: float = 120, environment: Mapping[str, str] | None = None
    ) -> Ended:
        """Return how `leeward ARGUMENTS` ended."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env={**os.environ, "LEEWARD_DATA": str(self.data), "COLUMNS": "200"}
            | dict(environment or {}),
            cwd=self.directory,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr.strip())

    def run(
        self, *arguments: str, seconds: float = 120, environment: Mapping[str, str] | None = None
    ) -> str:
        """Return what `leeward ARGUMENTS` printed, having succeeded."""
        ended = self.try_run(*arguments, seconds=seconds, environment=environment)
        assert ended.code == 0, f"leeward {' '.join(arguments)}: {ended.said}"
        return ended.out

    def job(self, *arguments: str) -> str:
        """Return the id of the job that `leeward ARGUMENTS --no-wait` began."""
        return str(json.loads(self.run(*arguments, "--no-wait", "-o", "json"))["id"])

    @property
    def client(self) -> Client:
        """Return the service, asked in this process: cheaper than a command each time."""
        if self._client is None:
            self._client = Client(Rest(load_config(self.data)))
        return self._client

    def item(self, name: str = "web-1") -> ItemView:
        """Return the replicated item."""
        return self.client.find_item(name, None)

    def points(self, name: str = "web-1") -> tuple[RecoveryPoint, ...]:
        """Return the item's recovery points, newest first."""
        return self.client.recovery_points(self.item(name))

    def machine(self, region: str, name: str = "web-1") -> MachineView:
        """Return the VM."""
        return self.client.get(MachineView, region, name)

    def store_urls(self, name: str = "web-1") -> list[str]:
        """Return the stores that the item's recovery points lie in."""
        item = self.item(name)
        accounts = sorted({mapping.target_account for mapping in item.disks})
        return [
            self.client.get(StorageAccount, item.target_region, account).url for account in accounts
        ]

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = HEALED_SECONDS) -> T:
        """Return the first true value of `look`; an absent service only means not yet."""
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                last = look()
            except LeewardError as error:
                last = error
            else:
                if last:
                    return last
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {seconds:.0f} s; last: {last!r}; {self._story()}")

    def wait_protected(self, *, since: float, seconds: float = HEALED_SECONDS) -> ItemView:
        """Return the item when it is protected, its newest points made after `since`."""

        def look() -> ItemView | None:
            item = self.item()
            if item.state is not ItemState.PROTECTED or item.problem:
                return None
            rpo = item.health.rpo_seconds
            is_fresh = rpo is not None and rpo < RPO_SECONDS and time.time() - rpo > since + 0.5
            return item if is_fresh else None

        return self.wait("protected again, with fresh recovery points", look, seconds)

    def wait_job(self, job_id: str, seconds: float = HEALED_SECONDS) -> Job:
        """Return the job when it has ended."""

        def look() -> Job | None:
            job = self.client.job(job_id)
            return job if job.state in ENDED else None

        return self.wait(f"the end of {job_id}", look, seconds)

    def wait_hydrated(self, seconds: float = HEALED_SECONDS) -> HydrationStatus:
        """Return the failed-over VM's hydration when it is done."""

        def look() -> HydrationStatus | None:
            hydration = self.item().health.hydration
            return hydration if hydration is not None and hydration.done else None

        return self.wait("hydrated", look, seconds)

    def address(self, region: str, name: str = "web-1") -> str:
        """Return where the VM's HTTP answers, once its forward is known."""

        def look() -> str | None:
            status = self.machine(region, name).status
            forwards = status.forwards if status is not None else ()
            return f"{forwards[0].host_address}:{forwards[0].host_port}" if forwards else None

        return self.wait(f"the forward of {region}/{name}", look)

    def wait_guest(self, region: str, seconds: float = 90, *, name: str = "web-1") -> str:
        """Return the address of the guest when it answers over HTTP."""
        address = self.address(region, name)
        self.wait(f"the guest at {address}", lambda: ask(address, "/counter"), seconds)
        return address

    def _story(self) -> str:
        """Return what the item says of itself, for whoever reads a failure."""
        with suppress(LeewardError):
            item = self.item()
            return f"item {item.state.value}, problem {item.problem!r}, {item.health!r}"
        return "the service does not answer"

    # -- breaking ----------------------------------------------------------------------------------

    def pids(self, part: Part, region: str | None = None) -> list[int]:
        """Return the processes that are `part`, of one region or of all."""
        found = []
        for pid in processes_of(self.data, region):
            with suppress(OSError):  # it ended while we looked
                argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if all(argv[index : index + 1] == [value] for index, value in part.value):
                    found.append(pid)
        return found

    def wait_pid(self, part: Part, region: str | None = None, seconds: float = 30) -> int:
        """Return the pid of the one process that is `part`, once it runs."""
        pids = self.wait(f"a {part.name}", lambda: self.pids(part, region), seconds)
        return pids[0]

    def kill(self, part: Part, region: str | None = None) -> float:
        """SIGKILL what is `part`, now. Returns: when, in seconds since 1970."""
        pid = self.wait_pid(part, region)
        moment = time.time()
        os.kill(pid, signal.SIGKILL)
        return moment

    @contextmanager
    def stopped(self, part: Part, region: str | None = None) -> Iterator[int]:
        """What is `part` is stopped (SIGSTOP) meanwhile; it may be gone by the end."""
        pid = self.wait_pid(part, region)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What an outside witness saw of a guest over a time."""

    first: int
    last: int
    max_stall_s: float
    """Longest time without the counter advancing, as seen through HTTP."""
    problem: str


class Witness:
    """Asks the guest from outside, from `start` until it is told to stop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._poller = Poller(address, interval_seconds=0.05)
        self._poller.start()

    @property
    def poller(self) -> Poller:
        """Return every reading."""
        return self._poller

    def stop(self) -> None:
        """Ask no more."""
        self._poller.stop()

    def saw(self, since: float = 0.0) -> Witnessed:
        """Return what was seen since `since`, the time after the last advance included."""
        readings = [reading for reading in self._poller.readings if reading.asked >= since]
        assert readings, "the guest has not answered at all"
        longest, advanced = 0.0, readings[0]
        for reading in readings:
            if reading.acknowledged > advanced.acknowledged:
                longest = max(longest, reading.answered - advanced.answered)
                advanced = reading
        longest = max(longest, time.time() - advanced.answered)
        now = ask(self.address, "/counter", timeout_seconds=60.0) or {}
        return Witnessed(
            readings[0].acknowledged,
            advanced.acknowledged,
            longest,
            str(now.get("problem", "the guest does not answer")),
        )


@contextmanager
def running_rig(port: int) -> Iterator[Rig]:
    """Leeward is up meanwhile; afterwards nothing of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="lwscn", dir="/var/tmp"))
    rig = Rig(directory)
    try:
        rig.up(port)
        yield rig
    finally:
        rig.down()
        keep_logs(rig)
        shutil.rmtree(directory, ignore_errors=True)


def keep_logs(rig: Rig) -> None:
    """Leave everybody's logs in the directory LEEWARD_SCENARIO_LOGS, if it is set."""
    kept = os.environ.get("LEEWARD_SCENARIO_LOGS")
    for log in rig.data.rglob("*.log") if kept else ():
        target = Path(str(kept), rig.directory.name, log.relative_to(rig.data))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)


@contextmanager
def small_store(rig: Rig, account: str) -> Iterator[Path]:
    """The storage account of east that will be named so lies on a small file system of its own."""
    place = rig.data / "regions" / "east" / "storage" / account
    place.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={CACHE_MIB}m,mode=700", "tmpfs", str(place)],
        check=True,
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def write_byte(rig: Rig, offset: int, byte: bytes) -> None:
    """The system disk of web-1 in east holds that byte there, written as its device writes."""
    socket = run_directory(homes_of(rig.data)[0], "east-1") / "vm" / "web-1" / "spare"
    device = "/machine/peripheral/dev-system/virtio-backend"
    with closing(QmpSession.connect(socket)) as session:
        session.execute(
            "human-monitor-command",
            {"command-line": f'qemu-io -d {device} "write -P {byte[0]:#x} {offset} 1"'},
        )


def create_vm(rig: Rig, *more: str) -> None:
    """VM web-1 runs in east: two disks in two accounts, one nic, its workload. more: of `vm
    create`."""
    create_place(rig)
    create_machine(rig, "web-1", "front=corp/front", *more)


def create_place(rig: Rig) -> None:
    """East has what VMs need: a network, storage accounts."""
    subnets = ("--address-space", "10.10.0.0/16", "--subnet", "front=10.10.1.0/24")
    rig.run("resource-group", "create", "web-rg", "--region", "east")
    rig.run("network", "create", "corp", *PLACE, *subnets)
    rig.run("storage-account", "create", "websystem", *PLACE)
    rig.run("storage-account", "create", "webdata", *PLACE)
    rig.run("storage-account", "create", "cache", *PLACE)


def create_machine(rig: Rig, name: str, nic: str, *more: str) -> None:
    """A VM of that name runs in east under its workload. more: of `vm create`."""
    with guest_images(rig) as guest:
        rig.run(
            *("vm", "create", name, *PLACE, "--vcpus", "1", "--memory", "192M"),
            *("--disk", f"system=websystem,image={guest / 'system.raw'}"),
            *("--disk", f"data=webdata,image={guest / 'data.raw'}"),
            *("--nic", nic, "--forward", str(GUEST_PORT), *more),
        )


@contextmanager
def guest_images(rig: Rig) -> Iterator[Path]:
    """Give a directory with the demo guest's images, for VMs to be made from."""
    guest = rig.directory / "guest"
    subprocess.run(
        [sys.executable, str(ROOT / "guest" / "build.py"), "--out", str(guest)],
        check=True,
        capture_output=True,
    )
    try:
        yield guest
    finally:
        shutil.rmtree(guest)
