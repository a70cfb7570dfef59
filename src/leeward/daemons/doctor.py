"""`leeward doctor`: can this machine run Leeward, and how well. Plain sentences.

Owns: the checks. Must not know: how they are printed. Looks, and changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from leeward.core.units import GIB, MIB, format_bytes
from leeward.daemons.places import Places
from leeward.fabric.accelerator import is_kvm_proven

COMMAND_SECONDS = 10.0
DISK_BYTES_LOW = 4 * GIB
SHARED_MEMORY_BYTES_LOW = 512 * MIB
QEMU_OLDEST = (6, 2)
"""The first with everything that is asked of it: write-blocking mirrors, bitmap merges, blockdev
reopen."""
QEMU_TRIED = (7, 2)


class Verdict(Enum):
    """BAD: Leeward does not work so. WARN: it works, with less."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict
    sentence: str


def examine(data: Path) -> tuple[Finding, ...]:
    """Return what was found on this machine for a Leeward with the data directory `data`."""
    return tuple(
        Finding(check=check.__name__.strip("_"), verdict=verdict, sentence=sentence)
        for check in CHECKS
        for verdict, sentence in check(data)
    )


def complaints(data: Path) -> list[str]:
    """Return what is not good on this machine, as lines for people; empty when all is."""
    return [
        f"{finding.verdict.value:<5} {finding.sentence}"
        for finding in examine(data)
        if finding.verdict is not Verdict.GOOD
    ]


Outcome = Iterator[tuple[Verdict, str]]


def _qemu(data: Path) -> Outcome:
    text = _output_of("qemu-system-x86_64", "--version")
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", text)
    if not match:
        yield Verdict.BAD, "QEMU is not installed: no qemu-system-x86_64 (package qemu-system-x86)"
        return
    version = int(match[1]), int(match[2])
    name = f"QEMU {match[1]}.{match[2]}{match[3] or ''}"
    if version < QEMU_OLDEST:
        yield Verdict.BAD, f"{name} is too old; {QEMU_OLDEST[0]}.{QEMU_OLDEST[1]} is the oldest"
        return
    yield Verdict.GOOD, f"{name} is installed"
    yield (
        Verdict.GOOD,
        f"{name} has two known crashes around blockdev-mirror (force-cancel under load, attaching "
        "beside an iothread); Leeward keeps away from both, so do not cancel its jobs by hand",
    )
    if version < QEMU_TRIED:
        yield Verdict.WARN, f"{name} is older than what Leeward is tested with (7.2)"


def _programs(data: Path) -> Outcome:
    for program, need in (
        ("qemu-img", "VMs cannot be created (package qemu-utils)"),
        ("dnsmasq", "guests get no address by DHCP (package dnsmasq-base)"),
        ("ip", "networks cannot be made (package iproute2)"),
        ("nft", "networks neither route nor span hosts (package nftables)"),
        ("slirp4netns", "networks do not reach the outside (package slirp4netns)"),
    ):
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        worst = Verdict.BAD if program == "qemu-img" else Verdict.WARN
        yield (
            (Verdict.GOOD, f"{program} is {found}")
            if found
            else (
                worst,
                f"{program} is not installed: {need}",
            )
        )


def _accelerator(data: Path) -> Outcome:
    device = Path("/dev/kvm")
    if not device.exists():
        yield Verdict.WARN, "there is no /dev/kvm: VMs run emulated (tcg), about ten times slower"
    elif not os.access(device, os.R_OK | os.W_OK):
        yield Verdict.WARN, "/dev/kvm may not be opened by this user: VMs run emulated (tcg)"
    elif shutil.which("qemu-system-x86_64") is None:
        yield Verdict.WARN, "/dev/kvm is there, but no QEMU to try it with"
    elif not is_kvm_proven():
        yield Verdict.WARN, "/dev/kvm is there but runs no guest: VMs run emulated (tcg)"
    else:
        yield Verdict.GOOD, "VMs run on KVM"


def _networks(data: Path) -> Outcome:
    if os.geteuid() != 0:
        yield (
            Verdict.WARN,
            "not root: networks are QEMU's own user networks; VMs cannot reach one another",
        )
        return
    if not _opens(Path("/dev/net/tun")):
        yield Verdict.WARN, "/dev/net/tun cannot be opened: networks are QEMU's own user networks"
        return
    if not _runs("unshare", "--net", "true"):
        yield Verdict.WARN, "network namespaces are not allowed here: QEMU's own user networks"
        return
    yield Verdict.GOOD, "networks are namespaces with bridges, of their own per virtual network"


def _space(data: Path) -> Outcome:
    for path, low, what in (
        (data, DISK_BYTES_LOW, "for disks and replicas"),
        (Path("/dev/shm"), SHARED_MEMORY_BYTES_LOW, "of shared memory for what VMs write"),
    ):
        existing = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
        free = shutil.disk_usage(existing).free
        verdict = Verdict.WARN if free < low else Verdict.GOOD
        yield verdict, f"{format_bytes(free)} {what} are free in {existing}"


def _data_directory(data: Path) -> Outcome:
    existing = next((each for each in (data, *data.parents) if each.exists()), Path("/"))
    if not os.access(existing, os.W_OK):
        yield Verdict.BAD, f"{existing} may not be written by this user; choose with --data-dir"
        return
    yield Verdict.GOOD, f"the data directory is {data}"
    gone = [
        path.name
        for path in Places(data).regions.glob("*")
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK)
    ]
    for region in gone:
        yield Verdict.WARN, f"the directory of region {region} cannot be read"


def _service(data: Path) -> Outcome:
    try:
        url = str(tomllib.loads((data / "client.toml").read_text())["url"])
    except FileNotFoundError:
        yield Verdict.GOOD, "no service has been started with this data directory yet"
        return
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        yield Verdict.BAD, f"{data / 'client.toml'} is broken: {error}"
        return
    host, _, port = url.rpartition("//")[2].partition(":")
    try:
        socket.create_connection((host, int(port.strip("/") or 80)), timeout=2).close()
        yield Verdict.GOOD, f"the service answers at {url}"
    except (OSError, ValueError):
        yield Verdict.WARN, f"nothing listens at {url}; `leeward up` starts the service"


CHECKS: tuple[Callable[[Path], Outcome], ...] = (
    _qemu,
    _programs,
    _accelerator,
    _networks,
    _space,
    _data_directory,
    _service,
)


def _opens(device: Path) -> bool:
    with suppress(OSError):
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        return True
    return False


def _runs(*argv: str) -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, capture_output=True, timeout=COMMAND_SECONDS, check=False)
        return done.returncode == 0
    return False


def _output_of(*argv: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        ).stdout
    return ""
