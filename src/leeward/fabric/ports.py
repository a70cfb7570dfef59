"""Waiting for a TCP port of a guest, from inside its network.

Owns: one connection after the other until one is accepted. Must not know: why anybody waits.
"""

from __future__ import annotations

import socket
import time

from leeward.core.errors import Unavailable
from leeward.fabric import namespaces
from leeward.fabric.networks import namespace_of
from leeward.protocol.fabric import PortSpec

_ATTEMPT_SECONDS = 1.0
_PAUSE_SECONDS = 0.2


def wait_port(spec: PortSpec) -> None:
    """Return when the port accepts a connection. Raises: Unavailable after `timeout_seconds`, or
    where the network is none of this host's."""
    namespaces.inside(namespace_of(spec.network_id), lambda: _wait(spec))


def _wait(spec: PortSpec) -> None:
    deadline = time.monotonic() + spec.timeout_seconds
    while True:
        try:
            with socket.create_connection((spec.address, spec.port), timeout=_ATTEMPT_SECONDS):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"port {spec.port} of {spec.address} does not answer after "
                    f"{spec.timeout_seconds:g} s: {error}"
                ) from error
        time.sleep(_PAUSE_SECONDS)
