"""What a scenario has left on the machine: processes, namespaces, devices, sockets, mounts, files.

Owns: what counts as left behind. Must not know: scenarios. Others' installations run on the same
machine meanwhile, so only what can be told to be of the scenario's own directory, or belongs to
nobody that still runs, is called a leak.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from demo.fire import processes_of

SETTLE_SECONDS = 10.0
HOSTS_MAX = 16
"""Of a region, as `leeward up` numbers them: what a region that burned had is to be found, too."""


def find_leaks(data: Path, *, namespaces_before: frozenset[str]) -> tuple[str, ...]:
    """Return a sentence for everything that is left of the installation in `data`, once what was
    told to end has had time to. Call it after `leeward down --vms`, before the directory goes."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := _look(data, namespaces_before)) and time.monotonic() < deadline:
        time.sleep(0.25)
    return found


def namespaces() -> frozenset[str]:
    """Return the names of the machine's network namespaces of ours."""
    directory = Path("/run/netns")
    return (
        frozenset(each.name for each in directory.glob("lw-*"))
        if directory.exists()
        else frozenset()
    )


def homes_of(data: Path) -> tuple[Path, ...]:
    """Return where every host of the installation keeps its state, whether it still does or not."""
    regions = data / "regions"
    known = {
        regions / region / "hosts" / f"{region}-{number}"
        for region in ("east", "west")
        for number in range(1, HOSTS_MAX + 1)
    }
    return tuple(sorted({*known, *regions.glob("*/hosts/*")}))


def places_outside(home: Path) -> tuple[Path, ...]:
    """Return the directories for sockets and shared memory that a host with that home uses."""
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    return Path("/run/leeward", digest), Path(f"/dev/shm/leeward-{digest}-{home.name}")


def _look(data: Path, namespaces_before: frozenset[str]) -> tuple[str, ...]:
    looks: tuple[Callable[[], list[str]], ...] = (
        lambda: [f"process {pid}: {_command_line(pid)}" for pid in processes_of(data)],
        lambda: [f"namespace {name}" for name in sorted(_orphans(namespaces_before))],
        lambda: [f"{path} exists" for path in _outside(data) if path.exists()],
        lambda: [f"mount {line.split()[1]}" for line in _mounts() if str(data) in line],
        _taps_of_nobody,
    )
    return tuple(leak for look in looks for leak in look())


def _orphans(before: frozenset[str]) -> set[str]:
    """Return namespaces that came since and that no process is in."""
    return {name for name in namespaces() - before if not _pids_in(name)}


def _pids_in(name: str) -> list[str]:
    said = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    )
    return said.stdout.split()


def _outside(data: Path) -> list[Path]:
    return [place for home in homes_of(data) for place in places_outside(home)]


def _mounts() -> list[str]:
    return Path("/proc/mounts").read_text().splitlines()


def _taps_of_nobody() -> list[str]:
    """Return tap devices of ours in the machine's own namespace: none is ever wanted there."""
    said = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True)
    names = [str(link["ifname"]) for link in json.loads(said.stdout or "[]")]
    return [f"device {name}" for name in names if len(name) == 13 and name.startswith("tap")]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120]
    except OSError:
        return "gone"
