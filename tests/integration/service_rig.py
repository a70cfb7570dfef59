"""A service to test against, and nodes that answer commands without doing anything.

The nodes keep the protocol (long poll, results, status once in a while) and remember what they were
asked, so that a test can say "never twice".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from demo.ports import free_port

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import LeewardError
from leeward.model.recovery import (
    Consistency,
    RecoveryPoint,
    ReplicationState,
    SharedMark,
)
from leeward.model.resources import PowerState
from leeward.protocol.fabric import Forward, VmStatus
from leeward.protocol.messages import (
    Command,
    CommandResult,
    HydrationStatus,
    NodeStatus,
    ProcessingStatus,
    ReplicationStatus,
    Role,
    ScrubReport,
    SpaceReport,
    Verb,
)
from leeward.protocol.rebuild import FoundItems

GIB = 1 << 30
Json = dict[str, Any]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Return the condition's first true value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


class ServiceProcess:
    """`leeward serve` as a process of its own, which may be killed and started again."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """The service runs; with `wait` it also answers."""
        code = (
            "from leeward.daemons.settings import load_settings\n"
            "from leeward.daemons.serve import run_service\n"
            "run_service(load_settings())\n"
        )
        environment = {
            **os.environ,
            "LEEWARD_DATA": str(self.data),
            "LEEWARD_SERVICE__PORT": str(self.port),
        }
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=log, stderr=log
            )
        if wait:
            wait_for(self.answers, "the service's answer", seconds=90)

    def answers(self) -> bool:
        """Say whether the service answers."""
        assert self._process is not None
        assert self._process.poll() is None, (self.data / "service.log").read_text()[-3000:]
        with suppress(httpx.HTTPError, FileNotFoundError):
            return Operator(self.url, self.token).get("/regions") is not None
        return False

    @property
    def token(self) -> str:
        return (self.data / "service" / "api-token").read_text().strip()

    def kill(self) -> None:
        """The process is gone, without a chance to say goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The process has ended as it does when asked to."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=60)
            self._process = None


def new_http() -> httpx.Client:
    """Return a client that keeps no connection: services come and go."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(trust_env=False, timeout=60, limits=limits, verify=False)


HTTP = new_http()
"""Shared: making one costs more than a request."""


class Operator:
    """The public API in a few words."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Return the raw reply."""
        return HTTP.request(
            method,
            f"{self._url}/api/v1{path}",
            json=body,
            headers={**self._headers, **headers},
        )

    def get(self, path: str) -> Any:
        return self._checked(self.request("GET", path))

    def put(self, path: str, body: Any) -> Any:
        return self._checked(self.request("PUT", path, body))

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self._checked(self.request("POST", path, body or {}, **headers))

    def delete(self, path: str) -> Any:
        return self._checked(self.request("DELETE", path))

    def ended(self, job: Json, seconds: float = 120.0) -> Json:
        """Return the job once it has ended; the service may be away meanwhile."""

        def look() -> Json | None:
            with suppress(httpx.HTTPError):
                found: Json = self.get(f"/jobs/{job['id']}")
                return found if found["ended_ns"] else None
            return None

        found: Json = wait_for(look, f"the end of {job['verb']}", seconds)
        return found

    def done(self, job: Json, seconds: float = 120.0) -> Json:
        """Return the job, which succeeded."""
        ended = self.ended(job, seconds)
        assert ended["state"] == "succeeded", ended
        return ended

    @staticmethod
    def _checked(reply: httpx.Response) -> Any:
        assert reply.status_code < 400, f"{reply.status_code}: {reply.text}"
        return reply.json() if reply.content else None


class FakeNode:
    """An agent or worker that says yes. `refuse` and `delay` make it otherwise.

    `before` and `after` are called around each command's carrying out, the result still unsent.
    """

    def __init__(self, url: str, role: Role, region: str, name: str, token: str) -> None:
        self.url, self.role, self.region, self.name = url, role, region, name
        self.refuse: dict[Verb, LeewardError] = {}
        self.delay: dict[Verb, float] = {}
        self.before: Callable[[Verb], None] = lambda verb: None
        self.after: Callable[[Verb], None] = lambda verb: None
        self.carried_out: Counter[str] = Counter()
        self.log: list[Command] = []
        self.vms: dict[str, VmStatus] = {}
        self.replications: dict[str, ReplicationStatus] = {}
        self.processings: dict[str, ProcessingStatus] = {}
        self.hydrations: dict[str, HydrationStatus] = {}
        self.superseded: dict[str, int] = {}
        self.makes_points = True
        self.key_ids: tuple[str, ...] = ()
        self.found = FoundItems()
        self.scrubbed = ScrubReport(item_id="")
        self.quarantined: tuple[str, ...] = ()
        self.key = "ab" * 32
        self.node_id = ""
        self._answers: dict[str, CommandResult] = {}
        self._points: dict[str, list[RecoveryPoint]] = {}
        self._told: dict[str, int] = {}
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._loop, args=(turn,), daemon=True)
            for turn in (self._receive, self._report)
        ]
        self._enrol(token)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def hush(self) -> None:
        """The node asks and says nothing more once what is under way has ended."""
        self._stopping.set()
        self._changed.set()

    def stop(self) -> None:
        """The node is silent from now on."""
        self.hush()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=60)

    def verbs(self) -> list[Verb]:
        """Return what it was asked, in order, each command once."""
        return [command.verb for command in self.log]

    def add_point(
        self, item_id: str, epoch: int = 1, shared: SharedMark | None = None
    ) -> RecoveryPoint:
        """Return a new point of the item, listed with the next status."""
        with self._lock:
            points = self._points.setdefault(item_id, [])
            sequence = len(points) + 1
            point = RecoveryPoint(
                id=f"rp-{epoch:08d}-{sequence:012d}",
                epoch=epoch,
                sequence=sequence,
                time_ns=time.time_ns(),
                consistency=Consistency.CRASH,
                shared=shared,
            )
            points.append(point)
        self._changed.set()
        return point

    # --- protocol

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the reply to a request made as this node."""
        return HTTP.request(
            method,
            f"{self.url}/node/v1{path}",
            headers={"Authorization": f"Bearer {self.node_id}:{self.key}"},
            **options,
        )

    def _enrol(self, token: str) -> None:
        body = {
            "token": token,
            "role": self.role.value,
            "region": self.region,
            "name": self.name,
            "key": self.key,
        }
        reply = self.request("POST", "/enrol", json=body)
        assert reply.status_code == 200, reply.text
        self.node_id = reply.json()["node_id"]

    def _loop(self, turn: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                turn()
            except (httpx.HTTPError, ValueError):
                self._stopping.wait(0.05)  # the service is away

    def _receive(self) -> None:
        reply = self.request("GET", "/commands", params={"wait": 1})
        if reply.status_code != 200:
            raise ValueError(reply.text)
        for plain in reply.json()["commands"]:
            threading.Thread(
                target=self._take, args=(from_plain(plain, Command),), daemon=True
            ).start()

    def _take(self, command: Command) -> None:
        with self._lock:
            is_known = command.id in self._answers
            self._answers.setdefault(
                command.id, CommandResult(command_id=command.id, ok=False, error="under way")
            )
        if not is_known:
            self._stopping.wait(self.delay.get(command.verb, 0))
            self.before(command.verb)
            answer = self._carry_out(command)
            self.after(command.verb)
            with self._lock:
                self._answers[command.id] = answer
        answer = self._answers[command.id]
        if answer.error != "under way" and not self._stopping.is_set():
            with suppress(httpx.HTTPError):
                self.request("POST", "/results", json=to_plain(answer))

    def _carry_out(self, command: Command) -> CommandResult:
        with self._lock:
            self.carried_out[command.id] += 1
            self.log.append(command)
        if error := self.refuse.get(command.verb):
            return CommandResult(
                command_id=command.id, ok=False, error_code=error.code, error=error.message
            )
        result = to_plain(_VERBS[command.verb](self, command.arguments))
        self._changed.set()
        return CommandResult(command_id=command.id, ok=True, result=result)

    def _report(self) -> None:
        self._changed.wait(0.3)
        self._changed.clear()
        if self._stopping.is_set():
            return
        if self.makes_points:
            for item_id, processing in list(self.processings.items()):
                self.add_point(item_id, processing.epoch)
        with self._lock:
            told = {item_id: len(points) for item_id, points in self._points.items()}
            processings = tuple(
                replace(
                    processing,
                    points_added=tuple(self._points.get(item_id, [])[self._told.get(item_id, 0) :]),
                    quarantined=self.quarantined,
                )
                for item_id, processing in self.processings.items()
            )
            status = NodeStatus(
                vms=tuple(self.vms.values()),
                replications=tuple(self.replications.values()),
                processings=processings,
                hydrations=tuple(self.hydrations.values()),
                storage_root=f"/nowhere/{self.region}/storage",
                key_ids=self.key_ids,
            )
        reply = self.request("POST", "/status", json=to_plain(status))
        if reply.status_code != 200:
            raise ValueError(reply.text)
        self._told.update(told)
        for superseded in reply.json()["supersede"]:
            self.superseded[superseded["item_id"]] = superseded["epoch"]
        time.sleep(0.05)

    # --- verbs

    def _vm_create(self, arguments: Json) -> VmStatus:
        vm = arguments.get("vm", arguments)
        forwards = tuple(
            Forward(guest_port=port, host_address="127.0.0.1", host_port=20000 + port)
            for port in vm["forwards"]
        )
        status = VmStatus(
            vm_id=vm["vm_id"],
            power=PowerState.RUNNING,
            accelerator="tcg",
            pid=1,
            forwards=forwards,
            disk_sizes={disk["name"]: disk["size_bytes"] or GIB for disk in vm["disks"]},
        )
        self.vms[vm["vm_id"]] = status
        return status

    def _boot(self, arguments: Json) -> VmStatus:
        vm_id = arguments["vm"]["vm_id"]
        self.hydrations[vm_id] = HydrationStatus(
            vm_id=vm_id, bytes_done=0, bytes_total=GIB, done=False
        )
        return self._vm_create(arguments)

    def _power(self, power: PowerState) -> Callable[[Json], VmStatus]:
        def change(arguments: Json) -> VmStatus:
            status = replace(self.vms[arguments["vm_id"]], power=power)
            self.vms[arguments["vm_id"]] = status
            return status

        return change

    def _vm_gone(self, arguments: Json) -> Json:
        self.vms.pop(arguments["vm_id"], None)
        self.hydrations.pop(arguments["vm_id"], None)
        return {}

    def _replicate(self, arguments: Json) -> Json:
        self.replications[arguments["item_id"]] = ReplicationStatus(
            item_id=arguments["item_id"],
            epoch=arguments["epoch"],
            state=ReplicationState.STREAMING,
            initial_done=True,
            sweep_bytes_done=GIB,
            sweep_bytes_total=GIB,
        )
        return {}

    def _fence(self, arguments: Json) -> Json:
        self.replications.pop(arguments["item_id"], None)
        self._power(PowerState.STOPPED)(arguments)
        return {}

    def _process(self, arguments: Json) -> Json:
        self.processings[arguments["item_id"]] = ProcessingStatus(
            item_id=arguments["item_id"],
            epoch=arguments["epoch"],
            applied_sequence=0,
            newest_point_time_ns=0,
        )
        return {}

    def _stop_processing(self, arguments: Json) -> Json:
        self.processings.pop(arguments["item_id"], None)
        return {}

    def _seal(self, arguments: Json) -> RecoveryPoint:
        self.processings.pop(arguments["item_id"], None)
        return self._points[arguments["item_id"]][-1]


def _nothing(node: FakeNode, arguments: Json) -> Json:
    return {}


_VERBS: dict[Verb, Callable[[FakeNode, Json], Any]] = {
    Verb.ACCOUNT_CREATE: _nothing,
    Verb.ACCOUNT_DELETE: _nothing,
    Verb.NETWORK_APPLY: _nothing,
    Verb.NETWORK_DELETE: _nothing,
    Verb.VM_CREATE: FakeNode._vm_create,
    Verb.VM_START: lambda node, a: node._power(PowerState.RUNNING)(a),
    Verb.VM_STOP: lambda node, a: node._power(PowerState.STOPPED)(a),
    Verb.VM_DELETE: FakeNode._vm_gone,
    Verb.REPLICATION_START: FakeNode._replicate,
    Verb.REPLICATION_STOP: lambda node, a: (node.replications.pop(a["item_id"], None) and {}) or {},
    Verb.REPLICATION_FENCE: FakeNode._fence,
    Verb.RECOVERY_BOOT: FakeNode._boot,
    Verb.RECOVERY_DISCARD: FakeNode._vm_gone,
    Verb.PROCESSING_START: FakeNode._process,
    Verb.PROCESSING_STOP: FakeNode._stop_processing,
    Verb.PROCESSING_SEAL: FakeNode._seal,
    Verb.STORES_READ: lambda node, a: node.found,
    Verb.PROCESSING_SCRUB: lambda node, a: node.scrubbed,
    Verb.PROCESSING_COMPACT: lambda node, a: SpaceReport(
        item_id=a["item_id"], stored_bytes=5, freed_bytes=0 if a["dry_run"] else 3
    ),
}


class World:
    """Two regions with an agent each, a worker in the target, and a vault; `add_vm` adds web-1.

    tag: tells worlds over one service apart.
    """

    def __init__(self, service: ServiceProcess, tag: str = "") -> None:
        self.service = service
        self.operator = Operator(service.url, service.token)
        self.nodes: list[FakeNode] = []
        self.east, self.west, self.vault = f"east{tag}", f"west{tag}", f"main{tag}"
        for region in (self.east, self.west):
            self.operator.put(f"/regions/{region}", {})
        self.operator.put(f"/vaults/{self.vault}", {})
        self.source = self.add_node(Role.AGENT, self.east, "host-1")
        self.target = self.add_node(Role.AGENT, self.west, "host-1")
        self.worker = self.add_node(Role.WORKER, self.west, "worker-1")

    def add_node(self, role: Role, region: str, name: str) -> FakeNode:
        """Return a node, enrolled and talking."""
        token = self.operator.post(f"/regions/{region}/enrolment-tokens")["token"]
        node = FakeNode(self.service.url, role, region, name, token)
        self.nodes.append(node)
        node.start()
        wait_for(lambda: self._knows_storage(node), "the node's first status")
        return node

    def _knows_storage(self, node: FakeNode) -> bool:
        nodes = self.operator.get("/nodes")["items"]
        return any(each["id"] == node.node_id and each["is_online"] for each in nodes)

    def add_vm(self, name: str = "web-1", **more: Any) -> None:
        """The VM runs in east, with all it needs."""
        put, done = self.operator.put, self.operator.done
        east = f"/regions/{self.east}"
        put(f"{east}/resource-groups/web-rg", {})
        put(
            f"{east}/networks/corp",
            {
                "resource_group": "web-rg",
                "address_space": ["10.10.0.0/16"],
                "subnets": [
                    {"name": "front", "prefix": "10.10.1.0/24"},
                    {"name": "back", "prefix": "10.10.2.0/24"},
                ],
            },
        )
        put(f"{east}/availability-sets/web-as", {"resource_group": "web-rg"})
        for account in ("websystem", "webdata"):
            reply = put(f"{east}/storage-accounts/{account}", {"resource_group": "web-rg"})
            if "verb" in reply:
                done(reply)
        body = {
            "resource_group": "web-rg",
            "disks": [
                {"name": "system", "storage_account": "websystem", "image": "/images/system.raw"},
                {"name": "data", "storage_account": "webdata", "size_bytes": GIB},
            ],
            "nics": [
                {"name": "front", "network": "corp", "subnet": "front"},
                {"name": "back", "network": "corp", "subnet": "back"},
            ],
            "availability_set": "web-as",
            "forwards": [8080],
        }
        done(put(f"{east}/virtual-machines/{name}", {**body, **more}))

    def protect(self, name: str = "web-1", **more: Any) -> Json:
        """Return the job that protects the VM, just submitted."""
        body = {"source_region": self.east, "vm": name, "target_region": self.west, **more}
        job: Json = self.operator.post(self.items, body)
        return job

    @property
    def items(self) -> str:
        return f"/vaults/{self.vault}/replicated-items"

    def resources(self, region: str, kind: str) -> list[Json]:
        """Return the region's resources of that kind."""
        found: list[Json] = self.operator.get(f"/regions/{region}/{kind}")["items"]
        return found

    def item(self, name: str = "web-1") -> Json:
        found: Json = self.operator.get(f"{self.items}/{name}")
        return found

    def item_verb(self, verb: str, name: str = "web-1", **body: Any) -> Json:
        job: Json = self.operator.post(f"{self.items}/{name}/{verb}", body)
        return job

    def stop(self) -> None:
        for node in self.nodes:
            node.hush()
        for node in self.nodes:
            node.stop()


@contextmanager
def running_service(data: Path) -> Iterator[ServiceProcess]:
    """Give a service process that answers."""
    service = ServiceProcess(data)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def world(service: ServiceProcess, tag: str = "") -> Iterator[World]:
    """Give a world over a running service."""
    made = World(service, tag)
    try:
        yield made
    finally:
        made.stop()
