"""Verbs run step by step in one thread, killed where a test says, with nodes that answer at once.

The engine is the port's second implementation: it keeps the records of steps in memory, as JSON,
and can end a run before a step's record is written, as a kill does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from leeward.core.codec import to_plain
from leeward.core.errors import LeewardError, Unavailable
from leeward.model.drills import DiskDigest, DrillOutcome, DrillVerdict, Finding
from leeward.model.recovery import (
    Consistency,
    FreezeReport,
    Job,
    RecoveryPoint,
    Rehearsal,
    ReplicationState,
    point_id,
)
from leeward.model.resources import (
    AvailabilitySet,
    Disk,
    NetworkInterface,
    PowerState,
    ResourceGroup,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.options import ProtectOptions
from leeward.protocol.drills import ConsoleView, ProbingReport, ReadReport
from leeward.protocol.fabric import DrainResult, SeedResult, TrimResult, VmStatus
from leeward.protocol.messages import (
    Command,
    CommandResult,
    EnrolmentRequest,
    HydrationStatus,
    NodeStatus,
    ProcessingStatus,
    ReplicationStatus,
    Role,
    Verb,
)
from leeward.vault.database import sqlite_url
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import VaultStore
from leeward.workflows.engine import Body, Json
from leeward.workflows.live import _Heard
from leeward.workflows.resource_verbs import Grouped
from leeward.workflows.service import Service

GIB = 1 << 30
PICTURE = "UE5H"
_OF_DRILLS = {
    Verb.PROBE_RUN: ProbingReport(findings=(Finding(name="boot", passed=True),)),
    Verb.POINT_READ: ReadReport(
        disks=(DiskDigest(disk="system", size_bytes=GIB, bytes_read=7, sha256="ab"),)
    ),
    Verb.CONSOLE_VIEW: ConsoleView(text="login:", screen=PICTURE),
}


class Killed(BaseException):
    """The process ended here."""


class ReplayEngine:
    """Runs a body when told to, under a count of records after which it is killed."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[str, str]]] = {}
        self.started: list[str] = []
        self.lost: set[str] = set()
        self.is_away = False
        self.before_step: Callable[[str], None] = lambda name: None
        self._body: Body | None = None

    def launch(self, body: Body) -> None:
        self._body = body

    def start(self, job_id: str) -> bool:
        if self.is_away:
            raise Unavailable("the engine's database is locked")
        if job_id not in self.started:
            self.started.append(job_id)
        return job_id not in self.lost

    def forget(self, *, ended_before_ns: int) -> None:
        self.records.clear()

    def close(self) -> None:
        self._body = None

    def run(self, job_id: str, *, kill_at: int | None = None, after_action: bool = True) -> bool:
        """Run the job's body; say whether it came to its end. kill_at: the index of the step that
        is not recorded any more; after_action: whether its action was run before."""
        assert self._body is not None
        records = self.records.setdefault(job_id, [])
        try:
            self._body(job_id, _Steps(self, records, kill_at, after_action))
        except Killed:
            return False
        return True


class _Steps:
    def __init__(
        self,
        engine: ReplayEngine,
        records: list[tuple[str, str]],
        kill_at: int | None,
        after_action: bool,
    ) -> None:
        self._engine = engine
        self._records = records
        self._kill_at = kill_at
        self._after_action = after_action
        self._index = 0

    def run(self, name: str, action: Callable[[], Json]) -> Json:
        index = self._index
        self._index += 1
        if index < len(self._records):
            recorded, outcome = self._records[index]
            assert recorded == name, f"step {index} was {recorded}, now it is {name}"
        else:
            if index == self._kill_at and not self._after_action:
                raise Killed
            self._engine.before_step(name)
            outcome = json.dumps(action())
            if index == self._kill_at:
                raise Killed
            self._records.append((name, outcome))
        result: Json = json.loads(outcome)
        return result


class Site:
    """A service over a vault of its own, with an agent in east, an agent and a worker in west."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        vault = VaultStore.open(sqlite_url(directory / "vault.sqlite"))
        self.vault = vault
        self.engine = ReplayEngine()
        self.service = Service(vault, self.engine)
        self.service.jobs.launch()
        stack.callback(self.service.stop)
        self.asked: Counter[Verb] = Counter()
        self.refuse: dict[Verb, LeewardError] = {}
        self.results: dict[Verb, Json] = {}
        self.before_answer: dict[Verb, Callable[[], object]] = {}
        self.last: dict[Verb, Json] = {}
        self.points: list[RecoveryPoint] = []
        self.freeze: FreezeReport | None = None
        self.items: dict[str, int] = {}
        self._stack = stack
        self._muted: set[str] = set()
        self._booted: Counter[str] = Counter()
        self.service.resources.create_region("east")
        self.service.resources.create_region("west")
        self.service.resources.create_vault("main")
        self.source = self._enrol(Role.AGENT, "east", stack)
        self.target = self._enrol(Role.AGENT, "west", stack)
        self.worker = self._enrol(Role.WORKER, "west", stack)
        self.source_worker = self._enrol(Role.WORKER, "east", stack)
        self._replicates, self._processes = self.source, self.worker
        self.say()
        self._add_vm()
        self.engine.before_step = self._before_step

    def say(self) -> None:
        """Every node posts its status."""
        vm = VmStatus(vm_id="web-1", power=PowerState.RUNNING)
        replications = tuple(
            ReplicationStatus(
                item_id=item_id,
                epoch=epoch,
                state=ReplicationState.STREAMING,
                initial_done=True,
                sweep_bytes_done=GIB,
                sweep_bytes_total=GIB,
                freeze=self.freeze,
            )
            for item_id, epoch in self.items.items()
        )
        processings = tuple(
            ProcessingStatus(
                item_id=item_id,
                epoch=epoch,
                applied_sequence=1,
                newest_point_time_ns=1,
                points_added=tuple(self.points),
            )
            for item_id, epoch in self.items.items()
        )
        take, root = self.service.monitor.take_status, "/somewhere"
        hydrated = HydrationStatus(vm_id="web-1", bytes_done=1, bytes_total=1, done=True)
        for agent in (self.source, self.target):
            mine = replications if agent is self._replicates else ()
            status = NodeStatus(storage_root=root, vms=(vm,), replications=mine)
            if agent.id in self._booted:
                status = replace(status, hydrations=(hydrated,))
            take(agent, status)
        for worker in (self.worker, self.source_worker):
            take(worker, NodeStatus(processings=processings if worker is self._processes else ()))

    def protect(self) -> Job:
        """Return the job that protects web-1, not run yet."""
        options = ProtectOptions(source_region="east", vm="web-1", target_region="west")
        return self.service.protection.protect("main", options)

    def enrol_target(self, name: str) -> NodeRecord:
        """Return one more agent of west, which has been heard."""
        node = self._enrol(Role.AGENT, "west", self._stack, name)
        self.service.monitor.take_status(node, NodeStatus(storage_root="/somewhere"))
        return node

    def enrol_worker(self, name: str) -> NodeRecord:
        """Return one more worker of west, which has been heard."""
        node = self._enrol(Role.WORKER, "west", self._stack, name)
        self.service.monitor.take_status(node, NodeStatus())
        return node

    def mute(self, node: NodeRecord) -> None:
        """The node answers nothing but a boot, which it refuses or carries out."""
        self._muted.add(node.id)

    def unmute(self, node: NodeRecord) -> None:
        """The node is heard and answers what is open."""
        self._muted.discard(node.id)
        self.service.monitor.take_status(node, NodeStatus(storage_root="/somewhere"))
        self._answer(node)

    def silence(self, node: NodeRecord) -> None:
        """The node has not been heard for long."""
        self.service.bench.live._heard[node.id] = _Heard(float("-inf"), 1, NodeStatus())

    def booted_by(self, node: NodeRecord) -> int:
        """Return how many boots the node has carried out."""
        return self._booted[node.id]

    def run(self, job: Job) -> Job:
        """Return the job after a run without a kill."""
        assert self.engine.run(job.id)
        return self.job(job)

    def job(self, job: Job) -> Job:
        with self.service.bench.vault.read() as records:
            return records.jobs.get(job.id)

    # --- nodes

    def _enrol(self, role: Role, region: str, stack: ExitStack, name: str = "n-1") -> NodeRecord:
        token = f"{role}{region}{name}"
        with self.service.bench.vault.write() as records:
            records.nodes.add_token(token, region=region, expires_ns=1 << 62)
            request = EnrolmentRequest(token=token, role=role, region=region, name=name, key="k")
            node = records.nodes.enrol(request, now_ns=1)
        wake = self.service.bench.signals.subscribe(f"node:{node.id}", lambda: self._answer(node))
        stack.enter_context(wake)
        return node

    def _answer(self, node: NodeRecord) -> None:
        with self.service.bench.vault.read() as records:
            commands = records.commands.open_for(node.id)
        for command in commands:
            if node.id in self._muted and command.verb is not Verb.RECOVERY_BOOT:
                self.silence(node)
                continue
            self.asked[command.verb] += 1
            self.last[command.verb] = command.arguments
            answer = self._carry_out(command)
            if command.verb is Verb.REPLICATION_START:
                self._replicates = node
            if command.verb is Verb.PROCESSING_START:
                self._processes = node
            self._booted[node.id] += command.verb is Verb.RECOVERY_BOOT and answer.ok
            self.service.bench.dispatch.answer(node.id, answer)

    def _carry_out(self, command: Command) -> CommandResult:
        if command.verb in self.before_answer:
            self.before_answer[command.verb]()
        if error := self.refuse.get(command.verb):
            return CommandResult(
                command_id=command.id, ok=False, error_code=error.code, error=error.message
            )
        running = to_plain(VmStatus(vm_id="web-1", power=PowerState.RUNNING))
        is_of_disk = command.verb in (Verb.VM_DISK_ADD, Verb.VM_DISK_GROW)
        result: Json = self.results.get(command.verb, running if is_of_disk else {})
        if command.verb in (Verb.VM_CREATE, Verb.VM_START, Verb.VM_STOP, Verb.RECOVERY_BOOT):
            result = self.results.get(command.verb, running)
        elif command.verb in _OF_DRILLS and command.verb not in self.results:
            result = to_plain(_OF_DRILLS[command.verb])
        elif command.verb is Verb.VM_TRIM:
            result = to_plain(TrimResult(freed_bytes=GIB))
        elif command.verb is Verb.REPLICA_SEED:
            result = to_plain(SeedResult(is_seeded=True, bytes_stored=GIB))
        elif command.verb is Verb.PROCESSING_SEAL:
            result = to_plain(self.points[-1])
        elif command.verb is Verb.PROCESSING_COMPACT:
            result = {"item_id": command.arguments["item_id"], "freed_bytes": GIB}
        elif command.verb is Verb.PROCESSING_SCRUB:
            result = {"item_id": command.arguments["item_id"], "damaged": ["an object: rotten"]}
        elif command.verb is Verb.REPLICATION_DRAIN:
            result = to_plain(DrainResult(sequence=self.points[-1].sequence, is_guest_off=True))
        elif command.verb is Verb.REPLICATION_FREEZE:
            result = to_plain(self.frozen(self.points[-1]))
        elif command.verb is Verb.REPLICATION_START:
            self.items[str(command.arguments["item_id"])] = int(str(command.arguments["epoch"]))
        elif command.verb is Verb.REPLICATION_STOP:
            self.items.pop(str(command.arguments["item_id"]), None)
        return CommandResult(command_id=command.id, ok=True, result=result)

    def frozen(self, point: RecoveryPoint, problem: str = "") -> FreezeReport:
        """Return what an agent says of a freeze that ended with that point."""
        return FreezeReport(
            number=point.sequence,
            epoch=point.epoch,
            time_ns=point.time_ns,
            sequence=point.sequence,
            consistency=Consistency.CRASH if problem else Consistency.APPLICATION,
            frozen_ms=0 if problem else 120.0,
            ours_ms=0 if problem else 0.5,
            problem=problem,
        )

    def _before_step(self, name: str) -> None:
        if name == "initial replication":
            epoch, now_ns = max(self.items.values()), self.service.bench.clock.now_ns()
            self.points.append(_point(epoch, len(self.points) + 1, now_ns))
            self.say()
            self.say()

    def _add_vm(self) -> None:
        accounts = (
            StorageAccount(
                region="east", name=name, resource_group="rg", url="file:///x", disk_directory="/x"
            )
            for name in ("sys", "data")
        )
        network = VirtualNetwork(
            region="east",
            name="corp",
            resource_group="rg",
            address_space=("10.0.0.0/16",),
            subnets=(Subnet(name="front", prefix="10.0.1.0/24"),),
        )
        vm = VirtualMachine(
            region="east",
            name="web-1",
            resource_group="rg",
            disks=(
                Disk(name="system", storage_account="sys", size_bytes=GIB),
                Disk(name="data", storage_account="data", size_bytes=GIB),
            ),
            nics=(NetworkInterface(name="n0", network="corp", subnet="front", address="10.0.1.9"),),
            availability_set="set",
            host="n-1",
        )
        group = ResourceGroup(region="east", name="rg")
        members = AvailabilitySet(region="east", name="set", resource_group="rg")
        made: list[Grouped | VirtualMachine] = [group, network, members, vm, *accounts]
        with self.service.bench.vault.write() as records:
            for resource in made:
                records.resources.insert(resource, scope="east", name=resource.name)


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Give a site."""
    with ExitStack() as stack:
        yield Site(directory, stack)


def _point(epoch: int, sequence: int, time_ns: int) -> RecoveryPoint:
    return RecoveryPoint(
        id=point_id(epoch, sequence),
        epoch=epoch,
        sequence=sequence,
        time_ns=time_ns,
        consistency=Consistency.CRASH,
    )


_ANY_REHEARSAL = Rehearsal(recovery_point="", region="", host="", vm_id="")


def _any_drill(outcome: DrillOutcome) -> DrillVerdict:
    return DrillVerdict(
        job_id="",
        outcome=outcome,
        region="",
        recovery_point="",
        point_time_ns=0,
        began_ns=0,
        ended_ns=0,
    )


def state_of(made: Site) -> dict[str, object]:
    """Return all the vault holds that must not depend on where a run was killed."""
    with made.service.bench.vault.read() as records:
        items = records.items.listed()
        names = [
            (kind.__name__, stored.scope, stored.name, stored.state.value)
            for kind in (
                ResourceGroup,
                VirtualNetwork,
                StorageAccount,
                AvailabilitySet,
                VirtualMachine,
            )
            for stored in records.resources.listed(kind)
        ]
    return {
        "items": [
            to_plain(
                replace(
                    r.item,
                    id="",
                    recovery_point="yes" if r.item.recovery_point else "",
                    rehearsal=_ANY_REHEARSAL if r.item.rehearsal else None,
                    last_drill=_any_drill(r.item.last_drill.outcome) if r.item.last_drill else None,
                    former=replace(r.item.former, worker_id="") if r.item.former else None,
                )
            )
            for r in items
        ],
        "resources": names,
        "asked": dict(made.asked),
    }
