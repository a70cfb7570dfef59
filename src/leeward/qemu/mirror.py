"""The mirror job that splits a disk's writes to the tap: attach, resume, detach, inspect.

Owns: the order of QMP commands that QEMU survives, and the job's state as a value. Must not know:
taps' insides, cuts, sweeps. Two ways of attaching and detaching crash stock QEMU and with it the
guest; the functions here are the ones that do not (each says why).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.qemu.nodes import BlockNode, block_nodes, disk_root
from leeward.qemu.session import QmpSession

GRANULARITY_BYTES = 4096
STOP_SECONDS = 3.0
"""Longest `stop` is waited for: it flushes the guest's disks."""
ENDED_SECONDS = 10.0
FAILED_SECONDS = 1.0
_POLL_SECONDS = 0.02


class JobPhase(Enum):
    """RUNNING: copies. STANDBY: paused, as it is after its tap went away; QEMU notes what the tap
    misses. ENDED: concluded, or ending. ABSENT: there is no such job."""

    ABSENT = "absent"
    RUNNING = "running"
    STANDBY = "standby"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorState:
    """One disk's mirror. dirty_bytes: what QEMU knows the tap has missed so far. has_failed: its
    tap did not take something; a job that stands by without is drained, and goes on by itself."""

    disk: str
    phase: JobPhase
    dirty_bytes: int
    has_tap_node: bool
    has_failed: bool = False

    @property
    def is_clean(self) -> bool:
        """True when every write is passed on at once and nothing is known to be missing."""
        return self.phase is JobPhase.RUNNING and self.dirty_bytes == 0


def tap_node(disk: str) -> str:
    return f"tap-{disk}"


def job_name(disk: str) -> str:
    return f"mirror-{disk}"


def inspect(session: QmpSession, disks: Sequence[str]) -> tuple[MirrorState, ...]:
    """Return every disk's mirror as QEMU says it is now."""
    jobs = {job["device"]: job for job in session.execute("query-block-jobs", timeout_seconds=5.0)}
    nodes = block_nodes(session)
    return inspect_in(jobs, nodes, disks)


def inspect_in(
    jobs: Mapping[str, Mapping[str, Any]], nodes: Mapping[str, BlockNode], disks: Sequence[str]
) -> tuple[MirrorState, ...]:
    """Return every disk's mirror, from QEMU's answers to query-block-jobs and about its nodes."""
    return tuple(
        MirrorState(
            disk=disk,
            phase=_phase(jobs.get(job_name(disk))),
            dirty_bytes=sum(
                nodes[name].unnamed_dirty_bytes
                for name in (f"disk-{disk}", f"root-{disk}")
                if name in nodes
            ),
            has_tap_node=tap_node(disk) in nodes,
            has_failed=jobs.get(job_name(disk), {}).get("io-status", "ok") != "ok",
        )
        for disk in disks
    )


def _phase(job: Mapping[str, Any] | None) -> JobPhase:
    if job is None:
        return JobPhase.ABSENT
    if job["status"] not in ("created", "running", "ready", "paused", "standby"):
        return JobPhase.ENDED
    if job["paused"] or job["io-status"] != "ok":
        return JobPhase.STANDBY
    return JobPhase.RUNNING


def attach(session: QmpSession, disk: str, tap_socket: Path) -> None:
    """Have the disk's writes passed to the tap from now on; does nothing if they are already.

    Have a watchdog guard `tap_socket` first: a tap that hangs in its handshake freezes the guest.
    `on-target-error` is `stop`, never `report` or `ignore`: with those the job frees its bitmap of
    operations in flight before the guest's writes are drained, and QEMU crashes.
    Attaching to a loaded device with an iothread dereferences a null bitmap; such a guest is
    stopped for the moment of attaching.
    """
    state = inspect(session, [disk])[0]
    if state.phase in (JobPhase.RUNNING, JobPhase.STANDBY):
        return
    _clear_away(session, state)
    session.execute(
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": tap_node(disk),
            "server": {"type": "unix", "path": str(tap_socket)},
            "export": disk,
            "reconnect-delay": 0,
            "discard": "unmap",
        },
    )
    try:
        if _has_iothread(session, disk):
            with _guest_stopped(session):
                _start_job(session, disk)
        else:
            _start_job(session, disk)
    except (HypervisorRefused, Unavailable):
        with suppress(HypervisorRefused, Unavailable):
            session.execute("blockdev-del", {"node-name": tap_node(disk)})
        raise


def _clear_away(session: QmpSession, state: MirrorState) -> None:
    """Make what an ended job left behind not be in the way of the next."""
    if state.phase is JobPhase.ENDED:
        _dismiss(session, state.disk)
    if state.has_tap_node:
        session.execute("blockdev-del", {"node-name": tap_node(state.disk)})


def _start_job(session: QmpSession, disk: str) -> None:
    session.execute(
        "blockdev-mirror",
        {
            "job-id": job_name(disk),
            "device": disk_root(block_nodes(session), disk).name,
            "target": tap_node(disk),
            "filter-node-name": f"tapf-{disk}",
            "sync": "none",
            "copy-mode": "write-blocking",
            "on-target-error": "stop",
            "auto-dismiss": False,
            "granularity": GRANULARITY_BYTES,
        },
    )


def resume(session: QmpSession, disk: str) -> None:
    """Have QEMU copy to the tap what it noted that the tap has missed.

    A running job is left alone, and one that QEMU has paused for a moment to drain the disk. It
    stands by again at once if the tap cannot be reached yet: look, and call again.
    Raises: HypervisorRefused if there is no job.
    """
    state = inspect(session, [disk])[0]
    is_drained = state.phase is JobPhase.STANDBY and not state.has_failed
    if state.phase is not JobPhase.RUNNING and not is_drained:
        session.execute("block-job-resume", {"device": job_name(disk)})


def detach(session: QmpSession, disk: str) -> None:
    """Make neither the job nor the tap's node exist; the guest's writes go to its disk alone.

    Tried first: a soft cancel, which drains and needs a live tap. Else the guest is stopped, the
    job force-cancelled, the guest continued; force-cancelling under writes in flight crashes QEMU.
    Idempotent. Raises: HypervisorRefused where neither is possible: a job in standby in a
    qemu-storage-daemon, which cannot stop its guest. Give it a live tap and resume.
    """
    state = inspect(session, [disk])[0]
    if state.phase in (JobPhase.RUNNING, JobPhase.STANDBY) and not _cancel_softly(session, disk):
        _cancel_stopped(session, disk)
    _clear_away(session, inspect(session, [disk])[0])


def _cancel_softly(session: QmpSession, disk: str) -> bool:
    """Say whether the job has ended after being asked to."""
    try:
        session.execute("block-job-cancel", {"device": job_name(disk)})
        _wait_ended(session, disk)
    except (HypervisorRefused, Unavailable):
        return False
    return True


def _cancel_stopped(session: QmpSession, disk: str) -> None:
    if run_state(session) is None:
        raise HypervisorRefused(
            f"the mirror of disk {disk} cannot be cancelled without a live tap",
            hint="start its tap, resume the job, then detach",
        )
    with _guest_stopped(session):
        if inspect(session, [disk])[0].phase in (JobPhase.RUNNING, JobPhase.STANDBY):
            session.execute("block-job-cancel", {"device": job_name(disk), "force": True})
            _wait_ended(session, disk)


def _wait_ended(session: QmpSession, disk: str) -> None:
    """Return when the job is no more. QEMU pauses a job that ends for as long as it drains the
    disk; only one that its tap has failed, and stays so, cannot end."""
    seen_whole = time.monotonic()
    deadline = seen_whole + ENDED_SECONDS
    while True:
        state, now = inspect(session, [disk])[0], time.monotonic()
        if state.phase not in (JobPhase.RUNNING, JobPhase.STANDBY):
            return
        if not state.has_failed:
            seen_whole = now
        if now - seen_whole > FAILED_SECONDS or now > deadline:
            raise Unavailable(
                f"the mirror of disk {disk} does not end: it is in {state.phase.value}"
            )
        time.sleep(_POLL_SECONDS)


def _dismiss(session: QmpSession, disk: str) -> None:
    """Return when the ended job is forgotten; it may still be on its way to its end."""
    deadline = time.monotonic() + ENDED_SECONDS
    while inspect(session, [disk])[0].phase is not JobPhase.ABSENT:
        if time.monotonic() > deadline:
            raise Unavailable(f"the mirror of disk {disk} does not conclude")
        with suppress(HypervisorRefused):  # not concluded yet, or gone in between
            session.execute("job-dismiss", {"id": job_name(disk)})
        time.sleep(_POLL_SECONDS)


def run_state(session: QmpSession) -> str | None:
    """Return the guest's run state ("running", "paused", "postmigrate"…); None where there is no
    guest: a qemu-storage-daemon. Raises: Unavailable."""
    try:
        return str(session.execute("query-status", timeout_seconds=5.0)["status"])
    except HypervisorRefused:
        return None


def _has_iothread(session: QmpSession, disk: str) -> bool:
    """Say whether the disk's device may be served by an iothread: yes, if it cannot be known."""
    if run_state(session) is None:
        return False
    try:
        device = {"path": f"/machine/peripheral/dev-{disk}", "property": "iothread"}
        return bool(session.execute("qom-get", device))
    except HypervisorRefused:
        return True


@contextmanager
def _guest_stopped(session: QmpSession) -> Iterator[None]:
    """Hold the guest still, its requests drained; it runs again afterwards if it ran before."""
    if run_state(session) != "running":
        yield
        return
    try:
        session.execute("stop", timeout_seconds=STOP_SECONDS)
        yield
    finally:
        _continue(session)


def _continue(session: QmpSession) -> None:
    """Make the guest run, also when QEMU is still busy with the `stop` before."""
    for attempt in (1, 2, 3):
        try:
            session.execute("cont")
        except Unavailable:
            if attempt == 3 or not session.is_connected:
                raise
        else:
            return
