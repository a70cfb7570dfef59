"""Ports of the host that lead to VMs inside network namespaces.

Owns: host ports and the forward processes. Must not know: how bytes are carried (forward.py), how
networks are made.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from leeward.core.errors import Unavailable
from leeward.fabric import processes
from leeward.fabric.namespaces import namespace_path
from leeward.fabric.processes import ProcessIdentity
from leeward.protocol.fabric import Forward, VmSpec

HOST_ADDRESS = "127.0.0.1"
_PROGRAM = Path(__file__).with_name("forward.py")


def ensure_forwarding(
    home: Path, spec: VmSpec, namespace: str, vm: ProcessIdentity, wanted: Sequence[Forward]
) -> tuple[Forward, ...]:
    """Make the VM's ports reachable from the host until the VM's process ends; return where.

    home: the VM's directory. wanted: host ports to use where they are still free. The ports are
    bound when this returns, so that a connection made at once waits instead of failing.
    """
    if not spec.forwards:
        return ()
    running = processes.find(_pid_file(home))
    if running is not None:
        return tuple(wanted)
    with ExitStack() as sockets:
        listeners = [
            (port, sockets.enter_context(_listen(_port_of(wanted, port)))) for port in spec.forwards
        ]
        targets = [f"{at.fileno()}:{spec.nics[0].address}:{port}" for port, at in listeners]
        processes.spawn(
            [
                *(sys.executable, "-I", "-S", str(_PROGRAM)),
                *(str(namespace_path(namespace)), str(vm.pid), *targets),
            ],
            pid_file=_pid_file(home),
            log_file=home / "forward.log",
            pass_fds=[at.fileno() for _, at in listeners],
        )
        return tuple(
            Forward(guest_port=port, host_address=HOST_ADDRESS, host_port=at.getsockname()[1])
            for port, at in listeners
        )


def stop_forwarding(home: Path) -> None:
    """Make the VM's forward process not run. Idempotent."""
    running = processes.find(_pid_file(home))
    if running is not None:
        processes.end(running)
    _pid_file(home).unlink(missing_ok=True)


def free_ports(spec: VmSpec, wanted: Sequence[Forward]) -> tuple[Forward, ...]:
    """Return a host port that nobody listens on now for each of the VM's forwards."""
    forwards = []
    with ExitStack() as sockets:
        for port in spec.forwards:
            at = sockets.enter_context(_listen(_port_of(wanted, port)))
            number = at.getsockname()[1]
            forwards.append(Forward(guest_port=port, host_address=HOST_ADDRESS, host_port=number))
    return tuple(forwards)


def _pid_file(home: Path) -> Path:
    return home / "forward.pid"


def _port_of(wanted: Sequence[Forward], guest_port: int) -> int:
    """Return the host port wanted for it, 0 for any."""
    return next((known.host_port for known in wanted if known.guest_port == guest_port), 0)


def _listen(port: int) -> socket.socket:
    """Return a socket that listens on that port of the host, or on a free one if it is taken."""
    try:
        return socket.create_server((HOST_ADDRESS, port), backlog=128)
    except OSError as error:
        if port == 0:
            raise Unavailable(f"no port of {HOST_ADDRESS} is free: {error.strerror}") from error
    return _listen(0)
