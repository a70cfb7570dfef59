"""Replication verbs: which VMs of this host are replicated, remembered on disk, run by replicators.

Owns: what to replicate (so that it goes on after a restart, service or not) and what never again
(superseded epochs). Must not know: taps, sweeps, cuts; those are mobility's.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from leeward.agent.lanes import run_all
from leeward.agent.records import Records
from leeward.core.errors import (
    Conflict,
    Fenced,
    HypervisorRefused,
    LeewardError,
    NotFound,
    Unavailable,
)
from leeward.fabric.driver import FabricDriver
from leeward.mobility.shared_cut import SharedAttempt
from leeward.model.recovery import FreezeReport, ReplicationState
from leeward.observability.log import get_logger
from leeward.protocol.fabric import DrainResult, DrainSpec, FreezeSpec, ReplicationSpec
from leeward.protocol.messages import ReplicationStatus

log = get_logger()


STOP_AGAIN_SECONDS = 5.0


class ReplicatorPort(Protocol):
    """One VM's replication under way."""

    def start(self) -> None: ...
    def status(self) -> ReplicationStatus: ...
    def share(self, attempt: SharedAttempt) -> None: ...
    def drain(self, *, seconds: float) -> int: ...
    def let_go(self, disk: str) -> None: ...
    def freeze(self, *, seconds: float) -> FreezeReport: ...
    def stop(self, *, detach: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationRecord:
    """What an agent keeps of one item. superseded_by: the newer epoch that ended it, 0 if none.
    is_fenced: and its VM and replication have been stopped since. is_ending: it is not replicated
    any more, but something of it may be left in QEMU. drained: what its VM, now stopped for it, had
    written is all in the cache."""

    spec: ReplicationSpec
    superseded_by: int = 0
    is_fenced: bool = False
    is_ending: bool = False
    drained: DrainResult | None = None

    @property
    def is_wanted(self) -> bool:
        """Say whether the item is to be replicated from here."""
        return not self.superseded_by and not self.is_ending


class Replications:
    """Every replication of this host. Thread-safe; one item's verbs come one after the other."""

    def __init__(
        self,
        driver: FabricDriver,
        directory: Path,
        make_replicator: Callable[[ReplicationSpec, Callable[[], None]], ReplicatorPort],
    ) -> None:
        """make_replicator: (spec, what to call when a VM that was idle has sent something)."""
        self._driver = driver
        self._records = Records(directory, ReplicationRecord)
        self._make_replicator = make_replicator
        self._lock = threading.Lock()
        self._items: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        """Held while it is settled whether an item is replicated from here: not every verb about it
        comes in one lane, and what could not be stopped is stopped later."""
        self._known: dict[str, ReplicationRecord] = self._records.all()
        self._running: dict[str, ReplicatorPort] = {}
        self._starts: Counter[str] = Counter()
        self._power = threading.Lock()
        """Held while it is settled whether a drained VM ends or has been started again."""
        self._is_shut_down = False
        self._changed: Callable[[], None] = lambda: None

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called when a VM that was idle has sent something."""
        self._changed = callback

    def resume(self) -> None:
        """Every replication that was asked for runs again; superseded ones are stopped for good,
        with their VMs, where an earlier agent died on the way."""
        for item_id, record in list(self._known.items()):
            try:
                if record.is_ending:
                    self.stop(item_id)
                elif record.is_wanted:
                    self._run(item_id, record.spec)
                elif not record.is_fenced:
                    self.fence(item_id, record.superseded_by, record.spec.vm_id)
            except LeewardError as error:
                log.warning("replication_not_resumed", item=item_id, error=str(error))

    def start(self, spec: ReplicationSpec) -> None:
        """The item's VM is being replicated. Asked again with the same spec nothing changes.

        Raises: Fenced if this host knows of a newer epoch; NotFound for an unknown VM.
        """
        with self._items[spec.item_id]:
            self._start(spec)

    def _start(self, spec: ReplicationSpec) -> None:
        record = self._known.get(spec.item_id)
        if record is not None:
            if spec.epoch < max(record.superseded_by, record.spec.epoch):
                raise Fenced(f"epoch {spec.epoch} of {spec.item_id} is over on this host")
            if record.spec == spec and record.is_wanted and spec.item_id in self._running:
                return
            self._halt(spec.item_id, detach=record.spec.epoch != spec.epoch)
        self._driver.vm_status(spec.vm_id)
        self._remember(ReplicationRecord(spec=spec))
        self._run(spec.item_id, spec)

    def stop(self, item_id: str) -> None:
        """The item is not replicated from here any more: tap, mirrors and bitmaps are gone.

        Nobody asks again: where QEMU cannot be freed now, it is tried until it can.
        """
        with self._items[item_id]:
            self._stop(item_id)

    def _stop(self, item_id: str) -> None:
        record = self._known.get(item_id)
        if record is not None and not record.is_ending:
            self._remember(replace(record, is_ending=True))
        try:
            self._detach(item_id)
        except (Unavailable, HypervisorRefused):
            self._stop_later(item_id)
            raise
        with self._lock:
            self._known.pop(item_id, None)
            self._records.delete(item_id)

    def _stop_later(self, item_id: str) -> None:
        def again() -> None:
            with self._items[item_id]:
                record = self._known.get(item_id)
                if record is not None and record.is_ending and not self._is_shut_down:
                    try:
                        self._stop(item_id)
                    except LeewardError as error:
                        log.warning("replication_not_stopped", item=item_id, error=str(error))

        timer = threading.Timer(STOP_AGAIN_SECONDS, again)
        timer.daemon = True
        timer.start()

    def drain(self, wanted: DrainSpec) -> DrainResult:
        """The VM does not run, and all it ever wrote is in the cache. Asked again, also after an
        agent was killed on the way, it goes on from there; starting the VM undoes it.

        Raises: NotFound when this host does not replicate it under that epoch; Conflict when the VM
        does not run, or was started again meanwhile: whoever asked has given up, and it runs on;
        Unavailable when not all got to the cache: the VM is halted then.
        """
        record = self._known.get(wanted.item_id)
        running = self._running.get(wanted.item_id)
        if record is None or running is None or record.spec.epoch != wanted.epoch:
            raise NotFound(f"{wanted.item_id} is not replicated from here at epoch {wanted.epoch}")
        starts, drained = self._starts[wanted.vm_id], record.drained
        if drained is None:
            is_off = self._driver.halt_vm(wanted.vm_id, power_off_seconds=wanted.power_off_seconds)
            sequence = running.drain(seconds=wanted.drain_seconds)
            drained = DrainResult(sequence=sequence, is_guest_off=is_off)
        with self._power:
            if self._starts[wanted.vm_id] != starts:
                raise Conflict(f"{wanted.vm_id} was started again while it was being drained")
            if record.drained is None:
                self._remember(replace(record, drained=drained))
            self._driver.stop_vm(wanted.vm_id, force=False)
        return drained

    def freeze(self, wanted: FreezeSpec) -> FreezeReport:
        """Return what an attempt at an application-consistent point came to, now.

        Raises: NotFound when this host does not replicate the item under that epoch; Unavailable
        when there is no new recovery point of any kind in time.
        """
        record = self._known.get(wanted.item_id)
        running = self._running.get(wanted.item_id)
        if record is None or running is None or record.spec.epoch != wanted.epoch:
            raise NotFound(f"{wanted.item_id} is not replicated from here at epoch {wanted.epoch}")
        return running.freeze(seconds=wanted.seconds)

    @contextmanager
    def letting_go(self, item_id: str, disk: str = "") -> Iterator[None]:
        """Within, nobody receives what the VM writes to the disk, to any disk if none is named, but
        bitmaps know; afterwards the item is replicated on. Nothing happens where it is not
        replicated from here.

        Raises: Unavailable or HypervisorRefused when QEMU does not let go now.
        """
        record, running = self._known.get(item_id), self._running.get(item_id)
        disks = [one for one in record.spec.disks if disk in ("", one)] if record else []
        if record is None or running is None or not disks:
            yield
            return
        self._halt(item_id, detach=False)
        try:
            for one in disks:
                running.let_go(one)
            yield
        finally:
            with self._items[item_id]:
                known = self._known.get(item_id)
                is_wanted = known is not None and known.is_wanted and known.spec == record.spec
                if is_wanted and not self._is_shut_down:
                    self._run(item_id, record.spec)

    def give_way(self, item_id: str, epoch: int) -> None:
        """Nothing is known here of the item's older epochs: from `epoch` on it runs here."""
        with self._items[item_id]:
            record = self._known.get(item_id)
            if record is not None and record.spec.epoch < epoch:
                self._stop(item_id)

    def note_start(self, vm_id: str) -> None:
        """The VM is about to write again: what was drained is not all any more."""
        with self._power:
            self._starts[vm_id] += 1
            for record in list(self._known.values()):
                if record.spec.vm_id == vm_id and record.drained is not None:
                    self._remember(replace(record, drained=None))

    def fence(self, item_id: str, epoch: int, vm_id: str) -> None:
        """The VM does not run, and no replication older than `epoch` runs or ever starts again.

        Raises: Unavailable when that could not be written down: they are stopped all the same, but
        whoever asked is to ask again. What else the driver and a replicator raise.
        """
        with self._items[item_id]:
            self._fence(item_id, epoch, vm_id)

    def _fence(self, item_id: str, epoch: int, vm_id: str) -> None:
        record = self._known.get(item_id)
        is_older = record is not None and record.spec.epoch < epoch
        if record is not None and is_older:  # first of all, should we die on the way
            superseded_by = max(record.superseded_by, epoch)
            record = replace(record, superseded_by=superseded_by, is_fenced=False)
            with self._lock:  # from now on, though the disk be full
                self._known[item_id] = record
            try:
                self._remember(record)
            except Unavailable as error:
                log.warning("fence_not_noted", item=item_id, epoch=epoch, error=str(error))
        with suppress(NotFound):
            self._driver.stop_vm(vm_id, force=True)
        if record is not None and is_older:
            self._detach(item_id)
            self._remember(replace(record, is_fenced=True))
        log.warning("item_fenced", item=item_id, epoch=epoch, vm=vm_id)

    def supersede(self, item_id: str, epoch: int) -> None:
        """As `fence`, for an item this host replicates; any other is none of its business."""
        with self._items[item_id]:
            record = self._known.get(item_id)
            if record is None or record.spec.epoch >= epoch:
                return
            if record.superseded_by < epoch or not record.is_fenced:
                self._fence(item_id, epoch, record.spec.vm_id)

    def share(self, item_id: str, attempt: SharedAttempt) -> None:
        """The item takes part in the attempt at a shared point, if it is replicated from here."""
        with self._lock:
            running = self._running.get(item_id)
        if running is not None:
            running.share(attempt)

    def vm_of(self, item_id: str) -> str:
        """Return the VM of an item this host replicates or has replicated, "" for any other."""
        record = self._known.get(item_id)
        return record.spec.vm_id if record is not None else ""

    def check_not_superseded(self, vm_id: str) -> None:
        """Return if the VM may run here. Raises: Fenced when a newer epoch of it runs elsewhere: a
        start that was asked for before the failover must not be carried out after it."""
        for record in list(self._known.values()):
            if record.spec.vm_id == vm_id and record.superseded_by:
                raise Fenced(
                    f"{vm_id} has failed over: epoch {record.superseded_by} of it runs elsewhere",
                    hint="`leeward unprotect` of its item lets both run",
                )

    def statuses(self) -> tuple[ReplicationStatus, ...]:
        """Return how each item stands, superseded ones included."""
        with self._lock:
            known, running = dict(self._known), dict(self._running)
        return tuple(
            running[item_id].status() if item_id in running else _standing_still(record)
            for item_id, record in sorted(known.items())
        )

    def shut_down(self) -> None:
        """Nothing is driven from this process any more; taps and bitmaps stay for the next one."""
        self._is_shut_down = True
        run_all(partial(self._halt, item_id, detach=False) for item_id in list(self._running))

    def _run(self, item_id: str, spec: ReplicationSpec) -> None:
        replicator = self._make_replicator(spec, lambda: self._changed())
        replicator.start()
        with self._lock:
            self._running[item_id] = replicator

    def _halt(self, item_id: str, *, detach: bool) -> None:
        """Raises: Unavailable, HypervisorRefused while QEMU cannot be freed; ask again then."""
        with self._lock:
            replicator = self._running.get(item_id)
        if replicator is not None:
            replicator.stop(detach=detach)
            with self._lock:
                self._running.pop(item_id, None)

    def _detach(self, item_id: str) -> None:
        """Nothing of the item's replication is left, though an earlier agent began it."""
        record = self._known.get(item_id)
        if item_id in self._running:
            self._halt(item_id, detach=True)
        elif record is not None and not record.is_fenced:
            with suppress(NotFound):
                self._make_replicator(record.spec, lambda: None).stop(detach=True)

    def _remember(self, record: ReplicationRecord) -> None:
        with self._lock:
            self._records.put(record.spec.item_id, record)
            self._known[record.spec.item_id] = record


def _standing_still(record: ReplicationRecord) -> ReplicationStatus:
    problem = (
        f"superseded: epoch {record.superseded_by} runs elsewhere, the VM here was stopped"
        if record.superseded_by
        else "the replication could not be taken up again"
    )
    return ReplicationStatus(
        item_id=record.spec.item_id,
        epoch=record.spec.epoch,
        state=ReplicationState.STOPPED,
        initial_done=False,
        problem=problem,
    )
