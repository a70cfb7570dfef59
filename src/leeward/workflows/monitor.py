"""Items follow what their nodes report: states, problems, recovery points, hydration.

Owns: taking in every status post, and noticing silence. Must not know: HTTP; the judgement itself
is protection.health's. The only writer of an item's state outside the verbs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from leeward.core.errors import NotFound
from leeward.model.recovery import FreezeReport, ItemState, Policy
from leeward.model.resources import VirtualMachine
from leeward.observability.log import get_logger
from leeward.protection.health import FOLLOWING, SILENT_SECONDS, Judgement, Reports, judge
from leeward.protocol.messages import (
    Announced,
    NodeStatus,
    ProcessingStatus,
    Role,
    StatusReply,
    Superseded,
)
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.resource_verbs import DEFAULT_POLICY
from leeward.workflows.specs import vm_id
from leeward.workflows.ticking import Ticking

log = get_logger()

TICK_SECONDS = 1.0
_FULL_EVERY_TICKS = 10
_MOVED = frozenset({ItemState.FAILING_OVER, ItemState.FAILED_OVER, ItemState.COMMITTED})
_RECORDED = frozenset({ItemState.FAILED_OVER, ItemState.COMMITTED})


class Monitor:
    """Thread-safe. `start` watches for silence in a thread of its own until `stop`."""

    def __init__(
        self, bench: Bench, members: Callable[[], frozenset[str]] = lambda: frozenset()
    ) -> None:
        """members: ids of the items that are in consistency groups."""
        self._bench = bench
        self._members = members
        self._lock = threading.Lock()
        self._newest: dict[str, int] = {}
        self._silent: frozenset[str] = frozenset()
        self._ticks = 0
        self._ticking = Ticking("monitor", self.tick, seconds=TICK_SECONDS)

    def start(self) -> None:
        """Silence is noticed."""
        self._ticking.start()

    def stop(self) -> None:
        """Nothing is watched any more."""
        self._ticking.stop()

    def take_status(self, node: NodeRecord, status: NodeStatus) -> StatusReply:
        """Return which items the node replicates under an older epoch than theirs, and which cuts
        wait for it, as far as their sources have just told.

        The status is known; points it adds or removes are listed so; items it speaks of are judged.
        """
        if status.storage_root and status.storage_root != node.storage_root:
            with self._bench.vault.write() as records:
                records.nodes.set_storage_root(node.id, status.storage_root)
        if status.tunnel != node.tunnel:
            with self._bench.vault.write() as records:
                records.nodes.set_tunnel(node.id, status.tunnel)
        self._bench.live.put(node.id, status)
        ids = {said.item_id for said in status.replications}
        ids |= {said.item_id for said in status.processings}
        with self._bench.vault.read() as records:
            items = records.items.by_ids(ids)
        # Only the worker an item was given to speaks for its points: neither one that was replaced
        # nor, with the credentials of a source host, anybody else.
        self._take_points(
            [
                processing
                for processing in status.processings
                if processing.item_id in items and items[processing.item_id].worker_id == node.id
            ]
        )
        self._take_freezes(node, status, items)
        self._judge(items.values())
        self._take_hydrations(node, status)
        return StatusReply(
            supersede=tuple(
                Superseded(item_id=said.item_id, epoch=items[said.item_id].item.epoch)
                for said in status.replications
                if said.item_id in items and self._is_over(node, items[said.item_id], said.epoch)
            ),
            announced=tuple(
                Announced(item_id=said.item_id, epoch=said.epoch, sequence=sequence)
                for said in status.processings
                if (sequence := self._bench.live.uploaded_sequence(said.item_id, said.epoch))
            ),
            is_member=any(said.item_id in self._members() for said in status.replications),
        )

    def _is_over(self, node: NodeRecord, record: ItemRecord, epoch: int) -> bool:
        """Say whether what the node replicates under `epoch` must stop, and its VM with it.

        Not where the VM runs rightfully, and is only not told of its new epoch yet: at its source
        until it fails over, at its target from then on.
        """
        item, vm = record.item, record.target_vm
        if epoch >= item.epoch:
            return False
        if has_moved(record):
            return (node.region, node.name) != (vm.region, vm.host)
        with self._bench.vault.read() as records:
            source = source_agent(records, record)
        return source is None or source.id != node.id

    def tick(self) -> None:
        """Items of nodes that fell silent or spoke again are judged; now and then, all."""
        self._ticks += 1
        with self._bench.vault.read() as records:
            silent = frozenset(
                node.id
                for node in records.nodes.listed()
                if self._bench.live.silent_seconds(node.id) > SILENT_SECONDS
            )
            if silent == self._silent and self._ticks % _FULL_EVERY_TICKS:
                return
            items = records.items.replicating()
        self._silent = silent
        self._judge(items)

    def newest_time_ns(self, records: Records, item_id: str) -> int | None:
        """Return the time of the item's newest recovery point; None without one."""
        with self._lock:
            known = self._newest.get(item_id)
        if known is None:
            point = records.points.newest(item_id)
            if point is None:
                return None
            known = point.time_ns
            with self._lock:
                self._newest[item_id] = known
        return known

    def current_time_ns(self, records: Records, record: ItemRecord) -> int | None:
        """Return until when everything written can be recovered: the time of the newest recovery
        point, or later where the source has written nothing since; None without a point."""
        newest = self.newest_time_ns(records, record.item.id)
        source = source_agent(records, record)
        if newest is None or source is None:
            return newest
        said = self._bench.live.replication(source.id, record.item.id)
        applied = self._bench.live.processing(record.worker_id, record.item.id)
        if said is None or applied is None or not said.epoch == applied.epoch == record.item.epoch:
            return newest
        is_all_there = 0 < said.uploaded_sequence <= applied.applied_sequence
        return max(newest, said.current_time_ns) if is_all_there else newest

    def forget(self, item_id: str) -> None:
        """What is remembered of the item's points is read again."""
        with self._lock:
            self._newest.pop(item_id, None)

    # ---

    def _take_points(self, processings: list[ProcessingStatus]) -> None:
        """One transaction for all: each is a wait for the disk."""
        news = [said for said in processings if said.points_added or said.points_removed]
        if not news:
            return
        with self._bench.vault.write() as records:
            known = records.items.by_ids(said.item_id for said in news)
            for said in news:
                if said.item_id not in known:
                    continue
                if said.points_complete:
                    records.points.keep(said.item_id, {p.id for p in said.points_added})
                records.points.remove(said.item_id, said.points_removed)
                records.points.add(said.item_id, said.points_added)
        for said in news:
            self.forget(said.item_id)
            self._bench.signals.notify(item_key(said.item_id))

    def _judge(self, items: Iterable[ItemRecord]) -> None:
        for record in items:
            if not _follows(record):
                continue
            with self._bench.vault.read() as records:
                if self._is_too_early(records, record):
                    continue
                judgement = self._judgement(records, record)
            if (judgement.state, judgement.problem) != (record.item.state, record.item.problem):
                self._set(record.item.id)

    def _is_too_early(self, records: Records, record: ItemRecord) -> bool:
        """Say whether this process has just been started and its source has not spoken yet, though
        it still may: nothing follows from that."""
        source, live = source_agent(records, record), self._bench.live
        return (
            source is not None
            and not live.last_seen_ns(source.id)
            and live.silent_seconds(source.id) <= SILENT_SECONDS
        )

    def _set(self, item_id: str) -> None:
        """The item is what the reports say now. Read and judged again: a verb may have come
        between."""
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            if record is None or not _follows(record):
                return
            judgement = self._judgement(records, record)
            item = record.item
            if (judgement.state, judgement.problem) == (item.state, item.problem):
                return
            records.items.update(
                replace(
                    record,
                    item=replace(item, state=judgement.state, problem=judgement.problem),
                )
            )
            sentence = f"{item.name} is {judgement.state.value}" + (
                f": {judgement.problem}" if judgement.problem else ""
            )
            self._bench.record_event(
                records, item_target(item.name), f"item_{judgement.state.value}", sentence
            )
        log.info("item_state", item=item_id, state=judgement.state.value, problem=judgement.problem)
        self._bench.signals.notify(item_key(item_id))

    def _judgement(self, records: Records, record: ItemRecord) -> Judgement:
        item, live = record.item, self._bench.live
        source = source_agent(records, record)
        worker = find_node(records, record.worker_id)
        newest = self.current_time_ns(records, record)
        policy = records.resources.find(Policy, item.vault, item.policy)
        return judge(
            item,
            Reports(
                source=source.label if source else f"the host of {item.source_vm}",
                source_silent_seconds=live.silent_seconds(source.id) if source else float("inf"),
                replication=live.replication(source.id, item.id) if source else None,
                worker=worker.label if worker else f"the worker of {item.target_region}",
                worker_silent_seconds=live.silent_seconds(worker.id) if worker else float("inf"),
                processing=live.processing(worker.id, item.id) if worker else None,
                newest_point_age_seconds=None
                if newest is None
                else (self._bench.clock.now_ns() - newest) / 1e9,
                rpo_alert_seconds=(policy.value if policy else DEFAULT_POLICY).rpo_alert_seconds,
            ),
        )

    def _take_freezes(
        self, node: NodeRecord, status: NodeStatus, items: Mapping[str, ItemRecord]
    ) -> None:
        """Items remember what the newest attempt at an application-consistent point came to."""
        for said in status.replications:
            record, report = items.get(said.item_id), said.freeze
            if record is None or report is None or report.epoch != record.item.epoch:
                continue
            with self._bench.vault.read() as records:
                source = source_agent(records, record)
            if report != record.item.freeze and source is not None and source.id == node.id:
                self._set_freeze(said.item_id, report)

    def _set_freeze(self, item_id: str, report: FreezeReport) -> None:
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            if record is None or record.item.freeze == report:
                return
            item, before = record.item, record.item.freeze
            records.items.update(replace(record, item=replace(item, freeze=report)))
            if report.problem:
                kind, said = "app_consistent_failed", f"crash-consistent only: {report.problem}"
            elif before is None or before.problem:
                said = f"application-consistent, the guest frozen for {report.frozen_ms:.0f} ms"
                kind = "app_consistent"
            else:
                return
            message = f"recovery point {report.point_id} of {item.name} is {said}"
            self._bench.record_event(records, item_target(item.name), kind, message)

    def _take_hydrations(self, node: NodeRecord, status: NodeStatus) -> None:
        if not status.hydrations:
            return
        said = {hydration.vm_id: hydration.done for hydration in status.hydrations}
        with self._bench.vault.read() as records:
            changed = [
                record.item.id
                for record in records.items.listed(region=node.region)
                if record.item.state in _RECORDED
                and (record.target_vm.region, record.target_vm.host) == (node.region, node.name)
                and said.get(vm_id(record.target_vm.name), record.is_hydrated)
                is not record.is_hydrated
            ]
        for item_id in changed:
            self._set_hydrated(item_id, said)

    def _set_hydrated(self, item_id: str, said: dict[str, bool]) -> None:
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            if record is None or record.item.state not in _RECORDED:
                return
            is_hydrated = said[vm_id(record.target_vm.name)]
            records.items.update(replace(record, is_hydrated=is_hydrated))
            if is_hydrated:
                self._bench.record_event(
                    records,
                    item_target(record.item.name),
                    "item_hydrated",
                    f"all disks of {record.item.target_vm} are local in "
                    f"{record.item.target_region}; it needs the replica no more",
                )


def item_key(item_id: str) -> str:
    """Return the signal key of an item."""
    return f"item:{item_id}"


def item_target(name: str) -> str:
    """Return how jobs and events call an item."""
    return f"item/{name}"


def source_agent(records: Records, record: ItemRecord) -> NodeRecord | None:
    """Return the agent of the host the item's source VM is on, or None."""
    item = record.item
    vm = records.resources.find(VirtualMachine, item.source_region, item.source_vm)
    if vm is None:
        return None
    return records.nodes.find(Role.AGENT, item.source_region, vm.value.host)


def find_node(records: Records, node_id: str) -> NodeRecord | None:
    """Return the node, or None."""
    try:
        return records.nodes.get(node_id)
    except NotFound:
        return None


def has_moved(record: ItemRecord) -> bool:
    """Say whether the item's source must stay stopped: it is failing over or has. A failover that
    failed has fenced its source too, and may have left the other running."""
    state = record.item.state
    return state in _MOVED or (state is ItemState.DEGRADED and not record.is_replicating)


def _follows(record: ItemRecord) -> bool:
    return record.is_replicating and record.item.state in FOLLOWING
