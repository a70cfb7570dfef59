"""The agent of a host: every verb it carries out, and what it says of itself.

Owns: the table of verbs and the status. Must not know: HTTP. The link drives it; it drives fabric,
replication and recovery.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeward.agent.drills import DrillVerbs
from leeward.agent.fabric_verbs import FabricVerbs
from leeward.agent.link import Meet
from leeward.agent.meetings import attempt_of
from leeward.agent.recovery import Recoveries
from leeward.agent.replication import Replications
from leeward.agent.scripts import Scripts
from leeward.agent.trimming import Trimming
from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Fenced, InvalidRequest, NotFound
from leeward.fabric.driver import FabricDriver
from leeward.observability.log import get_logger
from leeward.protocol.fabric import (
    AccountSpec,
    BootSpec,
    Discarded,
    DiskAddition,
    DiskGrowth,
    DiskOfVm,
    DrainSpec,
    FreezeSpec,
    NetworkSpec,
    PortSpec,
    ReplicationSpec,
    ScriptSpec,
    SeedResult,
    SeedSpec,
    TrimSpec,
    VmSize,
    VmSpec,
    VmStatus,
)
from leeward.protocol.messages import Announced, Command, MeetingCall, NodeStatus, Verb

log = get_logger()

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfVm:
    vm_id: str
    force: bool = False
    keep_disks: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    made_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfNetwork:
    network_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfItem:
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fence:
    item_id: str
    epoch: int
    vm_id: str


class HostAgent:
    """One host's agent, as its link sees it."""

    def __init__(
        self,
        driver: FabricDriver,
        fabric: FabricVerbs,
        replications: Replications,
        recoveries: Recoveries,
        *,
        seed: Callable[[SeedSpec], SeedResult],
        trim_guest: Callable[[Path], None],
        scripts: Scripts,
        drills: DrillVerbs,
        wait_port: Callable[[PortSpec], None],
        storage_root: Path,
        tunnel: str = "",
    ) -> None:
        """wait_port: returns when the port accepts connections. tunnel: where tunnels from the
        region's other hosts end here; "": nowhere."""
        self._driver = driver
        self._fabric = fabric
        self._replications = replications
        self._recoveries = recoveries
        self._storage_root = storage_root
        self._tunnel = tunnel
        self._identity: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        """By item: held while it is settled whether its VM here is the rightful one."""
        self._booting: dict[str, tuple[str, int]] = {}
        trimming = Trimming(driver, replications, trim_guest)
        self._verbs: Mapping[Verb, Callable[[Arguments], object]] = {
            Verb.ACCOUNT_CREATE: lambda a: fabric.create_account(from_plain(a, AccountSpec)),
            Verb.ACCOUNT_DELETE: lambda a: fabric.delete_account(from_plain(a, AccountSpec)),
            Verb.NETWORK_APPLY: lambda a: fabric.apply_network(from_plain(a, NetworkSpec)),
            Verb.NETWORK_DELETE: lambda a: fabric.delete_network(
                from_plain(a, _OfNetwork).network_id
            ),
            Verb.VM_CREATE: lambda a: fabric.create_vm(from_plain(a, VmSpec)),
            Verb.VM_START: lambda a: self._start_vm(from_plain(a, _OfVm)),
            Verb.VM_STOP: lambda a: self._stop_vm(from_plain(a, _OfVm)),
            Verb.VM_UPDATE: lambda a: fabric.change_vm(from_plain(a, VmSize)),
            Verb.VM_TRIM: lambda a: trimming.trim(from_plain(a, TrimSpec)),
            Verb.VM_DISK_ADD: lambda a: fabric.add_disk(from_plain(a, DiskAddition)),
            Verb.VM_DISK_UNPLUG: lambda a: fabric.unplug_disk(from_plain(a, DiskOfVm)),
            Verb.VM_DISK_REMOVE: lambda a: fabric.remove_disk(from_plain(a, DiskOfVm)),
            Verb.VM_DISK_GROW: lambda a: self._grow_disk(from_plain(a, DiskGrowth)),
            Verb.VM_DELETE: lambda a: self._discard(from_plain(a, _OfVm)),
            Verb.REPLICATION_START: lambda a: replications.start(from_plain(a, ReplicationSpec)),
            Verb.REPLICATION_STOP: lambda a: replications.stop(from_plain(a, _OfItem).item_id),
            Verb.REPLICATION_DRAIN: lambda a: replications.drain(from_plain(a, DrainSpec)),
            Verb.REPLICATION_FREEZE: lambda a: replications.freeze(from_plain(a, FreezeSpec)),
            Verb.REPLICATION_FENCE: lambda a: self._fence(from_plain(a, _Fence)),
            Verb.REPLICA_SEED: lambda a: seed(from_plain(a, SeedSpec)),
            Verb.RECOVERY_BOOT: lambda a: self._boot(from_plain(a, BootSpec)),
            Verb.RECOVERY_DISCARD: lambda a: self._discard(from_plain(a, _OfVm)),
            Verb.SCRIPT_RUN: lambda a: scripts.run(from_plain(a, ScriptSpec)),
            Verb.PORT_WAIT: lambda a: wait_port(from_plain(a, PortSpec)),
            **drills.verbs,
        }

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called when a VM that was idle has sent something: its worker waits to
        hear of it. Other changes are seen by the next status, a second later at most."""
        self._replications.on_change(callback)

    def resume(self) -> None:
        """Recoveries and replications go on where they were before the agent's restart."""
        self._recoveries.resume()
        self._replications.resume()

    def stop(self) -> None:
        """Nothing is driven any more; VMs, taps and exports go on running."""
        self._replications.shut_down()
        self._recoveries.shut_down()

    def lane_of(self, command: Command) -> str:
        """Commands of one VM, item, network or account run in order."""
        arguments = command.arguments
        machine = arguments.get("vm")
        if isinstance(machine, dict):
            return f"vm:{machine.get('vm_id')}"
        for key in ("run_id", "item_id", "vm_id", "network_id", "name"):
            if arguments.get(key):  # a VM that is not protected has no item
                return f"{key.removesuffix('_id')}:{arguments[key]}"
        return "other"

    def carry_out(self, command: Command) -> dict[str, object]:
        """The command is carried out; returns its result."""
        verb = self._verbs.get(command.verb)
        if verb is None:
            raise InvalidRequest(f"an agent does not do {command.verb.value}")
        done = verb(command.arguments)
        return dict(to_plain(done)) if done is not None else {}

    def status(self) -> NodeStatus:
        """Return how VMs, replications and hydrations stand."""
        return NodeStatus(
            vms=self._driver.list_vms(),
            replications=self._replications.statuses(),
            hydrations=self._recoveries.statuses(),
            storage_root=str(self._storage_root),
            tunnel=self._tunnel,
            memory_available_mib=self._driver.memory_available_mib(),
            memory_total_mib=self._driver.memory_total_mib(),
        )

    def status_taken(self, status: NodeStatus) -> None:
        """Every status is whole: nothing to remember."""

    def supersede(self, item_id: str, epoch: int) -> None:
        """The item's VM and replication of an older epoch are stopped."""
        vm_id = self._replications.vm_of(item_id)
        with self._identity[item_id]:
            if vm_id and not self._is_rightful(item_id, epoch, vm_id):
                self._replications.supersede(item_id, epoch)

    def announce(self, news: tuple[Announced, ...]) -> None:
        """Nothing: announcements are for workers."""

    def join(self, call: MeetingCall, meet: Meet) -> None:
        """The item takes part in the meeting, in its replicator's thread."""
        self._replications.share(call.item_id, attempt_of(call, meet))

    def _start_vm(self, target: _OfVm) -> VmStatus:
        self._replications.check_not_superseded(target.vm_id)
        self._replications.note_start(target.vm_id)
        self._recoveries.ensure_export(target.vm_id)
        status = self._fabric.start_vm(target.vm_id)
        try:  # a fence in another lane may have stopped it just before it was started
            self._replications.check_not_superseded(target.vm_id)
        except Fenced:
            self._fabric.stop_vm(target.vm_id, force=True)
            raise
        return status

    def _discard(self, target: _OfVm) -> Discarded:
        """made_for: only a VM that was made for that job goes. One that was there before, and was
        in its way, stays."""
        vm_id = target.vm_id
        with suppress(NotFound):
            if target.made_for and self._driver.made_for(vm_id) != target.made_for:
                log.warning("vm_kept", vm=vm_id, job=target.made_for)
                return Discarded(is_kept=True)
        self._recoveries.discard(vm_id, keep_disks=target.keep_disks, networks=target.networks)
        return Discarded()

    def _stop_vm(self, target: _OfVm) -> VmStatus:
        return self._fabric.stop_vm(target.vm_id, force=target.force)

    def _grow_disk(self, growth: DiskGrowth) -> VmStatus:
        with self._replications.letting_go(growth.item_id, growth.disk):
            return self._fabric.grow_disk(growth)

    def _fence(self, fence: _Fence) -> None:
        with self._identity[fence.item_id]:
            if not self._is_rightful(fence.item_id, fence.epoch, fence.vm_id):
                self._replications.fence(fence.item_id, fence.epoch, fence.vm_id)

    def _is_rightful(self, item_id: str, epoch: int, vm_id: str) -> bool:
        """Say whether the VM here is the item's, of that epoch or a later one: what comes late to
        stop an earlier one, which has failed back since, must not stop it. Another item may have
        booted the VM first, under epochs of its own."""
        booting_item, booting_epoch = self._booting.get(vm_id, ("", 0))
        booting = booting_epoch if booting_item == item_id else 0
        return max(booting, self._recoveries.epoch_of(vm_id, item_id)) >= epoch

    def _boot(self, spec: BootSpec) -> VmStatus:
        vm_id = spec.vm.vm_id
        try:
            with self._identity[
                spec.item_id
            ]:  # a fence under way ends first, a later one sees this
                self._booting[vm_id] = (spec.item_id, spec.epoch)
                self._replications.give_way(spec.item_id, spec.epoch)
            return self._recoveries.boot(spec)
        finally:
            self._booting.pop(vm_id, None)
