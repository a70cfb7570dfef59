"""A host for fabric tests: a driver of its own directories, and proof that nothing is left over."""

from __future__ import annotations

import atexit
import functools
import http.client
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leeward.fabric.qemu_driver import QemuDriver
from leeward.protocol.fabric import DiskSpec, NetworkSpec, NicSpec, SubnetSpec, VmSpec
from leeward.qemu.machine import Accelerator

REPOSITORY = Path(__file__).resolve().parents[2]
GUEST_SECONDS = 300.0
"""Until a guest answers: 4 s on an idle machine, much more on a crowded one."""


@functools.cache
def guest_images() -> Path:
    """Return a directory with the demo guest's images, which nobody may write to."""
    into = Path(tempfile.mkdtemp(prefix="lwguest", dir="/tmp"))
    atexit.register(shutil.rmtree, into, ignore_errors=True)
    build = [sys.executable, str(REPOSITORY / "guest" / "build.py"), "--out", str(into)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    return into


class Rig:
    """Directories of one host, and the things tests make there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tag = secrets.token_hex(3)
        self._drivers: list[QemuDriver] = []

    def driver(self, *, is_privileged: bool = True) -> QemuDriver:
        """Return a new driver, as a new agent would have it."""
        driver = QemuDriver(
            self.directory / "data",
            self.directory / "run",
            accelerator=Accelerator.TCG,
            is_privileged=is_privileged,
        )
        self._drivers.append(driver)
        return driver

    def network(self, which: str) -> NetworkSpec:
        """Return a network of two subnets; all of them have the same addresses."""
        return NetworkSpec(
            network_id=f"t{self.tag}{which}",
            name=f"corp-{which}",
            subnets=(
                SubnetSpec(name="front", prefix="10.77.0.0/24", gateway="10.77.0.1"),
                SubnetSpec(name="back", prefix="10.77.1.0/24", gateway="10.77.1.1"),
            ),
        )

    def nics(self, network: NetworkSpec, last: int = 4) -> tuple[NicSpec, ...]:
        """Return a NIC in each subnet of `network`, with addresses that end in `last`."""
        return tuple(
            NicSpec(
                name=f"nic{index}",
                network_id=network.network_id,
                subnet=subnet.name,
                address=f"10.77.{index}.{last}",
                prefix_length=24,
                mac="",
            )
            for index, subnet in enumerate(network.subnets)
        )

    def disk(self, name: str, *, image: Path | None = None, **changes: Any) -> DiskSpec:
        """Return a disk in a directory of its own; without an image, 1 MiB and empty."""
        plain = {"format": "raw", "size_bytes": 0 if image else 1 << 20}
        return DiskSpec(
            name=name,
            directory=str(self.directory / "disks" / name),
            image=str(image) if image else "",
            **{**plain, **changes},
        )

    def empty_vm(self, vm_id: str = "empty", *, nics: tuple[NicSpec, ...] = ()) -> VmSpec:
        """Return a VM whose disks hold nothing: for tests that do not boot it."""
        return VmSpec(
            vm_id=vm_id,
            name=vm_id,
            vcpus=1,
            memory_mib=64,
            firmware="bios",
            disks=(self.disk("system"), self.disk("data", format="qcow2")),
            nics=nics,
            forwards=(8080,) if nics else (),
        )

    def guest_vm(self, vm_id: str, nics: tuple[NicSpec, ...]) -> VmSpec:
        """Return a VM that boots the demo guest."""
        images = guest_images()
        return VmSpec(
            vm_id=vm_id,
            name=vm_id,
            vcpus=1,
            memory_mib=256,
            firmware="bios",
            disks=(
                self.disk("system", image=images / "system.raw"),
                self.disk("data", image=images / "data.raw"),
            ),
            nics=nics,
            forwards=(8080,),
        )

    def traces(self) -> list[str]:
        """Return what there still is of VMs and networks: processes, namespaces, files."""
        found = [str(path) for path in self.directory.rglob("*") if not path.is_dir()]
        found += [str(path) for path in Path("/run/netns").glob(f"lw-t{self.tag}*")]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if str(self.directory) in line or f"lw-t{self.tag}" in line:
                    found.append(line)
        return found

    def clean_up(self) -> None:
        """Make everything gone, whatever state it is in."""
        driver = self.driver()
        driver.remove_leftovers()
        for vm in driver.list_vms():
            driver.delete_vm(vm.vm_id)
        for home in (self.directory / "data" / "networks").glob("*"):
            driver.delete_network(home.name)
        for each in self._drivers:
            each.close()


@contextmanager
def rig() -> Iterator[Rig]:
    """Yield a host in a short directory, cleaned up afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="lw", dir="/tmp"))
    host = Rig(directory)
    try:
        yield host
    finally:
        host.clean_up()
        shutil.rmtree(directory, ignore_errors=True)


def ask(port: int, path: str, *, timeout_seconds: float = 120.0) -> dict[str, Any] | None:
    """Return the JSON answer of the guest behind `port`, or None if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None


def wait_for_records(port: int, *, beyond: int) -> dict[str, Any]:
    """Return the guest's counter once it has acknowledged more than `beyond` records."""
    deadline = time.monotonic() + GUEST_SECONDS
    while time.monotonic() < deadline:
        answer = ask(port, "/counter", timeout_seconds=5.0)
        if answer is not None and answer["acknowledged"] > beyond:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"the guest did not get beyond record {beyond}")
