"""Making the disks of a VM that was booted from a recovery point local, under the running guest.

Owns: the thread, its waits and retries, the order in which the bases are let go. Must not know: who
started the VM. Needs only the VM's QEMU and its export, and sees in them how far an earlier run
came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.core.errors import LeewardError, Unavailable
from leeward.core.units import SECTOR
from leeward.export.filling import CONTEXTS, DiskFill
from leeward.nbd.client import NbdClient
from leeward.observability.log import get_logger
from leeward.protocol.messages import HydrationStatus
from leeward.qemu.mirror import run_state
from leeward.qemu.nbd_exports import ensure_export, ensure_nbd_server, remove_export
from leeward.qemu.overlay import disks_with_base, release_base
from leeward.qemu.session import QmpSession

SILENCE_SECONDS = 30.0
"""A read that takes longer waits for a store that is away: then the base is asked directly, so
that no more reads pile up in QEMU."""
RETRY_SECONDS = 2.0
TEND_SECONDS = 5.0
STOP_SECONDS = 15.0
HINT_SECONDS = 5.0
"""Longest an announcement to the base may take, and the pause after one that failed."""
HEAD_START_SECONDS = 10.0
"""How long the guest is given to read first: it boots now, hydration has time."""


class Base(Protocol):
    """The export the disks read from: export.start.ExportHandle."""

    @property
    def socket(self) -> Path: ...

    def ensure_running(self) -> None: ...

    def first_read_ns(self) -> int: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HydrationPlan:
    """vm_id: for the status. nbd_socket: where the VM's QEMU has, or shall have, its NBD server."""

    vm_id: str
    disks: tuple[str, ...]
    nbd_socket: Path
    head_start_seconds: float = HEAD_START_SECONDS


class Hydrator:
    """A thread that works until all disks are local, however often VM, export or store go away.

    While it works it also keeps the export running, and continues a guest that QEMU has paused for
    an I/O error: the error may be gone, and if it is not, the guest is paused again unharmed.
    """

    def __init__(
        self,
        plan: HydrationPlan,
        *,
        qmp: Callable[[], QmpSession],
        base: Base,
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        """qmp: returns the VM's present session, or raises a LeewardError while there is none.

        on_filled: called when every disk holds all its data, before any base is taken away, and
        again after a restart in between.
        """
        self._plan = plan
        self._qmp = qmp
        self._base = base
        self._on_filled = on_filled
        self._fills = {disk: DiskFill(disk) for disk in plan.disks}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hydrate-{plan.vm_id}", daemon=True)
        self._lock = threading.Lock()
        self._client: NbdClient | None = None
        self._tended = 0.0
        self._first_read_ns = 0
        self._problem = ""
        self._is_done = False

    def start(self) -> None:
        """Begin. Call it once."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread not run; the disks stay as they are, ready for the next. Idempotent."""
        self._stopped.set()
        with self._lock:
            if self._client is not None:
                self._client.abort()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    @property
    def is_done(self) -> bool:
        """True once all disks are local and the export is gone."""
        return self._is_done

    def wait_done(self, *, timeout_seconds: float) -> bool:
        """Return once it has ended, saying whether all disks are local."""
        self._thread.join(timeout_seconds)
        return self._is_done

    def status(self) -> HydrationStatus:
        """Return how far it is. bytes_total is 0 until the bases have been measured, and for ever
        in a run that found nothing left to do."""
        if not self._first_read_ns and not self._is_done:
            with suppress(LeewardError, OSError, ValueError):
                self._first_read_ns = self._base.first_read_ns()
        return HydrationStatus(
            vm_id=self._plan.vm_id,
            bytes_done=sum(fill.bytes_done for fill in self._fills.values()),
            bytes_total=sum(fill.bytes_total for fill in self._fills.values()),
            done=self._is_done,
            first_read_ns=self._first_read_ns,
            problem=self._problem,
        )

    def _run(self) -> None:
        log = get_logger(vm=self._plan.vm_id)
        self._wait_guest_first()
        while not self._stopped.is_set():
            try:
                self._hydrate()
            except LeewardError as error:
                if error.message != self._problem and not self._stopped.is_set():
                    log.warning("hydration_waits", reason=error.message)
                self._problem = error.message
                self._stopped.wait(RETRY_SECONDS)
            except Exception as error:  # a bug or a full disk must not end hydration for good
                log.exception("hydration_failed")
                self._problem = f"internal error: {error}"
                self._stopped.wait(RETRY_SECONDS)
            else:
                log.info("hydration_done", bytes=self.status().bytes_total)
                return

    def _hydrate(self) -> None:
        """Have all disks local and the export gone. Raises: LeewardError when that must wait."""
        session = self._qmp()
        disks = disks_with_base(session, self._plan.disks)
        for disk in disks:
            self._fill(session, self._fills[disk])
        self._on_filled()
        for disk in disks:
            remove_export(session, _export_id(disk))
            release_base(session, disk)
        self.status()  # the last chance to read the export's note of its first read
        self._base.stop()
        self._problem = ""
        self._is_done = True

    def _fill(self, session: QmpSession, fill: DiskFill) -> None:
        def check() -> None:
            self._check(session)

        self._base.ensure_running()
        with self._connected(self._base.socket, fill.disk) as base:
            base.read(fill.position, SECTOR)  # does the store answer, there where we left off?
            self._tended = 0.0
            fill.measure(base, check)
        ensure_nbd_server(session, self._plan.nbd_socket)
        export = _export_id(fill.disk)
        ensure_export(session, export, node=f"root-{fill.disk}", name=export, allocation_depth=True)
        with self._connected(self._plan.nbd_socket, export, CONTEXTS) as root:
            self._problem = ""
            hints = BaseHints(self._base.socket, fill.disk)
            try:
                fill.fill(root, check, hints.announce)
            finally:
                hints.close()

    def _check(self, session: QmpSession) -> None:
        """See to export and guest now and then. Raises: Unavailable once the thread shall end."""
        if self._stopped.is_set():
            raise Unavailable("hydration was stopped")
        if time.monotonic() - self._tended < TEND_SECONDS:
            return
        self._tended = time.monotonic()
        self._base.ensure_running()
        if run_state(session) == "io-error":
            get_logger(vm=self._plan.vm_id).info("guest_continued_after_io_error")
            session.execute("cont")

    def _wait_guest_first(self) -> None:
        deadline = time.monotonic() + self._plan.head_start_seconds
        while time.monotonic() < deadline and not self.status().first_read_ns:
            if self._stopped.wait(0.1):
                return

    def _connected(
        self, socket: Path, export: str, contexts: tuple[str, ...] = CONTEXTS[:1]
    ) -> NbdClient:
        """Return a client that `stop` can interrupt."""
        client = NbdClient.connect(socket, export, contexts, timeout_seconds=SILENCE_SECONDS)
        with self._lock:
            self._client = client
        if self._stopped.is_set():
            client.abort()
        return client


class BaseHints:
    """Tells a disk's base what hydration will read; does without when the base does not listen."""

    def __init__(self, socket: Path, disk: str) -> None:
        self._socket = socket
        self._disk = disk
        self._client: NbdClient | None = None
        self._silent_until = 0.0

    def announce(self, offset: int, length: int) -> None:
        """The base knows, if it can be told now."""
        if time.monotonic() < self._silent_until:
            return
        try:
            if self._client is None:
                self._client = NbdClient.connect(
                    self._socket, self._disk, timeout_seconds=HINT_SECONDS
                )
            self._client.announce(offset, length)
        except LeewardError:
            self.close()
            self._silent_until = time.monotonic() + HINT_SECONDS

    def close(self) -> None:
        """End the connection. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _export_id(disk: str) -> str:
    return f"hydrate-{disk}"
