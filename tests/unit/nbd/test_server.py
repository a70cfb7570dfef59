"""The server over a socket pair, against our own client and against bytes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from leeward.core.errors import DataIntegrity, InvalidRequest, NotFound, Unavailable
from leeward.nbd import wire
from leeward.nbd.client import NbdClient
from leeward.nbd.server import Exports, serve_connection

SIZE = 8 << 20


class Memory:
    """Data where the pattern is not zero: the first and third MiB."""

    def __init__(self) -> None:
        self.size_bytes = SIZE
        self.content = b"\1" * (1 << 20) + bytes(1 << 20) + b"\3" * (1 << 20) + bytes(5 << 20)
        self.failing: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.slow_offset = -1

    def read(self, offset: int, length: int) -> bytes:
        if self.failing:
            raise self.failing
        if offset == self.slow_offset:
            assert self.gate.wait(60)
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        if self.failing:
            raise self.failing
        step = 4096
        return [(step, self.content[at] != 0) for at in range(offset, offset + length, step)]


@contextmanager
def served(exports: Exports) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    thread = threading.Thread(target=serve_connection, args=(theirs, exports))
    thread.start()
    yield ours
    ours.close()
    thread.join(60)
    assert not thread.is_alive()
    for left in threading.enumerate():
        if left.name == "nbd-request":
            left.join(60)
    assert theirs.fileno() == -1


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def client(memory: Memory) -> Iterator[NbdClient]:
    with (
        served({"d": memory}) as sock,
        NbdClient(sock, "d", (wire.BASE_ALLOCATION,)) as client,
    ):
        yield client


def test_reads_at_any_alignment_and_length(client: NbdClient, memory: Memory) -> None:
    assert client.is_read_only
    assert client.size_bytes == SIZE
    for offset, length in ((0, 1), (3, 70_001), (SIZE - 5, 5), (0, SIZE), (17, 0)):
        assert client.read(offset, length) == memory.content[offset : offset + length]


def test_block_status_merges_and_covers(client: NbdClient) -> None:
    hole = wire.STATE_HOLE | wire.STATE_ZERO
    mib = 1 << 20
    assert client.block_status(0, SIZE) == [(mib, 0), (mib, hole), (mib, 0), (5 * mib, hole)]


def test_a_slow_read_delays_no_other(client: NbdClient, memory: Memory) -> None:
    memory.slow_offset = 0
    memory.gate.clear()
    reads = client.pread_many(iter([(0, 512), (4096, 512), (8192, 512)]), depth=3)
    assert {next(reads)[0], next(reads)[0]} == {4096, 8192}
    memory.gate.set()
    assert next(reads) == (0, bytearray(b"\1" * 512))


@pytest.mark.parametrize(
    "error", [Unavailable("away"), DataIntegrity("rot"), OSError(5, "bad"), ZeroDivisionError()]
)
def test_errors_of_the_device_are_eio_and_leave_the_connection(
    client: NbdClient, memory: Memory, error: Exception
) -> None:
    memory.failing = error
    with pytest.raises(Unavailable, match="error 5"):
        client.read(0, 4096)
    with pytest.raises(Unavailable, match="error 5"):
        client.block_status(0, 4096)
    memory.failing = None
    assert client.read(0, 2) == b"\1\1"


def test_writes_are_refused_and_leave_the_connection(client: NbdClient) -> None:
    with pytest.raises(InvalidRequest):
        client.write(0, bytes(5 << 20))
    with pytest.raises(InvalidRequest):
        client.write_zeroes(0, 4096)
    client.flush()
    assert client.read(0, 2) == b"\1\1"


def test_an_export_that_cannot_be_opened_says_why() -> None:
    class Broken(dict[str, Memory]):
        def __missing__(self, name: str) -> Memory:
            raise Unavailable("its store is away")

    with served(Broken()) as sock, pytest.raises(Unavailable, match="its store is away"):
        NbdClient(sock, "d")
    with served({"d": Memory()}) as sock, pytest.raises(NotFound):
        NbdClient(sock, "x")


def test_a_client_without_structured_replies_is_served(memory: Memory) -> None:
    with served({"d": memory}) as sock:
        sock.recv(18)
        sock.sendall(wire.CLIENT_FLAGS.pack(1))
        sock.sendall(wire.pack_option(wire.OPT_EXPORT_NAME, b"d"))
        reply = sock.recv(10 + 124, socket.MSG_WAITALL)
        assert struct.unpack_from(">Q", reply)[0] == SIZE
        for kind, length, error in (
            (wire.CMD_READ, 8192, 0),
            (wire.CMD_BLOCK_STATUS, 8192, wire.EINVAL),
            (99, 0, wire.EINVAL),
            (wire.CMD_TRIM, 4096, wire.EPERM),
        ):
            sock.sendall(wire.pack_request(wire.Request(0, kind, 7, 0, length)))
            reply = sock.recv(16, socket.MSG_WAITALL)
            assert reply == wire.pack_simple_reply(7, error)
            if kind == wire.CMD_READ:
                assert sock.recv(length, socket.MSG_WAITALL) == memory.content[:length]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 2**32 - 1), (0, wire.PAYLOAD_BYTES_MAX + 1)],
)
def test_reads_beyond_any_bound_are_refused(memory: Memory, offset: int, length: int) -> None:
    with served({"d": memory}) as sock:
        client = NbdClient(sock, "d")
        client.size_bytes = 2**65
        with pytest.raises(InvalidRequest):
            client._call(wire.CMD_READ, offset, length)
        assert client.read(0, 1) == b"\1"


@pytest.mark.parametrize(
    "request_bytes",
    [b"\0" * 28, wire.pack_request(wire.Request(0, wire.CMD_WRITE, 1, 0, 0xFFFFFFFF))],
)
def test_a_client_that_breaks_the_protocol_is_cut_off(memory: Memory, request_bytes: bytes) -> None:
    with served({"d": memory}) as sock:
        NbdClient(sock, "d")
        sock.sendall(request_bytes)
        assert sock.recv(1) == b""
