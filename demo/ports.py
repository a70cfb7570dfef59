"""TCP ports for what the demo, the scenarios and the tests start.

Owns: choosing them. They lie below the range from which the kernel takes the local ports of
outgoing connections: so none of those takes it in the moment before it is listened on, or while
what listened there is dead, and nobody who calls a dead port there is connected to itself.
"""

from __future__ import annotations

import itertools
import random
import socket

_PORTS = range(20_000, 32_000)
_chance = random.Random()
_next = itertools.count(_chance.randrange(len(_PORTS)))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now and that this process has not returned.

    Raises: RuntimeError when there is none.
    """
    for tried in itertools.islice(_next, len(_PORTS)):
        port = _PORTS[tried % len(_PORTS)]
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")
