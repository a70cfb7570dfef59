"""Disks come, grow and go while a VM is protected; it fails over to before, between and after.

Owns: what is written to the disk that comes, and which points must have it how large. Must not
know: how any of it is done.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

from demo.fire import processes_of

from leeward.core.units import MIB
from leeward.qemu.machine import AGENT_CHARDEV
from scenario.common import Findings, Result
from scenario.rig import Rig, create_vm
from scenario.stage import play

SIZE = 16 * MIB
DEVICE = "vdc"
ASK_SECONDS = 30.0
FIRST, SECOND = b"written before it grew " * 200, b"written at its new end " * 200


def run() -> Result:
    """Return what a disk's life showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("a VM in east, protected in west"):
        create_vm(rig)
        rig.wait_guest("east")
        rig.run("protect", "east/web-1", "--to", "west")
        before = _fresh_point(rig)
    with findings.part("a disk is added while the guest runs"):
        rig.run("vm", "disk", "add", "east/web-1", f"logs=webdata,size={SIZE // MIB}M")
        guest = _Guest(rig, "east")
        findings.check("the guest sees it", guest.size_bytes() == SIZE, f"{guest.size_bytes()}")
        guest.write(MIB, FIRST)
        small = _fresh_point(rig)
    with findings.part("it is made larger"):
        rig.run("vm", "disk", "grow", "east/web-1", "logs", f"{2 * SIZE // MIB}M")
        findings.check("the guest sees that", guest.size_bytes() == 2 * SIZE)
        guest.write(2 * SIZE - MIB, SECOND)
        large = _fresh_point(rig)
    with findings.part("it is removed"):
        rig.run("vm", "disk", "remove", "east/web-1", "logs")
        findings.check("the guest has it no more", guest.size_bytes() == 0)
        disks = {disk.name for disk in rig.machine("east").disks}
        findings.check("nor has the VM", disks == {"system", "data"}, str(disks))
        after = _fresh_point(rig)
    with findings.part("failover to after it was removed"):
        rig.run("failover", "web-1", "--recovery-point", after, seconds=180)
        _check(rig, findings, size=0)
    for when, point, size in (("while it was large", large, 2 * SIZE), ("before", before, 0)):
        with findings.part(f"the recovery point is changed: {when}"):
            rig.run("change-recovery-point", "web-1", point, seconds=180)
            _check(rig, findings, size=size)
    with findings.part("the recovery point is changed: before it grew; home with what it has then"):
        rig.run("change-recovery-point", "web-1", small, seconds=180)
        _check(rig, findings, size=SIZE)
        rig.run("commit", "web-1")
        rig.wait_hydrated()
        rig.run("reprotect", "web-1", seconds=240)
        rig.wait_protected(since=time.time())
        rig.run("failover", "web-1", "--planned", seconds=240)
        rig.wait_guest("east")
        _check(rig, findings, size=SIZE, region="east")


def _fresh_point(rig: Rig) -> str:
    """Return a recovery point of a moment after this call."""
    called_ns = time.time_ns()
    rig.wait_protected(since=time.time(), seconds=180)

    def look() -> str | None:
        newest = rig.points()[0]
        return newest.id if newest.time_ns > called_ns else None

    return rig.wait("a recovery point", look, 60)


def _check(rig: Rig, findings: Findings, *, size: int, region: str = "west") -> None:
    """The VM that runs there has the disk so large with what was on it then; 0: has it not."""
    rig.wait_guest(region)
    guest = _Guest(rig, region)
    found = guest.size_bytes()
    findings.check(f"the guest in {region} sees {size} bytes of it", found == size, str(found))
    wanted = {"system", "data"} | ({"logs"} if size else set())
    disks = {disk.name: disk.size_bytes for disk in rig.machine(region).disks}
    findings.check("the VM has just the point's disks", disks.keys() == wanted, str(disks))
    if size:
        findings.check("with its content", guest.read(MIB, len(FIRST)) == FIRST)
        findings.check("as large as it was", disks["logs"] == size, str(disks))
    if size == 2 * SIZE:
        findings.check("to its new end", guest.read(size - MIB, len(SECOND)) == SECOND)


class _Guest:
    """The disk inside the guest, by way of the guest's own agent."""

    def __init__(self, rig: Rig, region: str) -> None:
        self._path = rig.wait("the guest's agent", lambda: _agent_socket(rig, region), 30)

    def size_bytes(self) -> int:
        try:
            handle = self._ask("guest-file-open", path=f"/sys/block/{DEVICE}/size", mode="r")
        except RuntimeError:
            return 0
        return 512 * int(self._read_and_close(handle, 64))

    def write(self, offset: int, data: bytes) -> None:
        handle = self._ask("guest-file-open", path=f"/dev/{DEVICE}", mode="r+")
        self._ask("guest-file-seek", handle=handle, offset=offset, whence=0)
        encoded = base64.b64encode(data).decode()
        self._ask("guest-file-write", handle=handle, **{"buf-b64": encoded})
        self._ask("guest-file-flush", handle=handle)
        self._ask("guest-file-close", handle=handle)

    def read(self, offset: int, length: int) -> bytes:
        handle = self._ask("guest-file-open", path=f"/dev/{DEVICE}", mode="r")
        self._ask("guest-file-seek", handle=handle, offset=offset, whence=0)
        return self._read_and_close(handle, length)

    def _read_and_close(self, handle: int, length: int) -> bytes:
        said = self._ask("guest-file-read", handle=handle, count=length)
        self._ask("guest-file-close", handle=handle)
        return base64.b64decode(said["buf-b64"])

    def _ask(self, command: str, **arguments: object) -> Any:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(ASK_SECONDS)
            channel.connect(str(self._path))
            request = {"execute": command, "arguments": arguments}
            channel.sendall(b"\n" + json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as answers:
                answer = json.loads(answers.readline())
        if "return" not in answer:
            raise RuntimeError(str(answer))
        return answer["return"]


def _agent_socket(rig: Rig, region: str) -> Path | None:
    """Return where QEMU of the region's VM has its guest's agent."""
    pattern = re.compile(rf"socket,id={AGENT_CHARDEV},path=([^,]+)")
    for pid in processes_of(rig.data, region):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if line.startswith("qemu-system") and (found := pattern.search(line)):
            return Path(found[1])
    return None
