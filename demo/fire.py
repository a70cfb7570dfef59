"""The disaster: a region's processes killed at once, its directories gone.

Owns: finding what belongs to a region (every process there carries LEEWARD_REGION and LEEWARD_DATA
in its environment) and ending it. Must not know: what any of it was doing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def processes_of(data_directory: Path, region: str | None = None) -> list[int]:
    """Return the pids of the data directory's processes, of one region or of all."""
    wanted = {f"LEEWARD_DATA={data_directory}".encode()}
    if region is not None:
        wanted.add(f"LEEWARD_REGION={region}".encode())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended while we looked
            if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found


def kill_all(pids: list[int]) -> None:
    """Send SIGKILL to every pid; those already gone are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def burn(data_directory: Path, region: str) -> tuple[int, float]:
    """Kill every process of `region` and take its directory tree away.

    Returns: (processes killed, the moment in seconds since 1970).
    """
    victims = processes_of(data_directory, region)
    moment = time.time()
    kill_all(victims)
    tree = data_directory / "regions" / region
    tree.rename(data_directory / f"burned-{region}")
    (data_directory / f"burned-{region}").chmod(0)
    for network in (data_directory / f"burned-{region}").glob("hosts/*/networks/*"):
        # A dead host's kernel keeps no networks; this one lives on and must forget them.
        subprocess.run(["ip", "netns", "delete", f"lw-{network.name}"], check=False)
    for _ in range(100):
        late = processes_of(data_directory, region)
        if not late:
            break
        kill_all(late)  # born between our look and our kill
        time.sleep(0.02)
    return len(victims), moment
