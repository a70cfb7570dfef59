"""Who this node is: its name, its own key, and the id the service gave it.

Owns: the identity file (0600) and enrolling once. Must not know: what the node does afterwards.

The key is made here and kept before the one-time token is spent, so that a node killed while
enrolling asks again with the same key.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from leeward.agent.records import write_file
from leeward.agent.service import Service
from leeward.core.codec import from_json, to_json
from leeward.core.errors import Conflict, InvalidRequest, NotAllowed, Unavailable
from leeward.observability.log import get_logger
from leeward.protocol.messages import EnrolmentRequest, Role

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """node_id is "" until the node has enrolled."""

    role: Role
    region: str
    name: str
    key: str
    node_id: str = ""


def load_identity(path: Path, *, role: Role, region: str, name: str) -> Identity:
    """Return the identity kept at `path`, made and kept there if there is none.

    Raises: Conflict if it belongs to another node; InvalidRequest if it cannot be read.
    """
    try:
        identity = from_json(path.read_bytes(), Identity)
    except FileNotFoundError:
        identity = Identity(role=role, region=region, name=name, key=secrets.token_hex(32))
        write_file(path, to_json(identity), mode=0o600)
        return identity
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{path} is broken: {error.message}",
            hint="put it back from a copy, or delete it and enrol the node anew with a new token",
        ) from error
    if (identity.role, identity.region, identity.name) != (role, region, name):
        raise Conflict(
            f"{path.parent} belongs to {identity.role.value} {identity.name} of region "
            f"{identity.region}, not to {role.value} {name} of region {region}",
            hint="give this node a data directory of its own",
        )
    return identity


def enrol(path: Path, identity: Identity, service: Service, *, token: str) -> Identity:
    """Return the identity with its node id, enrolling with the one-time `token` if there is one.

    A token for a node that has enrolled before makes a service that lost it know it again; one that
    is refused, spent and never deleted perhaps, keeps no such node down. The service's requests are
    authenticated afterwards.
    Raises: InvalidRequest without a token to spend; NotAllowed when it is refused, Unavailable.
    """
    if token or not identity.node_id:
        if not token:
            raise InvalidRequest(
                f"{identity.role.value} {identity.name} has not enrolled yet and has no token",
                hint="`leeward region token REGION` makes one; pass it with --token-file",
            )
        request = EnrolmentRequest(
            token=token,
            role=identity.role,
            region=identity.region,
            name=identity.name,
            key=identity.key,
        )
        try:
            enrolled = replace(identity, node_id=service.enrol(request).node_id)
        except NotAllowed as error:
            if not identity.node_id:
                raise
            log.warning("token_refused", name=identity.name, error=str(error))
        else:
            if enrolled != identity:
                write_file(path, to_json(enrolled), mode=0o600)
            identity = enrolled
    service.authenticate(identity.node_id, identity.key)
    return identity


def next_process(path: Path) -> str:
    """Return what tells this process from every other of the same identity, "starts.random": the
    starts counted at `path`, so that a later process of one directory comes before earlier ones. On
    a full disk it is the same start once more."""
    try:
        starts = int(path.read_text())
    except (OSError, ValueError):
        starts = 0
    try:
        write_file(path, str(starts + 1).encode())
        starts += 1
    except Unavailable as error:
        log.warning("start_not_counted", error=str(error))
    return f"{starts}.{secrets.token_hex(8)}"


class DirectoryLock:
    """While held, no other process holds it. The kernel releases it when its holder dies."""

    def __init__(self, path: Path, *, owner: str) -> None:
        """Raises: Conflict if another process holds it, Unavailable without write permission."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"cannot use {path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise Conflict(
                f"another {owner} already runs with the data directory {path.parent}",
                hint="end it first, or give this one a directory of its own",
            ) from error

    def release(self) -> None:
        """Let the next one have it."""
        os.close(self._descriptor)
