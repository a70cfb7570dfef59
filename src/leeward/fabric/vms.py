"""QEMU processes of VMs: started, found again, asked, ended.

Owns: pid files, sockets, logs and QMP sessions. Must not know: images, how networks are made. A
process is known by its record's directory; an agent that starts finds it there.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest, Unavailable
from leeward.fabric import processes
from leeward.fabric.processes import ProcessIdentity
from leeward.model.resources import PowerState
from leeward.qemu.machine import Machine, command_line
from leeward.qemu.session import QmpSession

START_SECONDS = 45.0
"""Until QEMU answers; it opens its disks first, and a base may be slow to answer."""
POWER_OFF_SECONDS = 30.0
QUIT_SECONDS = 5.0
STATUS_SECONDS = 2.0
SOCKET_PATH_MAX = 107
_LOG_TAIL_BYTES = 4096

_PAUSED = frozenset({"shutdown", "paused", "prelaunch", "io-error", "suspended", "inmigrate"})
_SHUT_DOWN = "shutdown"
_RUNNING = frozenset({"running", "debug", "watchdog", "colo", "finish-migrate"})


@dataclass(frozen=True, slots=True)
class VmFiles:
    """Where a VM's process keeps its things. home: in the state directory; sockets: short paths.
    nbd: where its NBD server listens once somebody reads its disks."""

    home: Path
    sockets: Path
    nbd: Path

    @property
    def pid(self) -> Path:
        return self.home / "qemu.pid"

    @property
    def log(self) -> Path:
        return self.home / "qemu.log"

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def qmp(self) -> Path:
        return self.sockets / "qmp"

    @property
    def spare_qmp(self) -> Path:
        """For whoever looks at the VM by hand; the agent never uses it."""
        return self.sockets / "spare"

    @property
    def agent(self) -> Path:
        """Where the guest's agent is reached, by one client at a time."""
        return self.sockets / "agent"


def socket_directory(run_dir: Path, vm_id: str) -> Path:
    """Return a directory for the VM's sockets whose paths the kernel takes.

    Raises: InvalidRequest when `run_dir` is too long even for the short form.
    """
    readable = run_dir / "vm" / vm_id
    short = run_dir / "vm" / hashlib.sha256(vm_id.encode()).hexdigest()[:12]
    for directory in (readable, short):
        if len(str(directory / "spare")) <= SOCKET_PATH_MAX:
            return directory
    raise InvalidRequest(f"{run_dir} is too long a path for sockets", field="run_dir")


def nbd_socket(run_dir: Path, vm_id: str) -> Path:
    """Return where the VM's QEMU has its NBD server: one place, which all who read its disks
    share."""
    return run_dir / f"nbd-{hashlib.sha256(vm_id.encode()).hexdigest()[:12]}.sock"


class VmProcesses:
    """The QEMU processes of one host, by VM. Thread-safe for different VMs."""

    def __init__(self) -> None:
        self._sessions: dict[Path, tuple[ProcessIdentity, QmpSession]] = {}
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def process(self, files: VmFiles) -> ProcessIdentity | None:
        """Return the VM's living process, or None."""
        processes.reap()
        return processes.read_pid_file(files.pid)

    def start(
        self, files: VmFiles, machine: Machine, descriptors: tuple[int, ...]
    ) -> ProcessIdentity:
        """Start the VM's process, standing before the guest's first instruction.

        Raises: HypervisorRefused with QEMU's own words; Unavailable when it does not answer. Then
        no process remains.
        """
        files.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        for socket in (files.qmp, files.spare_qmp, files.agent):
            socket.unlink(missing_ok=True)
        log_begins = files.log.stat().st_size if files.log.exists() else 0
        process = processes.spawn(
            command_line(machine), pid_file=files.pid, log_file=files.log, pass_fds=descriptors
        )
        try:
            self._await_answer(files, process, log_begins)
        except BaseException:
            self.end(files, force=True)
            raise
        return process

    def _await_answer(self, files: VmFiles, process: ProcessIdentity, log_begins: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            processes.reap()
            if not processes.is_alive(process):
                raise HypervisorRefused(
                    f"QEMU would not start: {_last_words(files.log, log_begins)}",
                    hint=f"its log is {files.log}",
                )
            if files.qmp.exists():
                try:
                    self._connect(files, process, timeout_seconds=1.0)
                    return
                except Unavailable:
                    if time.monotonic() > deadline:
                        raise
            elif time.monotonic() > deadline:
                raise Unavailable(f"QEMU did not open its monitor within {START_SECONDS:g} s")
            time.sleep(0.01)

    def qmp(self, files: VmFiles, *, timeout_seconds: float = 5.0) -> QmpSession:
        """Return the one session with the VM. Raises: Conflict when it does not run."""
        process = self.process(files)
        if process is None:
            raise Conflict(f"VM {files.home.name} is not running", field="vm_id")
        return self._connect(files, process, timeout_seconds=timeout_seconds)

    def _connect(
        self, files: VmFiles, process: ProcessIdentity, *, timeout_seconds: float
    ) -> QmpSession:
        with self._locks[files.home]:
            known = self._sessions.get(files.home)
            if known is not None:
                if known[0] == process and known[1].is_connected:
                    return known[1]
                known[1].close()
            session = QmpSession.connect(files.qmp, timeout_seconds=timeout_seconds)
            self._sessions[files.home] = (process, session)
            return session

    def power(self, files: VmFiles) -> PowerState:
        """Return whether the guest runs; UNKNOWN when QEMU does not answer."""
        if self.process(files) is None:
            return PowerState.STOPPED
        try:
            session = self.qmp(files, timeout_seconds=STATUS_SECONDS)
            answer = session.execute("query-status", timeout_seconds=STATUS_SECONDS)
        except Conflict:
            return PowerState.STOPPED
        except (Unavailable, HypervisorRefused):
            return PowerState.UNKNOWN if self.process(files) else PowerState.STOPPED
        if answer["status"] in _RUNNING:
            return PowerState.RUNNING
        return PowerState.PAUSED if answer["status"] in _PAUSED else PowerState.UNKNOWN

    def resume(self, files: VmFiles) -> None:
        """Make the guest run on. Idempotent."""
        session = self.qmp(files)
        session.execute("set-action", {"shutdown": "poweroff"})  # `halt` may have changed it
        session.execute("cont")

    def halt(self, files: VmFiles, *, power_off_seconds: float) -> bool:
        """Have the guest write no more, QEMU staying as it is: off, or else paused. Return whether
        it is off. Idempotent."""
        session = self.qmp(files)
        session.execute("set-action", {"shutdown": "pause"})
        if self._run_state(session) in _RUNNING:
            session.execute("system_powerdown")
        deadline = time.monotonic() + power_off_seconds
        while self._run_state(session) in _RUNNING:
            if time.monotonic() > deadline:
                session.execute("stop")
                break
            time.sleep(0.05)
        return self._run_state(session) == _SHUT_DOWN

    def is_halted(self, files: VmFiles) -> bool:
        """Say whether the guest is off though its QEMU is there: it cannot go on, only start."""
        return self._run_state(self.qmp(files)) == _SHUT_DOWN

    def _run_state(self, session: QmpSession) -> str:
        return str(session.execute("query-status", timeout_seconds=STATUS_SECONDS)["status"])

    def power_off(self, files: VmFiles) -> None:
        """Ask the guest to power off; after POWER_OFF_SECONDS, or if it is paused, end QEMU in
        good order."""
        process = self.process(files)
        if process is not None and self.power(files) is PowerState.RUNNING:
            self.qmp(files).execute("system_powerdown")
            deadline = time.monotonic() + POWER_OFF_SECONDS
            while processes.is_alive(process) and time.monotonic() < deadline:
                time.sleep(0.05)
                processes.reap()
        self.end(files, force=False)

    def end(self, files: VmFiles, *, force: bool) -> None:
        """Make the VM's process not run, and its sockets gone. Idempotent.

        Finds a process whose starter was killed before it could write the pid file, too.
        """
        process = processes.find(files.pid)
        if process is not None:
            processes.end(process, grace_seconds=0 if force else QUIT_SECONDS)
        self._hang_up(files)
        files.pid.unlink(missing_ok=True)
        for socket in (files.qmp, files.spare_qmp, files.agent, files.nbd):
            socket.unlink(missing_ok=True)
        if files.sockets.exists() and not any(files.sockets.iterdir()):
            files.sockets.rmdir()

    def _hang_up(self, files: VmFiles) -> None:
        with self._locks[files.home]:
            known = self._sessions.pop(files.home, None)
        if known is not None:
            known[1].close()

    def close(self) -> None:
        """Close every session; the VMs run on."""
        for _, session in list(self._sessions.values()):
            session.close()
        self._sessions.clear()


def _last_words(log: Path, begins: int) -> str:
    """Return what QEMU said last, since byte `begins` of its log."""
    with log.open("rb") as file:
        file.seek(max(begins, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    spoken = [line for line in lines if line.strip() and "warning:" not in line]
    return spoken[-1].removeprefix("qemu-system-x86_64: ") if spoken else "it said nothing"
