"""A blocking NBD client over a unix socket.

Owns: negotiation, requests in flight, replies simple and structured. Must not know: whose disk it
reads. Used by sweep, hydration, exports' checks and tests. Not thread-safe: one thread per client.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from leeward.core.errors import InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.nbd import wire

STATUS_BYTES_MAX = 1 << 30
"""Longest range one block status request asks about."""
_CHUNK_BYTES_MAX = wire.PAYLOAD_BYTES_MAX + 8
_HEAD = 4


@dataclass(slots=True)
class _Pending:
    """A request whose reply has not ended: where its data goes, what went wrong."""

    offset: int
    length: int
    view: memoryview | None = None
    received: int = 0
    error: tuple[int, str] | None = None
    statuses: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class NbdClient:
    """One connection to one export.

    A reply that says "error" leaves the connection usable: Unavailable for EIO and the like,
    InvalidRequest for EINVAL and EPERM. A peer that is gone, mute for `timeout_seconds` or breaks
    the protocol raises Unavailable, and the client is closed.
    """

    def __init__(self, sock: socket.socket, export: str, contexts: Sequence[str] = ()) -> None:
        """Negotiate on a connected socket; `connect` is the usual way here."""
        self._socket = sock
        self._pending: dict[int, _Pending] = {}
        self._cookie = 0
        self._context_ids: dict[str, int] = {}
        self._contexts = tuple(contexts)
        self._structured = False
        self.export = export
        self.size_bytes = 0
        self.flags = 0
        self.block_sizes = wire.BlockSizes(1, 4096, wire.PAYLOAD_BYTES_MAX)
        try:
            self._negotiate()
        except LeewardError:
            self._socket.close()
            raise
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"NBD export {export!r}: connection lost: {error}") from error

    @classmethod
    def connect(
        cls,
        path: Path | str,
        export: str,
        contexts: Sequence[str] = (wire.BASE_ALLOCATION,),
        *,
        timeout_seconds: float = 30.0,
    ) -> NbdClient:
        """Return a client of `export` at the unix socket `path`, every context agreed on.

        timeout_seconds: longest silence of the peer, while connecting and in every later call.
        Raises: Unavailable; NotFound if the peer knows no such export or context.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_seconds)
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise Unavailable(f"no NBD server at {path}: {error.strerror or error}") from error
        return cls(sock, export, contexts)

    @property
    def is_read_only(self) -> bool:
        return bool(self.flags & wire.EXPORT_READ_ONLY)

    def read(self, offset: int, length: int) -> bytearray:
        """Return the bytes [offset, offset + length)."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (contiguous bytes, any length) from the disk at `offset`."""
        step = min(self.block_sizes.maximum, wire.PAYLOAD_BYTES_MAX)
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            pending = _Pending(offset + at, len(piece), piece)
            self._call(wire.CMD_READ, offset + at, len(piece), pending=pending)

    def pread_many(
        self, ranges: Iterable[tuple[int, int]], *, depth: int = 4
    ) -> Iterator[tuple[int, bytearray]]:
        """Yield (offset, data) for every (offset, length), up to `depth` of them in flight.

        In order of arrival, not of request. A range is taken from `ranges` immediately before its
        request is sent, so that a generator there can note the moment a read began. After an error,
        or when the iterator is dropped half-way, replies in flight are awaited and discarded.
        length: at most 32 MiB each.
        """
        buffers: dict[int, bytearray] = {}

        def views() -> Iterator[tuple[int, memoryview]]:
            for offset, length in ranges:
                data = bytearray(length)
                buffers[id(data)] = data
                yield offset, memoryview(data)

        with closing(self.read_many_into(views(), depth=depth)) as reads:
            for offset, view in reads:
                yield offset, buffers.pop(id(view.obj))

    def read_many_into(
        self, wanted: Iterable[tuple[int, memoryview]], *, depth: int = 4
    ) -> Generator[tuple[int, memoryview]]:
        """Yield (offset, view) when the view holds the disk's bytes from the offset on, up to
        `depth` of them in flight. As `pread_many`."""
        source = iter(wanted)
        views: dict[int, memoryview] = {}
        try:
            while True:
                while len(views) < depth and (ahead := next(source, None)) is not None:
                    offset, view = ahead
                    pending = _Pending(offset, len(view), view)
                    views[self._send(wire.CMD_READ, offset, len(view), pending=pending)] = view
                if not views:
                    return
                cookie, done = self._receive()
                view = views.pop(cookie)
                self._raise_error(done)
                yield done.offset, view
        finally:
            with suppress(Unavailable):
                while views and self._pending:
                    views.pop(self._receive()[0])

    def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return `block_status_all` of the first context named to `connect`."""
        return self.block_status_all(offset, length)[self._contexts[0]]

    def block_status_all(self, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
        """Return per context the [(length, flags)…] that cover [offset, offset + length) exactly.

        Adjacent extents of equal flags are merged. Ranges are asked about front to back.
        """
        if not self._contexts:
            raise InvalidRequest("this NBD client was connected without contexts")
        result: dict[str, list[tuple[int, int]]] = {name: [] for name in self._contexts}
        covered = dict.fromkeys(self._contexts, 0)
        while (at := min(covered.values())) < length:
            asked = min(length - at, STATUS_BYTES_MAX)
            pending = _Pending(offset + at, asked)
            self._call(wire.CMD_BLOCK_STATUS, offset + at, asked, pending=pending)
            for name in self._contexts:
                extents = pending.statuses.get(self._context_ids[name])
                if not extents:
                    raise self._broken("no block status for a context agreed on")
                behind = covered[name] - at  # another context's answer was shorter than ours
                covered[name] += _append(result[name], extents, behind, length - at)
        return result

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Make the disk hold `data` at `offset` (not durable before `flush`)."""
        view = memoryview(data)
        step = min(self.block_sizes.maximum, wire.PAYLOAD_BYTES_MAX)
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            self._call(wire.CMD_WRITE, offset + at, len(piece), payload=piece)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make [offset, offset + length) read as zeros; the peer may punch a hole."""
        self._call(wire.CMD_WRITE_ZEROES, offset, length)

    def announce(self, offset: int, length: int) -> None:
        """Tell the peer, if it wants to know, that the range will be read soon."""
        if self.flags & wire.EXPORT_SEND_CACHE:
            self._call(wire.CMD_CACHE, offset, length)

    def flush(self) -> None:
        """Make every completed write durable at the peer."""
        self._call(wire.CMD_FLUSH, 0, 0)

    def abort(self) -> None:
        """Make a call that another thread waits in end, with Unavailable. Safe from any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection, politely if it still works. Idempotent."""
        if self._socket.fileno() >= 0:
            with suppress(OSError):
                self._socket.sendall(wire.pack_request(wire.Request(0, wire.CMD_DISC, 0, 0, 0)))
        self._socket.close()

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Negotiation

    def _negotiate(self) -> None:
        magic, option_magic, flags = wire.GREETING.unpack(self._take(wire.GREETING.size))
        if magic != wire.MAGIC or option_magic != wire.OPTION_MAGIC or not flags & 1:
            raise self._broken("the peer does not speak newstyle NBD")
        self._socket.sendall(
            wire.CLIENT_FLAGS.pack(flags & (wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES))
        )
        self._structured = self._ask(wire.OPT_STRUCTURED_REPLY)[-1][0] == wire.REP_ACK
        if self._contexts:
            self._agree_contexts()
        replies = self._ask(wire.OPT_GO, wire.pack_name_query(self.export, (wire.INFO_BLOCK_SIZE,)))
        self._expect_ack(replies, f"no NBD export {self.export!r}")
        self._learn([data for reply, data in replies if reply == wire.REP_INFO])

    def _learn(self, infos: list[bytes]) -> None:
        known = False
        for data in infos:
            try:
                info = wire.parse_info(data)
            except InvalidRequest as error:
                raise self._broken(error.message) from error
            if isinstance(info, wire.ExportInfo):
                self.size_bytes, self.flags = info
                known = True
            elif isinstance(info, wire.BlockSizes):
                self.block_sizes = info
        if not known or self.block_sizes.maximum < 512:
            raise self._broken("the peer did not say the export's size")

    def _agree_contexts(self) -> None:
        if not self._structured:
            raise NotFound(f"NBD export {self.export!r}: the peer has no block status")
        replies = self._ask(
            wire.OPT_SET_META_CONTEXT, wire.pack_context_query(self.export, self._contexts)
        )
        self._expect_ack(replies, f"no NBD export {self.export!r}")
        for reply, data in replies:
            if reply == wire.REP_META_CONTEXT and len(data) > 4:
                name = data[4:].decode("utf-8", "replace")
                self._context_ids[name] = int.from_bytes(data[:4], "big")
        for name in self._contexts:
            if name not in self._context_ids:
                raise NotFound(f"NBD export {self.export!r} has no context {name!r}")

    def _ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Return all replies (type, data) to an option, the last being ACK or an error."""
        self._socket.sendall(wire.pack_option(option, data))
        replies: list[tuple[int, bytes]] = []
        while True:
            head = wire.OPTION_REPLY.unpack(self._take(wire.OPTION_REPLY.size))
            magic, answered, reply, length = head
            if magic != wire.OPTION_REPLY_MAGIC or answered != option:
                raise self._broken("the peer's option reply makes no sense")
            if length > wire.OPTION_BYTES_MAX or len(replies) > 1000:
                raise self._broken("the peer's option reply has no end")
            replies.append((reply, bytes(self._take(length))))
            if reply == wire.REP_ACK or reply & wire.REP_ERROR:
                return replies

    def _expect_ack(self, replies: list[tuple[int, bytes]], sentence: str) -> None:
        reply, data = replies[-1]
        if reply == wire.REP_ACK:
            return
        text = data.decode("utf-8", "replace")
        if reply == wire.REP_ERR_UNKNOWN:
            raise NotFound(f"{sentence}: {text}" if text else sentence)
        raise Unavailable(f"{sentence}: refused ({reply & ~wire.REP_ERROR}) {text}".rstrip())

    # Requests and replies

    def _call(
        self,
        kind: int,
        offset: int,
        length: int,
        *,
        pending: _Pending | None = None,
        payload: memoryview | None = None,
    ) -> None:
        """Return when that one request is answered; nothing else may be in flight."""
        pending = pending or _Pending(offset, length)
        self._send(kind, offset, length, pending=pending, payload=payload)
        self._raise_error(self._receive()[1])

    def _send(
        self,
        kind: int,
        offset: int,
        length: int,
        *,
        pending: _Pending,
        payload: memoryview | None = None,
    ) -> int:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidRequest(
                f"[{offset}, {offset + length}) is not within a disk of {self.size_bytes} bytes"
            )
        self._cookie += 1
        request = wire.Request(0, kind, self._cookie, offset, length)
        try:
            self._socket.sendall(wire.pack_request(request))
            if payload is not None:
                self._socket.sendall(payload)
        except OSError as error:
            raise self._broken(f"connection lost: {error}") from error
        self._pending[self._cookie] = pending
        return self._cookie

    def _receive(self) -> tuple[int, _Pending]:
        """Return the next request whose reply is complete."""
        try:
            while True:
                cookie, done = self._receive_one()
                if done:
                    return cookie, self._pending.pop(cookie)
        except OSError as error:
            raise self._broken(f"connection lost: {error}") from error
        except InvalidRequest as error:
            raise self._broken(error.message) from error

    def _receive_one(self) -> tuple[int, bool]:
        """Take one simple reply or one structured chunk; say whether it ends its request."""
        (magic,) = wire.U32.unpack(self._take(_HEAD))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, cookie = wire.SIMPLE_REPLY.unpack_from(b"\0" * 4 + self._take(12))[1:]
            pending = self._waiting(cookie)
            if error:
                pending.error = (error, "")
            elif pending.view is not None:
                self._fill(pending.view)
                pending.received = pending.length
            return cookie, True
        if magic != wire.STRUCTURED_REPLY_MAGIC:
            raise self._broken("the peer's reply has a wrong magic")
        head = wire.CHUNK.unpack(wire.U32.pack(magic) + self._take(wire.CHUNK.size - _HEAD))
        _, flags, kind, cookie, length = head
        self._take_chunk(self._waiting(cookie), kind, length)
        return cookie, bool(flags & wire.CHUNK_DONE)

    def _take_chunk(self, pending: _Pending, kind: int, length: int) -> None:
        if length > _CHUNK_BYTES_MAX:
            raise self._broken("the peer's chunk is longer than anything asked for")
        if kind == wire.CHUNK_OFFSET_DATA and pending.view is not None and length > 8:
            (offset,) = wire.U64.unpack(self._take(8))
            self._fill(self._window(pending, offset, length - 8))
        elif kind == wire.CHUNK_OFFSET_HOLE and pending.view is not None and length == 12:
            offset, count = wire.HOLE.unpack(self._take(12))
            self._window(pending, offset, count)[:] = bytes(count)
        elif kind == wire.CHUNK_BLOCK_STATUS:
            context_id, extents = wire.parse_block_status(self._take(length))
            pending.statuses[context_id] = extents
        elif kind & wire.CHUNK_ERROR_BIT:
            pending.error = wire.parse_error_chunk(self._take(length))
        elif kind != wire.CHUNK_NONE or length:
            raise self._broken(f"the peer's chunk of type {kind} was not asked for")

    def _window(self, pending: _Pending, offset: int, length: int) -> memoryview:
        at = offset - pending.offset
        pending.received += length
        if pending.view is None or at < 0 or at + length > pending.length:
            raise self._broken("the peer sent data that was not asked for")
        if pending.received > pending.length:
            raise self._broken("the peer sent the same data twice")
        return pending.view[at : at + length]

    def _raise_error(self, done: _Pending) -> None:
        if done.error is None:
            if done.view is not None and done.received != done.length:
                raise self._broken("the peer left out part of a read")
            return
        number, text = done.error
        sentence = f"NBD export {self.export!r}: error {number} at offset {done.offset} {text}"
        if number in (wire.EINVAL, wire.EPERM, wire.EOVERFLOW, wire.ENOTSUP):
            raise InvalidRequest(sentence.rstrip())
        raise Unavailable(sentence.rstrip())

    def _waiting(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise self._broken("the peer answered a request never made")
        return pending

    def _take(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise ConnectionResetError("the peer hung up")
            view = view[count:]

    def _broken(self, reason: str) -> Unavailable:
        """Return the error to raise, the connection closed: its state is unknown."""
        self._socket.close()
        self._pending.clear()
        return Unavailable(f"NBD export {self.export!r}: {reason}")


def _append(
    merged: list[tuple[int, int]], extents: list[tuple[int, int]], skip: int, limit: int
) -> int:
    """Append extents from position `skip` up to `limit`, merging equals; return bytes appended."""
    position = appended = 0
    for length, flags in extents:
        start, end = max(position, skip), min(position + length, limit)
        position += length
        if end <= start:
            continue
        appended += end - start
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + end - start, flags)
        else:
            merged.append((end - start, flags))
    return appended
