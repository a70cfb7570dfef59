"""Whatever a client or a server sends, the other side ends typed, soon, and small."""

from __future__ import annotations

import contextlib
import socket
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.core.errors import InvalidRequest, LeewardError
from leeward.nbd import wire
from leeward.nbd.client import NbdClient
from leeward.nbd.handshake import Handshake
from leeward.nbd.server import PIECE_BYTES, STATUS_BYTES_MAX, serve_connection

SIZE = 1 << 40


class Watched:
    """A huge device that notes when it is asked for what it must never be asked for."""

    size_bytes = SIZE

    def __init__(self) -> None:
        self.wrong: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        if not (offset >= 0 and offset + length <= SIZE and 0 < length <= PIECE_BYTES):
            self.wrong.append((offset, length))
        return bytes(length)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        if not (offset >= 0 and offset + length <= SIZE and 0 < length <= STATUS_BYTES_MAX):
            self.wrong.append((offset, length))
        return [(length, True)]


u16 = st.integers(0, 2**16 - 1)
u32 = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1))
u64 = st.one_of(st.integers(0, 2**20), st.integers(SIZE - 9, SIZE + 9), st.integers(0, 2**64 - 1))
requests = st.builds(
    lambda magic, flags, kind, cookie, offset, length: wire.REQUEST.pack(
        magic, flags, kind, cookie, offset, length
    ),
    st.sampled_from([wire.REQUEST_MAGIC] * 9 + [0]),
    st.sampled_from([0, 0, 1, 4, 8, 0xFFFF]),
    st.integers(0, 9),
    u64,
    u64,
    u32,
)
options = st.builds(
    lambda magic, option, length, data: (
        wire.OPTION.pack(magic, option, len(data) if length is None else length) + data
    ),
    st.sampled_from([wire.OPTION_MAGIC] * 9 + [0]),
    st.integers(0, 11),
    st.one_of(st.none(), st.none(), u32),
    st.one_of(
        st.binary(max_size=64),
        st.just(wire.pack_name_query("d", (3,))),
        st.just(wire.pack_context_query("d", ("base:allocation",))),
    ),
)


def _send_and_hang_up(sent: bytes) -> Watched:
    """Return the device after a server has had `sent` from a client that then hangs up."""
    device = Watched()
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    server = threading.Thread(target=serve_connection, args=(theirs, {"d": device}))
    server.start()
    drain = threading.Thread(target=_drain, args=(ours,))
    drain.start()
    with contextlib.suppress(OSError):  # it may have hung up already
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
    server.join(60)
    drain.join(60)
    assert not server.is_alive()
    assert not drain.is_alive()
    ours.close()
    return device


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, max_size=6), st.booleans())
def test_any_requests(sent: list[bytes], structured: bool) -> None:
    opening = wire.CLIENT_FLAGS.pack(3)
    if structured:
        opening += wire.pack_option(wire.OPT_STRUCTURED_REPLY)
        query = wire.pack_context_query("d", ("base:allocation",))
        opening += wire.pack_option(wire.OPT_SET_META_CONTEXT, query)
    opening += wire.pack_option(wire.OPT_GO, wire.pack_name_query("d"))
    device = _send_and_hang_up(opening + b"".join(sent))
    if structured:  # without structured replies a read has to be answered in one piece
        assert device.wrong == []


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([0, 1, 2, 3, 4, 2**32 - 1]), st.lists(options, max_size=6), st.binary())
def test_any_options(flags: int, sent: list[bytes], rest: bytes) -> None:
    assert _send_and_hang_up(wire.CLIENT_FLAGS.pack(flags) + b"".join(sent) + rest).wrong == []


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_parsers_refuse_typed(data: bytes) -> None:
    for parse in (
        wire.parse_name_query,
        wire.parse_context_query,
        wire.parse_info,
        wire.parse_block_status,
        wire.parse_error_chunk,
    ):
        with contextlib.suppress(InvalidRequest):
            parse(data)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda kind, offset, data: (
                    wire.pack_chunk(1, kind, 8 + len(data), done=True)
                    + wire.U64.pack(offset)
                    + data
                ),
                st.sampled_from([0, 1, 2, 5, wire.CHUNK_ERROR, 77]),
                u64,
                st.binary(max_size=12),
            ),
            st.builds(lambda error: wire.pack_simple_reply(1, error), u32),
        ),
        max_size=4,
    )
)
def test_a_client_believes_no_server(replies: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    device = Watched()
    serving = threading.Thread(target=lambda: Handshake(theirs, {"d": device}).run())
    serving.start()
    client = NbdClient(ours, "d", ("base:allocation",))
    serving.join(60)
    theirs.sendall(b"".join(replies))
    theirs.shutdown(socket.SHUT_WR)
    with contextlib.suppress(LeewardError):
        assert len(client.read(0, 16)) == 16
    with contextlib.suppress(LeewardError):
        client.block_status(0, 4096)
    client.close()
    theirs.close()
