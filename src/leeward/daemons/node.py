"""What the agent's and the worker's composition roots share: who the node is, and its link's life.

Owns: lock, identity, enrolling with patience, link up, link down. Must not know: the verbs.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.agent.answers import AnswerJournal
from leeward.agent.identity import (
    DirectoryLock,
    Identity,
    enrol,
    load_identity,
    next_process,
)
from leeward.agent.link import Node, NodeLink
from leeward.agent.service import Service
from leeward.core.errors import InvalidRequest, LeewardError, Unavailable
from leeward.core.ids import check_name
from leeward.daemons.places import private_directory
from leeward.daemons.signals import StopSignal
from leeward.export.config import LIMIT_VARIABLE
from leeward.fabric.logs import keep_logs_limited
from leeward.observability.log import get_logger
from leeward.protocol.messages import Role
from leeward.replica.host_keys import KEY_FILE, host_key_ids

log = get_logger()

_ENROL_PAUSE_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """data: absolute. token_file: holds the one-time token, "" once enrolled. key_file: of the
    encryption keys, export_cache: how much disk exports may use, such as "4G"; "": what the
    environment says."""

    data: Path
    region: str
    name: str
    service_url: str
    token_file: str = ""
    key_file: str = ""
    export_cache: str = ""
    tunnel: str = ""
    """Agents: an address of this host, with or without ":port", where tunnels from the region's
    other hosts end; "": its networks are its own."""


class RunningNode(Node, Protocol):
    """A node whose work goes on by itself: with or without a service."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called whenever the status has changed in a way worth telling at once."""

    def resume(self) -> None:
        """What was being done before a restart is being done again."""

    def stop(self) -> None:
        """Nothing more is done; VMs, taps and exports go on running."""


def default_name() -> str:
    """Return this machine's name, as far as it can name a node."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name[:63].rstrip("-") or "host"


def check_options(options: NodeOptions, role: Role) -> None:
    """Return if the node can be started so. Raises: InvalidRequest."""
    if not options.region:
        raise InvalidRequest(
            f"which region is this {role.value} of?", field="region", hint="--region REGION"
        )
    check_name(options.region, field="region")
    check_name(options.name, field="name")


def set_environment(options: NodeOptions) -> None:
    """Every process started from here on can be told by region and data directory."""
    os.environ["LEEWARD_REGION"] = options.region
    os.environ["LEEWARD_DATA"] = str(options.data)
    if options.key_file:
        os.environ[KEY_FILE] = options.key_file
    if options.export_cache:
        os.environ[LIMIT_VARIABLE] = options.export_cache


class NodeHome:
    """A node's own directory, locked, with its identity. Use it as a context manager."""

    def __init__(self, directory: Path, role: Role, options: NodeOptions) -> None:
        self.directory = private_directory(directory)
        self._lock = DirectoryLock(directory / "lock", owner=role.value)
        try:
            self.identity = load_identity(
                self._identity_file, role=role, region=options.region, name=options.name
            )
        except LeewardError:
            self._lock.release()
            raise

    @property
    def _identity_file(self) -> Path:
        return self.directory / "identity.json"

    def __enter__(self) -> NodeHome:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def enrol(self, service: Service, token_file: str, stop: StopSignal) -> Identity | None:
        """Return the enrolled identity, waiting as long as the service is away; None: told to stop.

        The token file is gone afterwards. Raises: InvalidRequest, Conflict when refused.
        """
        if token_file and not self.identity.node_id and not Path(token_file).exists():
            raise InvalidRequest(
                f"there is no token file {token_file}",
                field="token_file",
                hint="`leeward region token REGION > FILE` makes one",
            )
        pause = 0.2
        while True:
            try:
                identity = enrol(
                    self._identity_file, self.identity, service, token=_read_token(token_file)
                )
                break
            except Unavailable as error:
                log.warning("service_away", error=str(error))
            if stop.wait(pause):
                return None
            pause = min(pause * 2, _ENROL_PAUSE_SECONDS_MAX)
        if token_file:
            with suppress(OSError):
                Path(token_file).unlink(missing_ok=True)
        return identity


def run_node(home: NodeHome, node: RunningNode, options: NodeOptions, stop: StopSignal) -> None:
    """The node's work and link are up until `stop`; afterwards both are down, in good order."""
    service = Service(options.service_url)
    service.name_process(next_process(home.directory / "starts"))
    keep_logs_limited(home.directory)
    try:
        if home.identity.node_id:
            # An agent that was superseded while it was away learns it before it goes on.
            service.authenticate(home.identity.node_id, home.identity.key)
            _heed_superseding(service, node)
        node.resume()
        identity = home.enrol(service, options.token_file, stop)
        if identity is not None:
            _run_link(home, node, service, stop)
    finally:
        node.stop()
        service.close()
    log.info("node_stopped", region=options.region, name=options.name)


def _run_link(home: NodeHome, node: RunningNode, service: Service, stop: StopSignal) -> None:
    answers = AnswerJournal(home.directory / "answers.jsonl")
    link = NodeLink(service, node, answers, key_ids=_key_ids)
    node.on_change(link.report_soon)
    link.start()
    log.info("node_ready", role=home.identity.role.value, name=home.identity.name)
    stop.wait_for_end()
    link.stop()
    answers.close()


def _key_ids() -> tuple[str, ...]:
    try:
        return host_key_ids()
    except LeewardError as error:  # said again by whatever needs a key
        log.warning("keys_not_read", error=str(error))
        return ()


def _heed_superseding(service: Service, node: Node) -> None:
    try:
        for item in service.post_status(node.status()).supersede:
            node.supersede(item.item_id, item.epoch)
    except LeewardError as error:
        log.warning("service_away", error=str(error))


def _read_token(token_file: str) -> str:
    if not token_file:
        return ""
    try:
        return Path(token_file).read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidRequest(f"cannot read {token_file}: {error.strerror}") from error
