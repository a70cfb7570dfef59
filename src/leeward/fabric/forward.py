"""A process that carries TCP connections from the host to a VM inside a network namespace.

`python forward.py NETNS PID LISTENER:ADDRESS:PORT ...`: it accepts on listening sockets that it
inherits, which belong to the host, connects from inside the namespace, and ends with process PID.
Owns: copying bytes both ways. Must not know: Leeward; it imports nothing of it, to start quickly.
"""

import asyncio
import ctypes
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable

Carrier = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 10.0
ATTEMPT_SECONDS = 0.25
PAUSE_SECONDS = 0.05
CONNECTIONS_MAX = 1024
PIECE_BYTES = 64 * 1024


def main() -> None:
    """Serve until the VM's process has ended."""
    namespace, pid, *forwards = sys.argv[1:]
    watched = os.pidfd_open(int(pid))  # fails, and ends us, if the VM has ended already
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)
    asyncio.run(serve(watched, [parse(forward) for forward in forwards]))


def parse(forward: str) -> tuple[socket.socket, str, int]:
    """Return (listening socket, guest's address, guest's port) of one argument."""
    listener, address, port = forward.split(":")
    return socket.socket(fileno=int(listener)), address, int(port)


async def serve(watched: int, forwards: list[tuple[socket.socket, str, int]]) -> None:
    """Carry connections until `watched` (a pidfd) says that the VM has ended."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    free = asyncio.Semaphore(CONNECTIONS_MAX)
    for listener, address, port in forwards:
        await asyncio.start_server(carrier(address, port, free), sock=listener, limit=PIECE_BYTES)
    await ended.wait()


def carrier(address: str, port: int, free: asyncio.Semaphore) -> Carrier:
    """Return what carries one accepted connection to the guest's port."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with free:
            try:
                guest_reader, guest_writer = await connect(address, port)
            except OSError:
                writer.transport.abort()  # nobody there: say so by a reset, as the guest would
                return
            await asyncio.gather(copy(reader, guest_writer), copy(guest_reader, writer))
            guest_writer.close()
            writer.close()

    return carry


async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to the guest, which may still be booting. Raises: OSError.

    Asked again often: left to itself TCP would notice only seconds later that the guest is up.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                return await asyncio.open_connection(address, port, limit=PIECE_BYTES)
        except ConnectionRefusedError:
            raise
        except OSError:  # TimeoutError is one
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end of the stream, then pass the end on."""
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


if __name__ == "__main__":
    main()
