"""The server's half of NBD negotiation.

Owns: options up to the choice of one export. Must not know: requests that follow, what devices
hold. Called by server.py with a connected socket; the client's every length is checked.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from leeward.core.errors import InvalidRequest, LeewardError, NotFound
from leeward.nbd import wire

OPTIONS_MAX = 256
"""Options a client may send before it has to make up its mind."""
HANDSHAKE_SECONDS = 30.0
"""Longest silence of a client that negotiates."""
BLOCK_SIZES = wire.BlockSizes(1, 64 << 10, wire.PAYLOAD_BYTES_MAX)
ALLOCATION_CONTEXT_ID = 1
EXPORT_FLAGS = (
    wire.EXPORT_HAS_FLAGS
    | wire.EXPORT_READ_ONLY
    | wire.EXPORT_SEND_FLUSH
    | wire.EXPORT_CAN_MULTI_CONN
    | wire.EXPORT_SEND_CACHE
)

Buffer = bytes | bytearray | memoryview


class ReadDevice(Protocol):
    """What is exported. Thread-safe; ranges asked for lie within the disk."""

    @property
    def size_bytes(self) -> int:
        """The disk's size; it does not change."""

    def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`. Any error reaches the client as EIO."""

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return [(length, is_data)…] covering the range; what is no data reads as zeros."""


@runtime_checkable
class ForewarnedDevice(ReadDevice, Protocol):
    """A device that makes use of NBD_CMD_CACHE."""

    def expect(self, offset: int, length: int) -> None:
        """Take note that the range, or some of it, will be read soon. Returns at once."""


Exports = Mapping[str, ReadDevice]
"""Export name → device. Looking a name up may wait, and may raise a LeewardError, whose sentence
the client is told; iterating must do neither."""


@dataclass(frozen=True, slots=True)
class Session:
    """What was agreed on."""

    device: ReadDevice
    structured: bool
    allocation: bool
    """The client may ask for block status."""


class Handshake:
    """One negotiation on one socket."""

    def __init__(self, sock: socket.socket, exports: Exports) -> None:
        self._socket = sock
        self._exports = exports
        self._structured = False
        self._allocation_of: str | None = None
        self._no_zeroes = False

    def run(self) -> Session | None:
        """Return what was agreed on, None if the client left without choosing an export.

        Raises: InvalidRequest when the client breaks the protocol; OSError when it is gone.
        """
        self._socket.settimeout(HANDSHAKE_SECONDS)
        flags = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
        self._socket.sendall(wire.GREETING.pack(wire.MAGIC, wire.OPTION_MAGIC, flags))
        (chosen,) = wire.CLIENT_FLAGS.unpack(receive(self._socket, wire.CLIENT_FLAGS.size))
        if chosen & ~flags or not chosen & wire.FLAG_FIXED_NEWSTYLE:
            raise InvalidRequest("NBD client does not speak fixed newstyle")
        self._no_zeroes = bool(chosen & wire.FLAG_NO_ZEROES)
        for _ in range(OPTIONS_MAX):
            option, data = self._take_option()
            if option == wire.OPT_ABORT:
                self._reply(option, wire.REP_ACK)
                return None
            if option == wire.OPT_EXPORT_NAME:
                return self._export_name(data)
            session = self._answer(option, data)
            if session:
                return session
        raise InvalidRequest("NBD client negotiates without end")

    def _take_option(self) -> tuple[int, bytes]:
        head = receive(self._socket, wire.OPTION.size)
        magic, option, length = wire.OPTION.unpack(head)
        if magic != wire.OPTION_MAGIC:
            raise InvalidRequest("NBD option has a wrong magic")
        if length > wire.OPTION_BYTES_MAX:
            raise InvalidRequest(f"NBD option of {length} bytes")
        return option, receive(self._socket, length)

    def _answer(self, option: int, data: bytes) -> Session | None:
        """Reply to one option; an error reply keeps the negotiation going."""
        try:
            match option:
                case wire.OPT_GO | wire.OPT_INFO:
                    return self._go(option, wire.parse_name_query(data))
                case wire.OPT_LIST:
                    self._list(data)
                case wire.OPT_STRUCTURED_REPLY:
                    if data:
                        raise InvalidRequest("OPT_STRUCTURED_REPLY carries no data")
                    self._structured = True
                    self._reply(option, wire.REP_ACK)
                case wire.OPT_SET_META_CONTEXT | wire.OPT_LIST_META_CONTEXT:
                    self._contexts(option, wire.parse_context_query(data))
                case _:
                    self._reply(option, wire.REP_ERR_UNSUP)
        except InvalidRequest as error:
            self._reply(option, wire.REP_ERR_INVALID, error.message)
        except NotFound as error:
            self._reply(option, wire.REP_ERR_UNKNOWN, str(error))
        except LeewardError as error:
            self._reply(option, wire.REP_ERR_POLICY, str(error))
        return None

    def _go(self, option: int, query: wire.NameQuery) -> Session | None:
        device = self._device(query.export)
        info = wire.ExportInfo(device.size_bytes, EXPORT_FLAGS)
        self._reply(option, wire.REP_INFO, wire.pack_export_info(info))
        self._reply(option, wire.REP_INFO, wire.pack_block_sizes(BLOCK_SIZES))
        self._reply(option, wire.REP_ACK)
        return self._session(query.export, device) if option == wire.OPT_GO else None

    def _export_name(self, data: bytes) -> Session:
        """Choose an export the old way, whose only refusal is to hang up."""
        try:
            name = data.decode()
            device = self._device(name)
        except (UnicodeDecodeError, LeewardError) as error:
            raise InvalidRequest(f"NBD client asked for no export of ours: {error}") from error
        padding = b"" if self._no_zeroes else bytes(124)
        self._socket.sendall(
            device.size_bytes.to_bytes(8, "big") + EXPORT_FLAGS.to_bytes(2, "big") + padding
        )
        return self._session(name, device)

    def _session(self, name: str, device: ReadDevice) -> Session:
        self._socket.settimeout(None)  # a paused guest is silent for as long as it likes
        return Session(device, self._structured, self._allocation_of == name)

    def _list(self, data: bytes) -> None:
        if data:
            raise InvalidRequest("OPT_LIST carries no data")
        for name in self._exports:
            encoded = name.encode()
            body = wire.U32.pack(len(encoded)) + encoded
            self._reply(wire.OPT_LIST, wire.REP_SERVER, body)
        self._reply(wire.OPT_LIST, wire.REP_ACK)

    def _contexts(self, option: int, query: wire.ContextQuery) -> None:
        if not self._structured:
            raise InvalidRequest("meta contexts need structured replies")
        listing = option == wire.OPT_LIST_META_CONTEXT
        if not listing:
            self._allocation_of = None  # a new choice forgets the one before, even if it fails
        self._device(query.export)
        if wire.BASE_ALLOCATION in query.queries or (
            listing and (not query.queries or "base:" in query.queries)
        ):
            context_id = wire.U32.pack(0 if listing else ALLOCATION_CONTEXT_ID)
            name = wire.BASE_ALLOCATION.encode()
            self._reply(option, wire.REP_META_CONTEXT, context_id + name)
            if not listing:
                self._allocation_of = query.export
        self._reply(option, wire.REP_ACK)

    def _device(self, name: str) -> ReadDevice:
        try:
            return self._exports[name]
        except KeyError:
            raise NotFound(f"no export {name!r}") from None

    def _reply(self, option: int, reply: int, data: bytes | str = b"") -> None:
        body = data.encode()[: wire.STRING_BYTES_MAX] if isinstance(data, str) else data
        self._socket.sendall(wire.pack_option_reply(option, reply, body))


def receive(sock: socket.socket, length: int) -> bytes:
    """Return exactly `length` bytes. Raises: ConnectionResetError when the peer hung up."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the peer hung up")
        view = view[count:]
    return bytes(data)
