"""What one export serves and where it keeps its few files.

Owns: the configuration file's shape and the directory's layout. Must not know: processes, stores.
Shared by start.py, which writes it, and server.py, which reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import InvalidRequest
from leeward.protocol.fabric import ReplicaDisk

LIMIT_VARIABLE = "LEEWARD_EXPORT_CACHE"
"""Environment: how much disk the exports' cache of this host may take, such as "4G"; "0": none."""
SOCKET_PATH_BYTES_MAX = 107
"""What the kernel's sockaddr_un holds, less its final zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One recovery point's disks behind one socket; a disk's export name is the disk's name."""

    export_id: str
    socket: str
    catalog_url: str
    item_id: str
    point_id: str
    replicas: tuple[ReplicaDisk, ...]
    holder: str = ""
    """The name under which the export holds its point, the same after every restart; "": it holds
    none."""


@dataclass(frozen=True, slots=True)
class ExportFiles:
    """Paths of one export: its directory under the data directory, its socket under the run
    directory."""

    directory: Path
    socket: Path

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    @property
    def log(self) -> Path:
        return self.directory / "export.log"

    @property
    def supervisor_pid(self) -> Path:
        return self.directory / "supervisor.pid"

    @property
    def server_pid(self) -> Path:
        """A bare number, written by the supervisor, which knows no more than that."""
        return self.directory / "server.pid"

    @property
    def first_read(self) -> Path:
        """{"first_read_ns": …}, written by the server once it has answered a read."""
        return self.directory / "first-read.json"

    @property
    def cache(self) -> Path:
        """Shared by all exports of the host; it stays when they end."""
        return self.directory.parent.parent / "export-cache"


def export_files(run_dir: Path, data_dir: Path, export_id: str) -> ExportFiles:
    """Return the paths of export `export_id`. Raises: InvalidRequest when the socket's is too
    long for the kernel."""
    socket = run_dir / f"export-{export_id}.sock"
    if len(str(socket).encode()) > SOCKET_PATH_BYTES_MAX:
        raise InvalidRequest(f"{socket} is too long for a unix socket", field="run_dir")
    return ExportFiles(data_dir / "exports" / export_id, socket)
