"""One disk's NBD connection to the tap: requests into the journal, replies out.

Owns: the receive loop (the hottest in the project), request checks, replies that wait. Must not
know: the watchdog, the agent, other connections. Standard library only; run by tap.py.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from contextlib import suppress

from leeward.mobility.handshake import GREETING, Finished, Handshake, Malformed
from leeward.mobility.journal_writer import (
    KIND_WRITE,
    KIND_ZEROES,
    RECORD,
    RECORD_BYTES,
    Buffer,
    JournalWriter,
)
from leeward.mobility.link import shut_down

REQUEST = struct.Struct(">Q8sQI")  # magic|flags|command, handle, offset, length
REQUEST_BYTES = REQUEST.size
_MAGIC = 0x25609513 << 32
_COMMAND_MASK = 0xFFFFFFFF0000FFFF
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = (_MAGIC | n for n in (0, 1, 2, 3, 4, 6))
_WRITES = frozenset((_WRITE, _WRITE | 1 << 16))  # without and with FUA
_DONE = struct.pack(">II", 0x67446698, 0)
_REFUSED = struct.pack(">II", 0x67446698, errno.EINVAL)

_ROOM_MIN = 64 << 10
"""Receive calls with less room than this would cost more than the carried bytes."""

_IN = select.EPOLLIN


class OutOfRoom(Exception):
    """No free buffer or record: the consumer is behind."""


class Gone(Exception):
    """The peer closed. `politely`: it had said so and nothing of its was in flight."""

    def __init__(self, *, politely: bool) -> None:
        super().__init__("disconnected" if politely else "connection lost")
        self.politely = politely


class Connection:
    """A connection from its greeting on. `disk` is None until it has chosen its export.

    `handle` is called when epoll says so and raises Malformed, OutOfRoom, Gone or OSError when the
    connection must end; the owner then calls `close`.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_end",
        "_epoll",
        "_handshake",
        "_journal",
        "_needed",
        "_outgoing",
        "_recv_into",
        "_send",
        "_size",
        "_start",
        "disk",
        "disks",
        "opened",
        "socket",
    )

    def __init__(
        self,
        connection: socket.socket,
        disks: tuple[tuple[str, int], ...],
        journal: JournalWriter,
        epoll: select.epoll,
    ) -> None:
        """Greet the peer and have `epoll` wait for it. Raises: OSError."""
        connection.setblocking(False)
        epoll.register(connection.fileno(), select.EPOLLIN)
        self.socket = connection
        self.disks = disks
        self.disk: int | None = None
        self.opened = time.monotonic()
        self._recv_into = connection.recv_into
        self._send = connection.send
        self._epoll = epoll
        self._journal = journal
        self._handshake: Handshake | None = Handshake(
            disks, write_bytes_max=write_bytes_max(journal.buffer_bytes)
        )
        self._buffer: Buffer | None = None
        self._start = self._end = 0
        self._needed = REQUEST_BYTES
        self._outgoing = b""
        self._base = self._size = 0
        self._reply(GREETING)

    def handle(self, events: int) -> None:
        """Do what is possible now without waiting. Raises: see the class."""
        if events & select.EPOLLOUT:
            self._flush()
        elif events != _IN:
            self._settle()
        elif self._handshake is not None:
            self._negotiate(self._handshake)
        else:
            self._receive()

    def close(self) -> None:
        """End the connection for everybody who holds it; unparsed bytes are dropped.

        They were not acknowledged: QEMU keeps them in the job's bitmap and sends them again.
        """
        if self._buffer is not None:
            self._journal.retire(self._buffer)
            self._buffer = None
        # The watchdog holds a duplicate: closing alone would neither end the connection nor take
        # it out of epoll.
        self._epoll.unregister(self.socket.fileno())
        shut_down(self.socket)

    def pause(self) -> None:
        """Receive and acknowledge nothing until `go_on`; only its end is noticed."""
        self._epoll.modify(self.socket.fileno(), 0)

    def go_on(self) -> None:
        """Do again what `pause` interrupted."""
        events = select.EPOLLOUT if self._outgoing else _IN
        self._epoll.modify(self.socket.fileno(), events)

    def rest(self) -> None:
        """Begin the buffer anew and give its memory back, if nothing of it is needed any more."""
        buffer = self._buffer
        if buffer is not None and self._start == self._end:
            self._start = self._end = 0
            self._needed = REQUEST_BYTES
            buffer.give_back()

    def _receive(self) -> None:
        """Take what the socket holds into the buffer; journal and answer all complete requests."""
        buffer = self._buffer
        end = self._end
        if buffer is None or buffer.claimed - end < _ROOM_MIN:
            buffer = self._make_room()
            end = self._end
        try:
            count = self._recv_into(buffer.view[end : buffer.claimed])
        except BlockingIOError:
            return
        if not count:
            raise Gone(politely=False)
        end += count
        self._end = end
        if end >= self._needed:
            self._parse(buffer, end)

    def _parse(self, buffer: Buffer, end: int) -> None:
        journal = self._journal
        start = self._start
        number = journal.position
        if number + (end - start) // REQUEST_BYTES > journal.limit and not journal.make_room(
            (end - start) // REQUEST_BYTES
        ):
            raise OutOfRoom("no free index records")
        data = buffer.map
        unpack, pack = REQUEST.unpack_from, RECORD.pack_into
        index, mask = journal.index, journal.capacity - 1
        base, place, size = self._base, buffer.buffer_id, self._size
        now = time.time_ns()
        replies: list[bytes] = []
        done, writes = _DONE, _WRITES
        needed = 0
        while end - start >= REQUEST_BYTES:
            command, handle, offset, length = unpack(data, start)
            if command in writes:
                payload = start + REQUEST_BYTES
                if payload + length > end:
                    needed = payload + length
                    break
                if 0 < length <= size - offset:
                    pack(
                        index,
                        (number & mask) * RECORD_BYTES,
                        base | length << 32,
                        offset,
                        place | payload << 32,
                        now,
                    )
                    number += 1
                elif length:
                    raise Malformed("write outside the disk")
                start = payload + length
                replies.append(done + handle)
            else:
                if command & _COMMAND_MASK == _DISCONNECT:
                    journal.publish(number)
                    raise Gone(politely=True)
                replies.append(self._other(command, offset, length) + handle)
                if command & _COMMAND_MASK == _WRITE_ZEROES and length:
                    zeroes = base - KIND_WRITE + KIND_ZEROES | length << 32
                    pack(index, (number & mask) * RECORD_BYTES, zeroes, offset, 0, now)
                    number += 1
                start += REQUEST_BYTES
        self._start = start
        if start == end:
            self._needed = end + REQUEST_BYTES
        else:
            self._needed = needed or start + REQUEST_BYTES
            if self._needed - start > buffer.size:
                raise Malformed("write larger than a buffer")
        if number != journal.position:
            journal.publish(number)  # before the replies: what is acknowledged is in the journal
        if replies:
            self._reply(b"".join(replies))

    def _other(self, command: int, offset: int, length: int) -> bytes:
        """Return the reply to a request that carries no payload; the caller journals zeroes.

        A trim is acknowledged and ignored. QEMU drops discards in front of a mirror and we do not
        offer trim; should one come all the same, the old content is a legal reading of discarded
        blocks, while zeroes would destroy data on a source that keeps it.
        """
        command &= _COMMAND_MASK
        if command == _WRITE_ZEROES:
            if length > self._size - offset:
                raise Malformed("zeroes outside the disk")
            return _DONE
        if command in (_FLUSH, _TRIM):
            return _DONE
        if command & ~0xFFFF != _MAGIC:
            raise Malformed("request magic")
        return _REFUSED  # reads above all: a tap has nothing to read

    def _make_room(self) -> Buffer:
        """Return the buffer to receive into, with room; a partial request moves to a fresh one."""
        buffer = self._buffer
        if buffer is not None:
            enough = max(self._needed, self._end + _ROOM_MIN)
            if enough <= buffer.size:
                if not buffer.claim():
                    raise OutOfRoom("no shared memory left")
                return buffer
            if self._end < self._needed <= buffer.size and self._end < buffer.claimed:
                return buffer  # the tail of one request still fits
        fresh = self._journal.take_buffer()
        if fresh is None:
            raise OutOfRoom("no free buffer")
        pending = self._end - self._start
        while fresh.claimed < pending + _ROOM_MIN and fresh.claimed < fresh.size:
            if not fresh.claim():
                self._journal.retire(fresh)
                raise OutOfRoom("no shared memory left")
        if buffer is not None:
            fresh.view[:pending] = buffer.view[self._start : self._end]
            self._journal.retire(buffer)
        self._buffer = fresh
        self._needed -= self._start
        self._start, self._end = 0, pending
        return fresh

    def _reply(self, data: bytes) -> None:
        """Send `data`; if the peer does not take it now, stop receiving until it does."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent != len(data):
            self._outgoing = data[sent:]
            self._epoll.modify(self.socket.fileno(), select.EPOLLOUT)

    def _flush(self) -> None:
        try:
            self._outgoing = self._outgoing[self._send(self._outgoing) :]
        except BlockingIOError:
            return
        if not self._outgoing:
            self._epoll.modify(self.socket.fileno(), _IN)

    def _negotiate(self, handshake: Handshake) -> None:
        try:
            data = self.socket.recv(_ROOM_MIN)
        except BlockingIOError:
            return
        if not data:
            raise Gone(politely=True)
        try:
            reply = handshake.feed(data)
        except Finished as finished:
            self._reply(finished.reply)
            raise Gone(politely=True) from None
        if reply:
            self._reply(reply)
        if handshake.disk is None:
            return
        self._begin(handshake.disk, bytes(handshake.rest))

    def _begin(self, disk: int, rest: bytes) -> None:
        self._handshake = None
        self.disk = disk
        self._size = self.disks[disk][1]
        self._base = KIND_WRITE | disk << 8
        buffer = self._make_room()
        buffer.view[: len(rest)] = rest
        self._end = len(rest)
        if rest:
            self._parse(buffer, self._end)

    def _settle(self) -> None:
        """Say how a connection that the other side has closed ended.

        What is left unread is not journalled: nobody waits for its acknowledgement any more, and a
        tap that was stopped for long must not put old writes behind those of a newer connection.
        A lone disconnect request is a polite end.
        """
        if self._handshake is not None:
            raise Gone(politely=True)
        left = b""
        if self._buffer is not None:
            left = bytes(self._buffer.view[self._start : self._end][: REQUEST_BYTES + 1])
        with suppress(OSError):
            while len(left) <= REQUEST_BYTES:
                data = self.socket.recv(_ROOM_MIN)
                if not data:
                    break
                left += data
        polite = len(left) == REQUEST_BYTES and REQUEST.unpack(left)[0] == _DISCONNECT
        raise Gone(politely=polite)


def write_bytes_max(buffer_bytes: int) -> int:
    """Return the largest write to ask the peer for: a power of two, at most half a buffer."""
    return min(1 << ((buffer_bytes // 2).bit_length() - 1), 32 << 20)
