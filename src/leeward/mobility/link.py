"""Messages between agent, tap and watchdog: one JSON object per packet, descriptors attached.

Owns: packing, sending, receiving on SOCK_SEQPACKET sockets. Must not know: what the messages mean.
Standard library only: tap and watchdog import it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MESSAGE_BYTES_MAX = 16 << 10
DISCARD_BYTES = 256 << 10
"""Read at once from a connection that has ended: about what a full socket holds."""
BEAT = b"."
"""A heartbeat is one byte, in both directions."""

Message = dict[str, object]


class LinkClosed(Exception):
    """The peer is gone."""


def connect(path: Path, *, timeout_seconds: float | None) -> socket.socket:
    """Return a link to whoever listens at `path`; None makes it non-blocking. Raises: OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.settimeout(0 if timeout_seconds is None else timeout_seconds)
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    return link


def listen(path: Path, kind: socket.SocketKind, *, backlog: int = 64) -> socket.socket:
    """Return a non-blocking listener at `path`; it replaces what was there in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        new.unlink()
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(str(new))
        listener.listen(backlog)
        new.rename(path)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def inode(path: Path) -> int | None:
    """Return which file is at `path`; None if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def send(link: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises: OSError (BlockingIOError if the peer does not read)."""
    socket.send_fds(link, [json.dumps(message).encode()], list(descriptors))


def receive(link: socket.socket) -> tuple[Message | None, list[int]]:
    """Return the next message and its descriptors, now the caller's; None for a heartbeat.

    Raises: BlockingIOError or TimeoutError if there is none, LinkClosed if there never will be.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(
            link, MESSAGE_BYTES_MAX, 4, socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, TimeoutError):
        raise
    except OSError as error:
        raise LinkClosed from error
    if data == BEAT:
        return None, descriptors
    try:
        message = json.loads(data) if data and not flags & socket.MSG_TRUNC else None
    except ValueError:
        message = None
    if not isinstance(message, dict):  # end of file, or a peer that is not one of ours
        for descriptor in descriptors:
            os.close(descriptor)
        raise LinkClosed
    return message, descriptors


def raise_priority() -> None:
    """Be scheduled before ordinary processes and killed after them, where that is permitted.

    A tap that waits for a processor makes the guest wait.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-500")


def hang_up(connection: socket.socket) -> None:
    """End a connection for every process that holds it; what it had received stays queued."""
    with suppress(OSError):  # the peer may have been first
        connection.shutdown(socket.SHUT_RDWR)


def shut_down(connection: socket.socket) -> None:
    """End a connection for every process that holds it, discard what it had received, close it.

    Hanging up does not wake a QEMU that waits for room to send: it waits for "writable" alone, and
    the socket stays full for as long as anybody holds it unread. Only emptying it frees the guest.
    """
    hang_up(connection)
    with suppress(OSError):
        connection.setblocking(False)
        while connection.recv(DISCARD_BYTES):
            pass
    connection.close()
