"""The service without HTTP: every verb, the monitor, housekeeping, their common life.

Owns: putting the room together. Must not know: routes. What the api room is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from leeward.core.clock import Clock, SystemClock
from leeward.core.errors import LeewardError
from leeward.observability.log import get_logger
from leeward.vault.database import sqlite_url
from leeward.vault.records import VaultStore
from leeward.workflows.bench import Bench
from leeward.workflows.cache_verbs import CACHE_CHANGE, CacheVerbs
from leeward.workflows.change_verbs import ChangeVerbs
from leeward.workflows.conductor import Conductor
from leeward.workflows.consistency import (
    GROUP_APPLY,
    GROUP_CHANGE,
    GROUP_CLEAN_UP,
    GROUP_FAILOVER,
    GROUP_TEST,
)
from leeward.workflows.consistency_moves import ConsistencyMoves
from leeward.workflows.consistency_tests import ConsistencyTests
from leeward.workflows.consistency_verbs import ConsistencyVerbs
from leeward.workflows.dbos_engine import DbosEngine
from leeward.workflows.disable_verbs import DisableVerbs
from leeward.workflows.disk_verbs import DISK_ADD, DISK_GROW, DISK_REMOVE, DiskVerbs
from leeward.workflows.dispatch import Dispatch
from leeward.workflows.drill_records import DRILL, PLAN_DRILL
from leeward.workflows.drill_schedule import DrillSchedule
from leeward.workflows.drill_verbs import DrillVerbs
from leeward.workflows.engine import WorkflowEngine
from leeward.workflows.failover_verbs import FailoverVerbs
from leeward.workflows.group_verbs import GroupVerbs
from leeward.workflows.host_networks import HostNetworks
from leeward.workflows.jobs import Jobs, VerbBody
from leeward.workflows.key_verbs import KeyVerbs
from leeward.workflows.live import LiveState
from leeward.workflows.machine_verbs import MachineVerbs
from leeward.workflows.mapping_verbs import MappingVerbs
from leeward.workflows.meetings import Meetings
from leeward.workflows.monitor import Monitor
from leeward.workflows.node_verbs import NodeVerbs
from leeward.workflows.plan_drills import PlanDrills
from leeward.workflows.plan_jobs import PLAN_CLEAN_UP, PLAN_RUN, PLAN_TEST
from leeward.workflows.plan_points import PlanPoints
from leeward.workflows.plan_tests import PlanTests
from leeward.workflows.plan_verbs import PlanVerbs
from leeward.workflows.planned_verbs import PlannedVerbs
from leeward.workflows.point_verbs import PointVerbs
from leeward.workflows.policy_verbs import POLICY_APPLY, PolicyVerbs
from leeward.workflows.protect_verbs import ProtectVerbs
from leeward.workflows.rebuild_verbs import RebuildVerbs
from leeward.workflows.rehearsal_clean_up import CleanUp
from leeward.workflows.rehearsal_verbs import RehearsalVerbs
from leeward.workflows.rehearsing import Rehearsing
from leeward.workflows.replica_verbs import REPLICA_DELETE, REPLICAS_READ, ReplicaVerbs
from leeward.workflows.reprotect_verbs import ReprotectVerbs
from leeward.workflows.resource_verbs import ResourceVerbs
from leeward.workflows.scrub_verbs import ScrubVerbs
from leeward.workflows.shared_choice import SharedChoice
from leeward.workflows.side_by_side import SideBySide
from leeward.workflows.signals import Signals
from leeward.workflows.space_verbs import SpaceVerbs
from leeward.workflows.trim_schedule import TrimSchedule
from leeward.workflows.trim_verbs import VM_TRIM, TrimVerbs
from leeward.workflows.update_verbs import ITEM_UPDATE, UpdateVerbs
from leeward.workflows.worker_verbs import WORKER_CHANGE, WorkerVerbs

log = get_logger()

_TAKE_UP_SECONDS = 5.0
_HOUSEKEEPING_TURNS = 720
"""Every so many looks for jobs not started, once an hour: old records go."""
_HOUR_NS = 3600 * 10**9
_KEYS_NS = 24 * _HOUR_NS
_JOBS_NS = 30 * 24 * _HOUR_NS
_EVENTS_MAX = 500_000
_EVENTS_NS = 90 * 24 * _HOUR_NS


class Service:
    """Thread-safe. `start` once; `stop` once."""

    def __init__(
        self, vault: VaultStore, engine: WorkflowEngine, clock: Clock | None = None
    ) -> None:
        clock = clock or SystemClock()
        signals, live = Signals(), LiveState(clock)
        self.bench = Bench(
            vault=vault,
            dispatch=Dispatch(vault, signals, live, clock),
            live=live,
            signals=signals,
            clock=clock,
            installation=vault.installation_id(),
        )
        self._engine = engine
        self.resources = ResourceVerbs(self.bench, lambda: self.jobs)
        self.nodes = NodeVerbs(self.bench)
        self.mappings = MappingVerbs(self.bench)
        self.machines = MachineVerbs(self.bench, lambda: self.jobs)
        self.protection = ProtectVerbs(self.bench, lambda: self.jobs, self.resources)
        self.disabling = DisableVerbs(self.bench, lambda: self.jobs, self.resources)
        self.failovers = FailoverVerbs(self.bench, lambda: self.jobs)
        self.planned = PlannedVerbs(self.bench, lambda: self.jobs, self.failovers)
        self.consistency = ConsistencyVerbs(self.bench, lambda: self.jobs, lambda: self.conductor)
        self.updates = UpdateVerbs(self.bench, lambda: self.jobs)
        self.caches = CacheVerbs(self.bench, lambda: self.jobs, self.resources)
        self.workers = WorkerVerbs(self.bench, lambda: self.jobs)
        self.policies = PolicyVerbs(self.bench, lambda: self.jobs)
        self.scrubbing = ScrubVerbs(self.bench, lambda: self.jobs)
        self.space = SpaceVerbs(self.bench, lambda: self.jobs)
        self.points = PointVerbs(self.bench, lambda: self.jobs)
        self.keys = KeyVerbs(self.bench, lambda: self.jobs)
        self.rebuilding = RebuildVerbs(self.bench, lambda: self.jobs, self.resources)
        self.replicas = ReplicaVerbs(self.bench, lambda: self.jobs)
        self.reprotection = ReprotectVerbs(
            self.bench, lambda: self.jobs, self.protection, self.resources
        )
        rehearsing = Rehearsing(self.bench)
        self.rehearsals = RehearsalVerbs(self.bench, lambda: self.jobs, rehearsing)
        choice = SharedChoice(self.bench, lambda: self.conductor)
        side_by_side = SideBySide(self.bench, lambda: self.jobs, self.failovers, self.planned)
        self.group_moves = ConsistencyMoves(
            self.bench, lambda: self.jobs, self.failovers, side_by_side, choice
        )
        self.group_tests = ConsistencyTests(self.bench, lambda: self.jobs, rehearsing, choice)
        plan_tests = PlanTests(self.bench, self.rehearsals, rehearsing)
        plan_points = PlanPoints(self.bench, choice)
        self.plans = PlanVerbs(self.bench, lambda: self.jobs, side_by_side, plan_tests, plan_points)
        self.clean_ups = CleanUp(self.bench, lambda: self.jobs, rehearsing)
        self.drills = DrillVerbs(self.bench, lambda: self.jobs, rehearsing)
        self.plan_drills = PlanDrills(
            self.bench, lambda: self.jobs, rehearsing, plan_tests, plan_points
        )
        self.drill_schedule = DrillSchedule(self.bench, self.drills, self.plan_drills)
        self.changes = ChangeVerbs(self.bench, lambda: self.jobs)
        self.trims = TrimVerbs(self.bench, lambda: self.jobs)
        self.trim_schedule = TrimSchedule(self.bench, self.trims)
        self.disks = DiskVerbs(self.bench, lambda: self.jobs)
        self.groups = GroupVerbs(self.bench, lambda: self.jobs, self.machines, self.resources)
        self.jobs = Jobs(self.bench, engine, self._verbs())
        self.meetings = Meetings(signals, clock)
        self.conductor = Conductor(self.bench, self.meetings)
        self.monitor = Monitor(self.bench, members=lambda: self.conductor.members)
        self.host_networks = HostNetworks(self.bench)
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="housekeeping", daemon=True
        )

    def start(self) -> None:
        """Jobs run, those of an earlier process included; items follow their nodes."""
        self.jobs.launch()
        self.monitor.start()
        self.conductor.start()
        self.host_networks.start()
        self._housekeeper.start()

    def stop(self) -> None:
        """Nothing runs; jobs under way go on at the next start."""
        self._stopping.set()
        self.bench.signals.close()
        self.conductor.stop()
        self.monitor.stop()
        self.host_networks.stop()
        self._engine.close()
        if self._housekeeper.is_alive():
            self._housekeeper.join(timeout=5)
        self.bench.vault.close()

    def _verbs(self) -> Mapping[str, VerbBody]:
        return {
            "vm.create": self.machines.run_create,
            "vm.delete": self.machines.run_delete,
            "vm.start": self.machines.run_start,
            "vm.stop": self.machines.run_stop,
            "item.test-failover": self.rehearsals.run_start,
            "item.test-failover-cleanup": self.rehearsals.run_clean_up,
            DRILL: self.drills.run,
            VM_TRIM: self.trims.run,
            DISK_ADD: self.disks.run_add,
            DISK_REMOVE: self.disks.run_remove,
            DISK_GROW: self.disks.run_grow,
            "vm.update": self.changes.run_change_machine,
            "network.update": self.changes.run_change_network,
            "resource-group.delete": self.groups.run_delete,
            "storage-account.create": self.resources.run_create_account,
            "storage-account.delete": self.resources.run_delete_account,
            "network.delete": self.resources.run_delete_network,
            "item.protect": self.protection.run_protect,
            "item.disable": self.disabling.run,
            "item.failover": self.failovers.run_failover,
            "item.planned-failover": self.planned.run,
            "item.reprotect": self.reprotection.run_reprotect,
            "item.undo-commit": self.reprotection.run_undo_commit,
            "item.change-recovery-point": self.failovers.run_change,
            "item.commit": self.failovers.run_commit,
            PLAN_RUN: self.plans.run_plan,
            PLAN_TEST: self.plans.run_plan,
            PLAN_DRILL: self.plan_drills.run,
            PLAN_CLEAN_UP: self.clean_ups.run,
            GROUP_APPLY: self.consistency.run_apply,
            GROUP_FAILOVER: self.group_moves.run_failover,
            GROUP_CHANGE: self.group_moves.run_change,
            GROUP_TEST: self.group_tests.run,
            GROUP_CLEAN_UP: self.clean_ups.run,
            ITEM_UPDATE: self.updates.run,
            CACHE_CHANGE: self.caches.run,
            WORKER_CHANGE: self.workers.run,
            POLICY_APPLY: self.policies.run,
            "item.scrub": self.scrubbing.run,
            "item.compact": self.space.run,
            "item.recovery-point": self.points.run,
            "vault.use-key": self.keys.run,
            "vault.rebuild": self.rebuilding.run,
            REPLICAS_READ: self.replicas.run_read,
            REPLICA_DELETE: self.replicas.run_delete,
        }

    def _keep_house(self) -> None:
        """Jobs that could not be started are, items whose worker is gone get another, drills and
        trims that are due begin; hourly, old records go."""
        for turn in count(1):
            if self._stopping.wait(_TAKE_UP_SECONDS):
                return
            for chore in (
                self.jobs.take_up,
                self.workers.tick,
                self.drill_schedule.tick,
                self.trim_schedule.tick,
                *([] if turn % _HOUSEKEEPING_TURNS else [self.clean_up]),
            ):
                _do(chore)

    def clean_up(self) -> None:
        """Old idempotency keys, jobs, commands, events and workflow records are gone."""
        now = self.bench.clock.now_ns()
        with self.bench.vault.write() as records:
            records.jobs.purge(keys_before_ns=now - _KEYS_NS, jobs_before_ns=now - _JOBS_NS)
            records.commands.purge(answered_before_ns=now - _JOBS_NS)
            records.events.purge(before_ns=now - _EVENTS_NS, count_max=_EVENTS_MAX)
            records.nodes.purge_tokens(expired_before_ns=now - _JOBS_NS)
        self._engine.forget(ended_before_ns=now - _JOBS_NS)


def _do(chore: Callable[[], None]) -> None:
    """One chore that cannot be done keeps none from being done after it."""
    try:
        chore()
    except LeewardError as error:
        log.warning("housekeeping_failed", error=str(error))
    except Exception:
        log.exception("housekeeping_broken")


def open_service(directory: Path, database_url: str = "") -> Service:
    """Return the service with its state in `directory`, or its vault at `database_url`.

    Raises: InvalidRequest, Unavailable when a database cannot be used.
    """
    vault = VaultStore.open(database_url or sqlite_url(directory / "vault.sqlite"))
    engine_url = database_url or sqlite_url(directory / "workflows.sqlite")
    return Service(vault, DbosEngine(engine_url))
