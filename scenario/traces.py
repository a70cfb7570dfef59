"""All that an installation is made of now: what its service knows, what is on the machine of it.

Owns: what is looked at, and the names by which the same thing is told again after a while. Must not
know: scenarios. Leeward's own processes, its logs and what counts up in files is left out: only
what resources and items leave is of interest.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from demo.fire import processes_of

from leeward.client.views import MachineView
from leeward.core.errors import LeewardError
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualNetwork,
)
from scenario.leaks import homes_of, places_outside
from scenario.rig import Rig

Named = ResourceGroup | VirtualNetwork | StorageAccount | AvailabilitySet | MachineView
REGIONS = ("east", "west")
_KINDS: tuple[type[Named], ...] = (
    ResourceGroup,
    VirtualNetwork,
    StorageAccount,
    AvailabilitySet,
    MachineView,
)
_OF_THE_NODE = {
    *("accelerator.json", "answers.jsonl", "identity.json", "lock", "logs", "scripts"),
    *("watchdog.json", "watchdog.lock", "watchdog.sock", "cache"),
}
"""What a host keeps for itself, whatever runs on it."""
_LEEWARD = ("leeward.cli.main", "leeward.mobility.watchdog")
_OPEN = ("pending", "running")


def find_traces(rig: Rig) -> frozenset[str]:
    """Return a sentence for each thing that is there. Raises: LeewardError while the service is
    away."""
    found = {*_known(rig), *_files(rig), *_processes(rig), *_devices(rig)}
    return frozenset(found)


def wait_same(rig: Rig, before: frozenset[str], seconds: float) -> tuple[str, ...]:
    """Return what has come or gone since `before`, once that is nothing or has had its time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            now = find_traces(rig)
        except LeewardError as error:
            changed: tuple[str, ...] = (str(error),)
        else:
            changed = (
                *(f"left: {each}" for each in sorted(now - before)),
                *(f"lost: {each}" for each in sorted(before - now)),
            )
        if not changed or time.monotonic() > deadline:
            return changed
        time.sleep(0.5)


def _known(rig: Rig) -> Iterator[str]:
    """Give what the service knows of."""
    client = rig.client
    for region in REGIONS:
        for kind in _KINDS:
            for each in client.list(kind, region):
                yield f"{kind.__name__} {region}/{each.name}"
    for vault in client.vaults():
        for item in client.items(vault.name):
            yield f"item {vault.name}/{item.name}"
        for plan in client.plans.listed(vault.name):
            yield f"recovery plan {vault.name}/{plan.name}"
        for standing in client.groups.listed(vault.name):
            yield f"consistency group {vault.name}/{standing.group.name}"
        for drill in client.drills.listed(vault.name):
            yield f"drill {vault.name}/{drill.name}"
    for mapping in client.mappings.listed():
        yield f"network mapping {mapping}"
    for job in client.jobs(limit=50):
        if job.state.value in _OPEN:
            yield f"{job.verb} {job.id} {job.state.value}"


def _files(rig: Rig) -> Iterator[str]:
    """Give files and sockets of hosts and workers, and what their stores hold, down to items."""
    for home in homes_of(rig.data):
        for top in (home, *places_outside(home)):
            yield from _below(top)
    for region in REGIONS:
        place = rig.data / "regions" / region
        yield from _below(place / "worker")
        for account in sorted((place / "storage").glob("*")):
            yield f"store {account}"
            for inside in ("disks/*", "objects/items/*"):
                yield from (f"stored {path}" for path in account.glob(inside))


def _below(top: Path) -> Iterator[str]:
    for path in top.rglob("*"):
        is_of_node = _OF_THE_NODE.intersection(path.relative_to(top).parts)
        if not is_of_node and path.suffix not in (".log", ".pid") and not path.is_dir():
            yield f"file {path}"


def _processes(rig: Rig) -> Iterator[str]:
    counts = Counter(
        f"{region} {label}"
        for region in REGIONS
        for pid in processes_of(rig.data, region)
        if (label := _label(pid))
    )
    for label, count in counts.items():
        yield from (f"process {label} {index + 1}" for index in range(count))


def _label(pid: int) -> str:
    """Return what the process is, "" for one that Leeward always has, or that has ended."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    words = " ".join(Path(word).name for word in argv[:4])
    return "" if not argv[0] or any(each in words for each in _LEEWARD) else words


def _devices(rig: Rig) -> Iterator[str]:
    """Give the network namespaces of the installation's networks, and the devices in them."""
    for directory in rig.data.glob("regions/*/hosts/*/networks/*"):
        name = f"lw-{directory.name}"
        said = subprocess.run(
            ["ip", "-n", name, "-j", "link"], capture_output=True, text=True, check=False
        )
        if said.returncode == 0:
            for link in json.loads(said.stdout or "[]"):
                yield f"device {link['ifname']} in {name}"
