"""`leeward down`: what `leeward up` started ends; with `vms`, everything of the data directory.

Owns: finding and ending those processes, and what a host keeps outside its data directory
(namespaces, sockets, shared memory). Must not know: what the processes do.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from leeward.daemons.places import Places, run_directory, shared_memory_directory
from leeward.daemons.up import STOP_SECONDS, read_state
from leeward.fabric import namespaces
from leeward.fabric.processes import ProcessIdentity, end, identify, is_alive, read_pid_file

ASKED_SECONDS = 3.0
"""What does not end so long after SIGTERM is killed."""


def down(data: Path, *, vms: bool) -> int:
    """No daemon of `data` runs; with `vms` nothing of it does. Returns: processes ended."""
    places = Places(data)
    ended = 0
    state = read_state(places)
    supervisor = read_pid_file(places.up / "up.pid")
    if supervisor is not None:
        end(supervisor, grace_seconds=3 * STOP_SECONDS)
        ended += 1
    for pid_file in sorted(places.up.glob("*.pid")):
        process = read_pid_file(pid_file)
        if process is not None:
            end(process, grace_seconds=STOP_SECONDS)
            ended += 1
        pid_file.unlink(missing_ok=True)
    if vms and state is not None:
        ended += _end_instance(state.instance)
        for region in state.regions:
            _forget_hosts(places, region, state.host_names(region))
    return ended


def processes_of(instance: str) -> list[ProcessIdentity]:
    """Return every process that was started, however indirectly, by that instance's `up`."""
    marker = f"LEEWARD_INSTANCE={instance}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended while we looked, or is not ours to look at
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                process = identify(int(entry.name))
                if process is not None:
                    found.append(process)
    return found


def _end_instance(instance: str) -> int:
    """End everything of the instance: told to, given a moment, then made to."""
    victims = processes_of(instance)
    for process in victims:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + ASKED_SECONDS
    while any(is_alive(process) for process in victims) and time.monotonic() < deadline:
        time.sleep(0.05)
    late = processes_of(instance)  # what did not listen, and what was being born
    for process in late:
        end(process, grace_seconds=0)
    return len({*victims, *late})


def _forget_hosts(places: Places, region: str, names: Sequence[str]) -> None:
    """Nothing of the region's hosts is left outside their data directories.

    names: of hosts whose directories may be gone.
    """
    homes = {places.host(region, name) for name in names}
    homes |= {*places.region(region).glob("hosts/*")}
    for home in homes:
        sockets = run_directory(home, home.name)
        for network in (*home.glob("networks/*"), *sockets.glob("networks/*")):
            namespaces.remove(f"lw-{network.name}")
        shutil.rmtree(sockets.parent, ignore_errors=True)
        shutil.rmtree(shared_memory_directory(home, home.name), ignore_errors=True)
