"""A read-only NBD server over connected sockets.

Owns: requests in flight, replies, connections accepted and ended. Must not know: what a device
reads from, nor why a read fails. A request is never trusted; a client that lies loses its
connection and nothing else.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from leeward.core.errors import InvalidRequest
from leeward.nbd import wire
from leeward.nbd.handshake import (
    ALLOCATION_CONTEXT_ID,
    Buffer,
    Exports,
    ForewarnedDevice,
    Handshake,
    ReadDevice,
    Session,
    receive,
)
from leeward.observability.log import get_logger

__all__ = ["Exports", "NbdServer", "ReadDevice", "serve_connection"]

REQUESTS_IN_FLIGHT_MAX = 16
"""Requests of one connection carried out at once; QEMU sends no more."""
CONNECTIONS_MAX = 64
PIECE_BYTES = 1 << 20
"""A long read is answered in pieces, so that sixteen of them hold 16 MiB and not 512."""
STATUS_BYTES_MAX = 1 << 30
STATUS_EXTENTS_MAX = 4096
"""Bounds of one block status reply; a client asks again for the rest."""


def serve_connection(sock: socket.socket, exports: Exports) -> None:
    """Answer one client until it leaves or breaks the protocol; then the socket is closed."""
    try:
        session = Handshake(sock, exports).run()
        if session is None:
            sock.close()
            return
    except InvalidRequest as error:
        get_logger().warning("nbd_client_refused", reason=error.message)
        sock.close()
        return
    except OSError:
        sock.close()  # gone before it chose an export: nothing to say
        return
    _Transmission(sock, session).work()


class _Transmission:
    """One connection after the handshake: threads that take turns at receiving.

    Whoever has received a request carries it out and replies, while the next thread receives: a
    slow read delays no other, and a lone request costs no hand-over. The last thread closes.
    """

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self._socket = sock
        self._device = session.device
        self._structured = session.structured
        self._allocation = session.allocation
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._counts = threading.Lock()
        self._threads = 1
        self._idle = 0
        self._ended = False

    def work(self) -> None:
        """Carry out requests until the connection has ended."""
        try:
            while (request := self._next()) is not None:
                self._carry_out(request)
        except InvalidRequest as error:
            get_logger().warning("nbd_client_broke_protocol", reason=error.message)
        except OSError:
            pass  # the client hung up: its right
        finally:
            self._leave()

    def _next(self) -> wire.Request | None:
        with self._counts:
            self._idle += 1
        with self._receiving:
            try:
                request = None if self._ended else self._receive()
                self._ended = request is None
            except BaseException:
                self._ended = True
                raise
            finally:
                self._enlist(is_needed=not self._ended)
        return request

    def _receive(self) -> wire.Request | None:
        """Return the next request, a refused write's payload swallowed; None at the end."""
        request = wire.parse_request(receive(self._socket, wire.REQUEST.size))
        if request.kind == wire.CMD_DISC:
            return None
        if request.kind == wire.CMD_WRITE:
            if request.length > wire.PAYLOAD_BYTES_MAX:
                raise InvalidRequest(f"NBD write of {request.length} bytes")
            for at in range(0, request.length, PIECE_BYTES):
                receive(self._socket, min(PIECE_BYTES, request.length - at))
        return request

    def _enlist(self, *, is_needed: bool) -> None:
        """Count the caller as busy; start another thread if nobody is left to receive."""
        with self._counts:
            self._idle -= 1
            if not is_needed or self._idle or self._threads == REQUESTS_IN_FLIGHT_MAX:
                return
            self._threads += 1
        threading.Thread(target=self.work, name="nbd-request", daemon=True).start()

    def _leave(self) -> None:
        with self._counts:
            self._threads -= 1
            is_last = self._threads == 0
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that receives
        if is_last:
            self._socket.close()

    def _carry_out(self, request: wire.Request) -> None:
        match request.kind:
            case wire.CMD_READ:
                self._read(request)
            case wire.CMD_BLOCK_STATUS:
                self._block_status(request)
            case wire.CMD_FLUSH:
                self._succeed(request)
            case wire.CMD_CACHE:
                self._cache(request)
            case wire.CMD_WRITE | wire.CMD_TRIM | wire.CMD_WRITE_ZEROES:
                self._fail(request, wire.EPERM, "the export is read-only")
            case _:
                self._fail(request, wire.EINVAL, f"no request of type {request.kind}")

    def _read(self, request: wire.Request) -> None:
        if request.flags or not self._is_within(request) or request.length > wire.PAYLOAD_BYTES_MAX:
            self._fail(request, wire.EINVAL, "read with flags, beyond the end or too long")
        elif not request.length:
            self._succeed(request)
        elif self._structured:
            self._read_in_pieces(request)
        else:
            data = self._device_read(request, request.offset, request.length)
            if data is not None:
                self._send((wire.pack_simple_reply(request.cookie), data))

    def _read_in_pieces(self, request: wire.Request) -> None:
        end = request.offset + request.length
        for offset in range(request.offset, end, PIECE_BYTES):
            length = min(PIECE_BYTES, end - offset)
            data = self._device_read(request, offset, length)
            if data is None:
                return
            head = wire.pack_chunk(
                request.cookie,
                wire.CHUNK_OFFSET_DATA,
                wire.U64.size + length,
                done=offset + length == end,
            )
            self._send((head + wire.U64.pack(offset), data))

    def _device_read(self, request: wire.Request, offset: int, length: int) -> Buffer | None:
        """Return the bytes, or None when the client has been told of an error."""
        try:
            data = self._device.read(offset, length)
            if len(data) == length:
                return data
            reason = f"{len(data)} bytes instead of {length}"
        except Exception as error:  # whatever the device's trouble, the client must hear EIO
            reason = f"{type(error).__name__}: {error}"
        get_logger().error("nbd_read_failed", offset=offset, length=length, reason=reason)
        self._fail(request, wire.EIO, reason)
        return None

    def _block_status(self, request: wire.Request) -> None:
        if (
            not self._allocation
            or request.flags & ~wire.CMD_FLAG_REQ_ONE
            or not request.length
            or not self._is_within(request)
        ):
            self._fail(request, wire.EINVAL, "block status not agreed on, or beyond the end")
            return
        try:
            extents = self._device.extents(request.offset, min(request.length, STATUS_BYTES_MAX))
            wanted = _status(extents, 1 if request.flags else STATUS_EXTENTS_MAX)
        except Exception as error:  # as in _device_read
            reason = f"{type(error).__name__}: {error}"
            get_logger().error("nbd_block_status_failed", offset=request.offset, reason=reason)
            self._fail(request, wire.EIO, reason)
            return
        body = wire.pack_block_status(ALLOCATION_CONTEXT_ID, wanted)
        self._send(
            (wire.pack_chunk(request.cookie, wire.CHUNK_BLOCK_STATUS, len(body), done=True), body)
        )

    def _cache(self, request: wire.Request) -> None:
        if request.flags or not self._is_within(request):
            self._fail(request, wire.EINVAL, "cache with flags or beyond the end")
            return
        if isinstance(self._device, ForewarnedDevice):
            self._device.expect(request.offset, request.length)
        self._succeed(request)

    def _is_within(self, request: wire.Request) -> bool:
        return request.offset + request.length <= self._device.size_bytes

    def _succeed(self, request: wire.Request) -> None:
        if self._structured and request.kind == wire.CMD_READ:
            self._send((wire.pack_chunk(request.cookie, wire.CHUNK_NONE, 0, done=True),))
        else:
            self._send((wire.pack_simple_reply(request.cookie),))

    def _fail(self, request: wire.Request, error: int, reason: str) -> None:
        if self._structured:
            self._send((wire.pack_error_chunk(request.cookie, error, reason),))
        else:
            self._send((wire.pack_simple_reply(request.cookie, error),))

    def _send(self, parts: Sequence[Buffer]) -> None:
        """Send the parts whole, not interleaved with another thread's."""
        with self._sending:
            sent = self._socket.sendmsg(parts)
            for part in parts:
                if sent < len(part):
                    self._socket.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))


def _status(extents: Sequence[tuple[int, bool]], count_max: int) -> list[tuple[int, int]]:
    """Return at most `count_max` merged (length, flags) extents. Raises: ValueError if none."""
    merged: list[tuple[int, int]] = []
    for length, is_data in extents:
        flags = 0 if is_data else wire.STATE_HOLE | wire.STATE_ZERO
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + length, flags)
        elif length:
            if len(merged) == count_max:
                break
            merged.append((length, flags))
    if not merged:
        raise ValueError("the device knows no extents there")
    return merged


class NbdServer:
    """Accepts connections on a listening socket and serves each in threads of its own."""

    def __init__(self, listener: socket.socket, exports: Exports) -> None:
        """listener: bound and listening; it stays the caller's to close."""
        self._listener = listener
        self._exports = exports
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._stopped = threading.Event()

    def serve_forever(self) -> None:
        """Accept until `stop`."""
        self._listener.settimeout(0.5)
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of descriptors, say: others end, then it works again
                get_logger().warning("nbd_accept_failed", reason=str(error))
                time.sleep(0.1)
                continue
            self._start(connection)

    def stop(self) -> None:
        """Accept no more and end every connection. Idempotent; safe from any thread."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _start(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        with self._lock:
            if self._stopped.is_set() or len(self._connections) >= CONNECTIONS_MAX:
                connection.close()
                return
            self._connections.add(connection)
        threading.Thread(
            target=self._serve, args=(connection,), name="nbd-connection", daemon=True
        ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            serve_connection(connection, self._exports)
        finally:
            with self._lock:
                self._connections.discard(connection)
