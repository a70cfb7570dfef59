"""Where a daemon keeps what, below one data directory and outside it.

Owns: the layout of directories. Must not know: what lies in them. `doctor` and `up` read it too.

    <data>/service/                          the service's vault
    <data>/regions/<region>/                 everything of a region; gone means the region is gone
    <data>/regions/<region>/hosts/<name>/    an agent's state and logs
    <data>/regions/<region>/worker/          the worker's state and logs
    <data>/regions/<region>/storage/         storage accounts created without a URL
    <data>/up/                               what `leeward up` started
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import Unavailable
from leeward.core.ids import check_name


@dataclass(frozen=True, slots=True)
class Places:
    """The layout below one data directory (absolute)."""

    data: Path

    @property
    def regions(self) -> Path:
        return self.data / "regions"

    @property
    def up(self) -> Path:
        return self.data / "up"

    def region(self, region: str) -> Path:
        return self.regions / check_name(region, field="region")

    def host(self, region: str, name: str) -> Path:
        return self.region(region) / "hosts" / check_name(name)

    def worker(self, region: str) -> Path:
        return self.region(region) / "worker"

    def storage(self, region: str) -> Path:
        return self.region(region) / "storage"


def run_directory(node_data: Path, name: str) -> Path:
    """Return the directory for the unix sockets of a node, existing, 0700.

    Short, since a socket's path holds at most 107 bytes, and outside the data directory; the node's
    data directory decides which.
    """
    if os.geteuid() == 0:
        base = Path("/run/leeward")
    elif os.environ.get("XDG_RUNTIME_DIR"):
        base = Path(os.environ["XDG_RUNTIME_DIR"], "leeward")
    else:
        base = Path(f"/tmp/leeward-{os.geteuid()}")
    return private_directory(base / _digest(node_data) / name)


def shared_memory_directory(node_data: Path, name: str) -> Path:
    """Return the directory for a node's buffers in shared memory, existing, 0700."""
    return private_directory(Path(f"/dev/shm/leeward-{_digest(node_data)}-{name}"))


def private_directory(path: Path) -> Path:
    """Make the directory exist for its owner only, and return it. Raises: Unavailable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise Unavailable(f"cannot make {path}: {error.strerror}") from error
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]
