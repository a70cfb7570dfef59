"""`leeward up` and `leeward down`: the whole of Leeward on one machine, kept running.

Owns: which daemons there are, in which order they start, and that they are started again. Must not
know: REST; what it asks of the service comes in as a port. Its children are processes of their own
sessions that outlive it: the next `up` with the same data directory finds them again.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.agent.identity import DirectoryLock
from leeward.agent.records import write_file
from leeward.core.codec import from_json, to_json
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, Unavailable
from leeward.core.ids import check_name
from leeward.daemons.children import Child, ChildSpec, ChildState
from leeward.daemons.doctor import complaints
from leeward.daemons.places import Places, private_directory
from leeward.daemons.signals import StopSignal
from leeward.fabric.logs import keep_logs_limited
from leeward.fabric.processes import (
    ProcessIdentity,
    identify,
    read_pid_file,
    reap,
    spawn,
)

SERVICE_SECONDS = 60.0
NODES_SECONDS = 60.0
LOOK_SECONDS = 0.5
STOP_SECONDS = 15.0
DEFAULT_PORT = 8470
DEFAULT_REGIONS = ("east", "west")


class Administration(Protocol):
    """What `up` asks of the service it has started."""

    def is_answering(self) -> bool: ...
    def ensure_region(self, region: str) -> None: ...
    def ensure_vault(self) -> None: ...
    def enrolment_token(self, region: str) -> str: ...
    def online_nodes(self) -> frozenset[tuple[str, str, str]]:
        """Return (role, region, name) of every node the service hears of."""
        ...

    def close(self) -> None: ...


TUNNEL_ADDRESS = "127.0.0.1"
"""Where the hosts of a region that share this machine have their tunnels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """port 0 and no regions: as they were at the last start, else the defaults."""

    data: Path
    port: int = 0
    regions: tuple[str, ...] = ()
    hosts: int = 0
    """Agents per region, each like a host of its own; 0: as many as before, at first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpState:
    """What `up` keeps between starts. instance: marks every process of this data directory."""

    port: int
    regions: tuple[str, ...]
    instance: str
    hosts: int = 1

    def host_names(self, region: str) -> tuple[str, ...]:
        """Return the names of the region's agents."""
        return tuple(f"{region}-{number + 1}" for number in range(self.hosts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One daemon. state: as in ChildState; pid: 0 unless it runs."""

    name: str
    state: str
    pid: int
    log_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpReport:
    """What runs, once it does. gone: regions whose directories are not there, with those;
    complaints: what this machine lacks, a line each."""

    url: str
    daemons: tuple[Daemon, ...]
    gone: dict[str, str]
    complaints: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it for people."""
        lines = [f"Leeward is up: {self.url}"]
        for daemon in self.daemons:
            where = f"pid {daemon.pid}" if daemon.pid else daemon.state
            lines.append(f"  {daemon.name:<22} {where:<12} {daemon.log_file}")
        lines += [
            f"  region {each} is gone: {path} is not there" for each, path in self.gone.items()
        ]
        return [*lines, *self.complaints]


@dataclass(frozen=True, slots=True)
class _NodeSpec:
    role: str
    region: str
    name: str
    home: Path


class Up:
    """Everything of one data directory, started and watched. One at a time, by its lock."""

    def __init__(
        self,
        options: UpOptions,
        *,
        administer: Callable[[str], Administration],
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> None:
        """administer: given the service's URL, the way to ask it (and the client's
        configuration, written). Raises: Conflict when another `up` has the data directory."""
        self.places = Places(options.data)
        private_directory(self.places.up)
        self._lock = DirectoryLock(self.places.up / "lock", owner="`leeward up`")
        self._administer = administer
        self._stop = stop
        self._say = say
        known = read_state(self.places)
        self._port_before = known.port if known else 0
        self.state = _state_of(known, options)
        self._children: list[Child] = []
        own = identify(os.getpid())
        if own is not None:
            write_file(self.places.up / "up.pid", _pid_file_content(own))

    def run(self) -> None:
        """Everything is up and stays up until told to stop; then the daemons are down, VMs not."""
        try:
            self.start()
            self._watch()
        finally:
            self.end()

    def start(self) -> None:
        """Service, workers and agents run and know each other; what this machine lacks is said.
        Raises: Unavailable, Conflict."""
        service = self._child("service", ("serve",), self.places.data, region="")
        self._check_port(service)
        gone = self._gone()
        living = [region for region in self.state.regions if region not in gone]
        for region in living:
            private_directory(self.places.region(region))
        write_file(self.places.up / "state.json", to_json(self.state))
        service.start()
        administration = self._administer(self.url)
        try:
            self._wait_service(administration)
            nodes = self._start_nodes(administration, living)
            self._wait_nodes(administration, nodes)
        finally:
            administration.close()
        report = self._report()
        write_file(self.places.up / "ready", to_json(report))
        for line in report.lines():
            self._say(line)

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://127.0.0.1:{self.state.port}"

    def end(self) -> None:
        """No daemon runs; VMs, taps and exports do."""
        for child in self._children:
            child.ask_to_end()
        for child in self._children:
            with suppress(LeewardError):
                child.end(grace_seconds=STOP_SECONDS)
        for name in ("ready", "up.pid"):
            (self.places.up / name).unlink(missing_ok=True)
        self._lock.release()

    # --- starting

    def _check_port(self, service: Child) -> None:
        if service.process is None:
            _check_port(self.state.port)
        elif self._port_before != self.state.port:
            raise _other_port(self._port_before)

    def _wait_service(self, administration: Administration) -> None:
        service = self._children[0]
        deadline = time.monotonic() + SERVICE_SECONDS
        while not administration.is_answering():
            self._check_alive(service)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the service does not answer at {self.url}",
                    hint=f"its log is {service.spec.log_file}",
                )
            self._pause()

    def _start_nodes(
        self, administration: Administration, regions: Sequence[str]
    ) -> list[_NodeSpec]:
        administration.ensure_vault()
        nodes = []
        for region in regions:
            administration.ensure_region(region)
            nodes += [
                _NodeSpec("worker", region, f"{region}-worker", self.places.worker(region)),
                *(
                    _NodeSpec("agent", region, name, self.places.host(region, name))
                    for name in self.state.host_names(region)
                ),
            ]
        for node in nodes:
            self._start_node(administration, node)
        return nodes

    def _start_node(self, administration: Administration, node: _NodeSpec) -> None:
        private_directory(node.home)
        token_file = node.home / "enrolment-token"
        if not (node.home / "identity.json").exists():
            token = administration.enrolment_token(node.region)
            write_file(token_file, token.encode())
        arguments = (node.role, "--region", node.region, "--name", node.name)
        is_joined = node.role == "agent" and self.state.hosts > 1
        tunnel = ("--tunnel", TUNNEL_ADDRESS) if is_joined else ()
        options = ("--service", self.url, "--token-file", str(token_file), *tunnel)
        child = self._child(
            f"{node.role} {node.name}",
            (*arguments, *options),
            self.places.region(node.region),
            region=node.region,
            log_file=node.home / f"{node.role}.log",
        )
        child.start()

    def _wait_nodes(self, administration: Administration, nodes: Sequence[_NodeSpec]) -> None:
        wanted = {(node.role, node.region, node.name) for node in nodes}
        deadline = time.monotonic() + NODES_SECONDS
        while missing := wanted - administration.online_nodes():
            for child in self._children:
                self._check_alive(child)
            if time.monotonic() > deadline:
                names = ", ".join(f"{role} {name}" for role, _, name in sorted(missing))
                raise Unavailable(f"{names} did not come up within {NODES_SECONDS:.0f} s")
            self._pause()

    def _child(
        self,
        name: str,
        arguments: tuple[str, ...],
        home: Path,
        *,
        region: str,
        log_file: Path | None = None,
    ) -> Child:
        slug = name.replace(" ", "-")
        environment = {
            "LEEWARD_DATA": str(self.places.data),
            "LEEWARD_INSTANCE": self.state.instance,
            "LEEWARD_SERVICE__PORT": str(self.state.port),
            **({"LEEWARD_REGION": region} if region else {}),
        }
        child = Child(
            ChildSpec(
                name=name,
                argv=(sys.executable, "-m", "leeward.cli.main", *arguments),
                environment=environment,
                pid_file=self.places.up / f"{slug}.pid",
                log_file=log_file or self.places.up / f"{slug}.log",
                home=home,
            )
        )
        self._children.append(child)
        return child

    # --- watching

    def _watch(self) -> None:
        keep_logs_limited(self.places.up)
        while not self._stop.wait(LOOK_SECONDS):
            for child in self._children:
                sentence = child.look()
                if sentence:
                    with suppress(OSError):  # nobody listens, or the log's disk is full
                        self._say(sentence)

    def _check_alive(self, child: Child) -> None:
        reap()
        if child.process is None or read_pid_file(child.spec.pid_file) is None:
            words = child.last_words().removeprefix("leeward: ")
            raise Unavailable(
                f"{child.spec.name} ended at once: {words or 'it does not say why'}",
                hint=f"its log is {child.spec.log_file}",
            )

    def _pause(self) -> None:
        if self._stop.wait(0.1):
            raise Unavailable("told to stop while starting")

    def _report(self) -> UpReport:
        return UpReport(
            url=self.url,
            daemons=tuple(_daemon(child) for child in self._children),
            gone={region: str(self.places.region(region)) for region in self._gone()},
            complaints=tuple(complaints(self.places.data)),
        )

    def _gone(self) -> list[str]:
        known = read_state(self.places)
        before = known.regions if known else ()
        return [region for region in before if not self.places.region(region).is_dir()]


def _daemon(child: Child) -> Daemon:
    runs = child.process is not None and child.state is ChildState.RUNNING
    return Daemon(
        name=child.spec.name,
        state=child.state.value,
        pid=child.process.pid if child.process is not None and runs else 0,
        log_file=str(child.spec.log_file),
    )


def detach(argv: Sequence[str], options: UpOptions) -> UpReport:
    """Everything of the data directory is up, watched by a process of its own; returns what ran
    where when all of it had come up.

    argv: the arguments of the `leeward up` that stays. Raises: Unavailable, and what it says;
    Conflict when it runs already, otherwise than `options` want.
    """
    data, port = options.data, options.port
    places = Places(data)
    private_directory(places.up)
    running = read_pid_file(places.up / "up.pid")
    ready = places.up / "ready"
    log_file = places.up / "up.log"
    known = read_state(places)
    if running is not None and known is not None and port not in (0, known.port):
        raise _other_port(known.port)
    if running is not None and known is not None and _state_of(known, options) != known:
        raise Conflict(
            f"it runs already: regions {', '.join(known.regions)}, hosts in each: {known.hosts}",
            hint="`leeward down`, then this again, adds regions and hosts",
        )
    if running is None:
        ready.unlink(missing_ok=True)
        running = spawn(
            (sys.executable, "-m", "leeward.cli.main", *argv),
            pid_file=places.up / "up.pid",
            log_file=log_file,
            environment={"LEEWARD_DATA": str(data)},
        )
    deadline = time.monotonic() + SERVICE_SECONDS + NODES_SECONDS
    while not ready.exists():
        reap()
        if read_pid_file(places.up / "up.pid") is None:
            from leeward.daemons.children import last_line

            words = last_line(log_file).removeprefix("leeward: ")
            raise Unavailable(words or "`leeward up` ended at once", hint=f"its log is {log_file}")
        if time.monotonic() > deadline:
            raise Unavailable("`leeward up` is not ready yet", hint=f"its log is {log_file}")
        time.sleep(0.1)
    try:
        return from_json(ready.read_bytes(), UpReport)
    except InvalidRequest as error:
        raise Conflict(
            "what runs was started by another version of Leeward",
            hint="`leeward down`, then this again",
        ) from error


def _state_of(known: UpState | None, options: UpOptions) -> UpState:
    for region in options.regions:
        check_name(region, field="--regions")
    if known is None:
        return UpState(
            port=options.port or DEFAULT_PORT,
            regions=options.regions or DEFAULT_REGIONS,
            hosts=options.hosts or 1,
            instance=secrets.token_hex(8),
        )
    added = tuple(region for region in options.regions if region not in known.regions)
    return UpState(
        port=options.port or known.port,
        regions=known.regions + added,
        hosts=max(options.hosts, known.hosts),
        instance=known.instance,
    )


def read_state(places: Places) -> UpState | None:
    """Return what the last `up` of this data directory was, or None before the first.

    Raises: InvalidRequest.
    """
    path = places.up / "state.json"
    try:
        return from_json(path.read_bytes(), UpState)
    except FileNotFoundError:
        return None
    except InvalidRequest as error:
        raise InvalidRequest(f"{path} is broken: {error.message}") from error


def _other_port(port: int) -> Conflict:
    return Conflict(
        f"the service already runs on port {port}", field="--port", hint="`leeward down` ends it"
    )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise InvalidRequest(
                f"port {port} needs root", field="--port", hint="choose one above 1023"
            ) from error
        except OSError as error:
            raise Unavailable(
                f"port {port} is taken by another program",
                field="--port",
                hint="choose another with --port",
            ) from error
        except OverflowError as error:
            raise InvalidRequest(f"{port} is not a port", field="--port") from error


def _pid_file_content(process: ProcessIdentity) -> bytes:
    return to_json({"pid": process.pid, "start_ticks": process.start_ticks})
