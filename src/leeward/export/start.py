"""Starting exports, finding them again, ending them.

Owns: the socket, the directory and the processes of an export. Must not know: what a VM does with
it. Used by the agent; the export outlives it and is found by the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest, LeewardError
from leeward.export.config import ExportConfig, ExportFiles, export_files
from leeward.fabric import processes
from leeward.nbd.client import NbdClient
from leeward.object_store.open import open_store
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ReplicaDisk
from leeward.replica.holds import release_holds

OPEN_SECONDS_MAX = 30.0
"""Longest a start waits for the recovery point to open before it says so."""
RELEASE_SECONDS_MAX = 5.0
"""Longest a stop waits for a store to take a hold back; it goes on trying meanwhile."""
BACKLOG = 128
SERVER_MODULE = "leeward.export.server"

log = get_logger()


@dataclass(frozen=True, slots=True)
class ExportHandle:
    """One export that has been started. A value: any number of them may exist, in any process."""

    export_id: str
    files: ExportFiles

    @property
    def socket(self) -> Path:
        """The unix socket; a disk's export name is the disk's name."""
        return self.files.socket

    def config(self) -> ExportConfig:
        """Return what it serves."""
        return from_json(self.files.config.read_bytes(), ExportConfig)

    def is_alive(self) -> bool:
        """Say whether its supervisor runs, which keeps a server running."""
        return processes.find(self.files.supervisor_pid) is not None

    def first_read_ns(self) -> int:
        """Return the wall clock when a disk read was first answered, 0 before."""
        try:
            return int(json.loads(self.files.first_read.read_text())["first_read_ns"])
        except FileNotFoundError:
            return 0

    def ensure_running(self) -> None:
        """Make it run if its supervisor is gone; its readers reconnect to the new socket."""
        if not self.is_alive():
            _end_server(self.files)
            _start_supervisor(self.files)

    def wait_open(self, *, timeout_seconds: float = OPEN_SECONDS_MAX) -> None:
        """Return when every disk can be read.

        Raises: NotFound when the point or a disk is not there; Unavailable when the store is away
        for so long (the export goes on trying), or the point cannot be opened.
        """
        for replica in self.config().replicas:
            NbdClient.connect(self.socket, replica.disk, timeout_seconds=timeout_seconds).close()

    def stop(self) -> None:
        """Make it not exist: processes, socket and directory gone, its point held no more (a store
        that is away learns it by the hold's expiry). Idempotent."""
        supervisor = processes.find(self.files.supervisor_pid)
        if supervisor is not None:
            processes.end(supervisor)
        _end_server(self.files)
        self.files.socket.unlink(missing_ok=True)
        self._release_point()
        shutil.rmtree(self.files.directory, ignore_errors=True)

    def _release_point(self) -> None:
        try:
            config = self.config()
        except (OSError, InvalidRequest):  # stopped before, or cut short by a crash
            return
        release = threading.Thread(
            target=_release_holds, args=(config,), name="release", daemon=True
        )
        release.start()
        release.join(RELEASE_SECONDS_MAX)


def _release_holds(config: ExportConfig) -> None:
    try:
        release_holds(open_store(config.catalog_url), config.item_id, config.holder)
    except LeewardError as error:
        log.warning("point_still_held", item=config.item_id, problem=str(error))


def start_export(
    run_dir: Path,
    data_dir: Path,
    export_id: str,
    catalog_url: str,
    item_id: str,
    point_id: str,
    replicas: Sequence[ReplicaDisk],
) -> ExportHandle:
    """Return the export `export_id` serving that recovery point, every disk of it readable.

    As `begin_export`, and waits. A first start that fails leaves nothing behind.
    Raises: as ExportHandle.wait_open.
    """
    is_first = find_export(run_dir, data_dir, export_id) is None
    handle = begin_export(
        run_dir, data_dir, export_id, catalog_url, item_id, point_id, replicas=replicas
    )
    try:
        handle.wait_open()
    except LeewardError:
        if is_first:  # else a guest may be waiting behind it
            handle.stop()
        raise
    return handle


def begin_export(
    run_dir: Path,
    data_dir: Path,
    export_id: str,
    catalog_url: str,
    item_id: str,
    point_id: str,
    replicas: Sequence[ReplicaDisk],
) -> ExportHandle:
    """Return the export `export_id`, which is being started: its socket takes connections, and
    they are answered once the recovery point is open.

    Idempotent: one that serves the same point already is left alone, one that serves another is
    replaced.
    """
    files = export_files(run_dir, data_dir, export_id)
    config = ExportConfig(
        export_id=export_id,
        socket=str(files.socket),
        catalog_url=catalog_url,
        item_id=item_id,
        point_id=point_id,
        replicas=tuple(replicas),
        holder=f"export {export_id} {secrets.token_hex(8)}",
    )
    handle = ExportHandle(export_id, files)
    if files.config.exists() and not _serves(handle, config):
        handle.stop()
    is_first = not files.config.exists()
    if is_first:
        files.directory.mkdir(parents=True, exist_ok=True)
        _write(files.config, to_json(config))
    try:
        handle.ensure_running()
    except LeewardError:
        if is_first:
            handle.stop()
        raise
    return handle


def _serves(handle: ExportHandle, config: ExportConfig) -> bool:
    """Say whether the export serves that. Its holder is its own: another host may have an export of
    the same name, or have had one, and must neither let this one's point go nor move its hold."""
    try:
        return replace(handle.config(), holder=config.holder) == config
    except InvalidRequest:  # cut short by a crash of the machine
        return False


def find_export(run_dir: Path, data_dir: Path, export_id: str) -> ExportHandle | None:
    """Return the export that was started under that id and not stopped, running or not."""
    files = export_files(run_dir, data_dir, export_id)
    return ExportHandle(export_id, files) if files.config.exists() else None


def _start_supervisor(files: ExportFiles) -> None:
    """Bind the socket anew and leave it to a supervisor."""
    from leeward.export import supervisor

    files.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(files.socket))
        files.socket.chmod(0o600)
        listener.listen(BACKLOG)
        fd = str(listener.fileno())
        server = (sys.executable, "-m", SERVER_MODULE, str(files.config), fd)
        processes.spawn(
            (
                *(sys.executable, "-SP", supervisor.__file__, fd),
                *(str(files.socket), str(files.server_pid), *server),
            ),
            pid_file=files.supervisor_pid,
            log_file=files.log,
            pass_fds=(listener.fileno(),),
            environment={"OPENBLAS_NUM_THREADS": "1"},  # no linear algebra here: start sooner
        )


def _end_server(files: ExportFiles) -> None:
    """Make a server whose supervisor is gone not run, noted by it or not."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_server(entry, files):
            with suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _is_server(entry: Path, files: ExportFiles) -> bool:
    try:
        arguments = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or another user's
        return False
    module, config = SERVER_MODULE.encode(), str(files.config).encode()
    return module in arguments[:3] and arguments[3:4] == [config]


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.replace(path)
