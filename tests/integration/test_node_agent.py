"""A real agent with a real VM, and a stand-in for the service that the test can take away.

What counts here: nothing of the agent's own is lost with its process, and none of it needs the
service to be there.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from demo.fire import kill_all, processes_of
from demo.ports import free_port
from tests.integration.leeward_process import Installation, installation, wait_for

from leeward.core.codec import to_plain
from leeward.daemons.places import Places, run_directory, shared_memory_directory
from leeward.fabric.processes import identify
from leeward.object_store.file import create_file_store
from leeward.protocol.fabric import DiskSpec, ReplicationSpec, ScriptSpec, VmSpec

pytestmark = pytest.mark.integration

ITEM = "item-1"


class Service:
    """The node's side of the service: delivers commands, notes results and statuses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard = threading.Condition()
        self.open: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self.lose_results = 0
        self.supersede: list[dict[str, Any]] = []
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        """Be away. What was noted is forgotten, so that what is noted next is new."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
        with self.heard:
            self.status = {}

    def order(self, command_id: str, verb: str, arguments: object) -> dict[str, Any]:
        """Return the result of a command, delivered until it is answered."""
        command = {"id": command_id, "verb": verb, "arguments": to_plain(arguments)}
        with self.heard:
            self.open.append(command)
            self.heard.notify_all()
            assert self.heard.wait_for(lambda: command not in self.open, timeout=60)
            result = next(r for r in reversed(self.results) if r["command_id"] == command_id)
        assert result["ok"], result
        return dict(result["result"])

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.heard:
            if path.endswith("/enrol"):
                return 200, {"node_id": "agent-1"}
            if path.endswith("/results"):
                if self.lose_results:
                    self.lose_results -= 1
                    return 503, {}
                self.results.append(body)
                self.open = [each for each in self.open if each["id"] != body["command_id"]]
                self.heard.notify_all()
                return 200, {}
            if path.endswith("/status"):
                self.status = body
                self.heard.notify_all()
                return 200, {"supersede": self.supersede}
            self.heard.wait_for(lambda: self.open, timeout=0.5)
            return 200, {"commands": list(self.open)}


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, reply = service.answer(
                self.path.partition("?")[0], json.loads(body) if body else {}
            )
            data = json.dumps(reply).encode()
            with suppress(BrokenPipeError):  # the agent has been killed meanwhile
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class Host:
    """A data directory, an agent over it, and the service's stand-in."""

    def __init__(self, leeward: Installation, service: Service) -> None:
        self.leeward = leeward
        self.service = service
        self.agent: subprocess.Popen[bytes] | None = None
        self.cache = create_file_store(leeward.data / "cache")
        (leeward.data / "token").write_text("once")

    def start_agent(self) -> None:
        self.agent = self.leeward.start(
            *("agent", "--region", "east", "--name", "h"),
            *("--service", f"http://127.0.0.1:{self.service.port}"),
            *("--token-file", str(self.leeward.data / "token")),
        )

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.leeward.end(self.agent, signal.SIGKILL)

    def create_vm(self) -> int:
        disk = DiskSpec(
            name="d", directory=str(self.leeward.data / "disks"), format="raw", size_bytes=8 << 20
        )
        (self.leeward.data / "disks").mkdir(exist_ok=True)
        vm = VmSpec(
            vm_id="web-1",
            name="web-1",
            vcpus=1,
            memory_mib=32,
            firmware="bios",
            disks=(disk,),
            nics=(),
        )
        return int(self.service.order("c-create", "vm.create", vm)["pid"])

    def replicate(self) -> None:
        spec = ReplicationSpec(
            item_id=ITEM, epoch=1, vm_id="web-1", disks=("d",), cache_url=self.cache.url
        )
        self.service.order("c-replicate", "replication.start", spec)

    def cuts(self) -> list[str]:
        return self.cache.list(f"items/{ITEM}/cuts/")

    def replication(self) -> dict[str, Any]:
        with self.service.heard:
            found = self.service.status.get("replications") or [{}]
        return dict(found[0])

    def log(self) -> str:
        return (self.leeward.data / "agent.log").read_text()


@contextmanager
def _host() -> Iterator[Host]:
    with installation() as leeward:
        service = Service(free_port())
        service.start()
        host = Host(leeward, service)
        try:
            host.start_agent()
            yield host
        finally:
            service.stop()
            # what agents leave running on purpose: VMs, taps, watchdogs
            kill_all(processes_of(leeward.data, "east"))
            home = Places(leeward.data).host("east", "h")
            shutil.rmtree(run_directory(home, "h").parent, ignore_errors=True)
            shutil.rmtree(shared_memory_directory(home, "h"), ignore_errors=True)


@pytest.fixture
def host() -> Iterator[Host]:
    with _host() as host:
        yield host


def test_killed_agent_finds_its_vm_and_replication_again_without_the_service(host: Host) -> None:
    pid = host.create_vm()
    host.replicate()
    wait_for(lambda: host.replication().get("initial_done"))
    before = len(host.cuts())
    host.kill_agent()
    assert identify(pid) is not None
    host.service.stop()

    host.start_agent()
    wait_for(lambda: "service_away" in host.log())
    wait_for(lambda: len(host.cuts()) > before)
    assert identify(pid) is not None

    host.service.start()
    wait_for(lambda: host.replication().get("state") == "streaming")
    assert [vm["pid"] for vm in host.service.status["vms"]] == [pid], "the same QEMU"
    status = host.service.status
    assert 0 < status["memory_available_mib"] < status["memory_total_mib"]


def test_lost_result_is_told_again_by_the_next_agent_and_done_once(host: Host) -> None:
    pid = host.create_vm()
    host.service.lose_results = 10**9
    with host.service.heard:
        stop = {"id": "c-stop", "verb": "vm.stop", "arguments": {"vm_id": "web-1", "force": True}}
        host.service.open.append(stop)
        host.service.heard.notify_all()
    wait_for(lambda: '"command_done"' in host.log() and host.log().count("vm.stop") >= 2)
    host.kill_agent()
    with host.service.heard:
        host.service.lose_results = 0
    host.start_agent()
    wait_for(lambda: stop not in host.service.open)
    assert host.log().count('"verb": "vm.stop", "event": "command_started"') == 1
    assert identify(pid) is None


def test_agent_that_was_superseded_while_it_was_away_stops_its_vm(host: Host) -> None:
    pid = host.create_vm()
    host.replicate()
    wait_for(lambda: host.replication().get("initial_done"))
    host.kill_agent()
    host.service.supersede = [{"item_id": ITEM, "epoch": 2}]
    host.start_agent()
    wait_for(lambda: "superseded" in host.replication().get("problem", ""))
    wait_for(lambda: host.service.status["vms"][0]["power"] == "stopped")
    assert identify(pid) is None
    assert host.replication()["state"] == "stopped"


def test_an_agent_told_to_end_ends_though_a_command_takes_for_ever(host: Host) -> None:
    """Else it would drive its VMs beside the next agent, with the directory's lock let go."""
    scripts = Places(host.leeward.data).host("east", "h") / "scripts"
    wait_for(scripts.is_dir)
    script = scripts / "sleep"
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    script.chmod(0o700)
    spec = ScriptSpec(run_id="run-1", script="sleep", context={}, timeout_seconds=3600)
    with host.service.heard:
        command = {"id": "c-run", "verb": "script.run", "arguments": to_plain(spec)}
        host.service.open.append(command)
        host.service.heard.notify_all()
    wait_for(lambda: '"command_started"' in host.log())
    assert host.agent is not None
    host.agent.send_signal(signal.SIGTERM)
    assert host.agent.wait(60) == 0
    with host.service.heard:
        host.service.open.clear()
    host.start_agent()
    wait_for(lambda: "left_script_ended" in host.log())


def test_a_guest_left_frozen_is_thawed_by_the_next_agent_before_all_else(host: Host) -> None:
    """Though the service hangs and nobody protects the VM any more."""
    wait_for(lambda: "node_ready" in host.log())
    host.kill_agent()
    host.service.stop()
    home = Places(host.leeward.data).host("east", "h")
    freeze = run_directory(home, "h") / "freeze" / ITEM
    with deaf(host.service.port), thawable(freeze.parent / "agent") as thawed:
        freeze.mkdir()
        config = {
            "agent": str(freeze.parent / "agent"),
            "tap": str(freeze.parent / "tap"),
            "result": str(freeze / "result.json"),
            "freeze_seconds": 60,
            "thaw_seconds": 60,
            "only_thaw": "",
        }
        (freeze / "config.json").write_text(json.dumps(config))
        host.start_agent()
        assert thawed.wait(60)


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """Take connections at the port and answer none."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def thawable(path: Path) -> Iterator[threading.Event]:
    """Be a guest's agent at that socket; the event says that the guest was asked to thaw."""
    thawed = threading.Event()
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while not thawed.is_set():
                    connection, _ = listener.accept()
                    with connection, connection.makefile("rwb") as lines:
                        for line in lines:
                            asked = json.loads(line.lstrip(b"\xff"))
                            is_sync = asked["execute"] == "guest-sync-delimited"
                            reply = {"return": asked["arguments"]["id"] if is_sync else 2}
                            lines.write((b"\xff" if is_sync else b"") + json.dumps(reply).encode())
                            lines.write(b"\n")
                            lines.flush()
                            if asked["execute"] == "guest-fsfreeze-thaw":
                                thawed.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield thawed
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)
