"""The tap's receiving end in pieces: requests that arrive byte by byte, and cuts between them.

Owns: a guest model that writes through the tap's own connection code, its bytes delivered in
fragments at random. Must not know: stores, QEMU. Used by the campaign for the promise that a cut
holds whole requests only, in the order in which they were acknowledged.
"""

from __future__ import annotations

import random
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from leeward.core.units import MIB, SECTOR
from leeward.mobility.connection import REQUEST, Connection
from leeward.mobility.cut import CutDisk, build_cut
from leeward.mobility.journal import JournalReader
from leeward.mobility.journal_writer import KIND_MARK, JournalWriter
from leeward.replica.segment import ZEROES

DISKS = (CutDisk("sys", 256 << 10), CutDisk("data", 128 << 10))
FRAGMENTS = 120
CUT_SHARE = 0.3
"""Of the fragments after which a cut is made."""
_MAGIC = 0x25609513
_WRITE, _WRITE_ZEROES = 1, 6
_CLIENT_FLAGS = 3
_OPTION = struct.Struct(">QII")
_OPTION_MAGIC = 0x49484156454F5054
_GO = 7
_REPLY_BYTES = 16


@dataclass
class _Request:
    offset: int
    data: bytes
    wire: bytes
    sent: int = 0


class Guest:
    """One guest with a connection to the tap for every disk. Used by one thread."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._chance = random.Random(seed)
        self._writer = JournalWriter(
            directory / "journal", instance=1, buffer_bytes=MIB, buffer_count=8
        )
        self._reader = JournalReader(directory / "journal")
        self._epoll = select.epoll()
        self._peers: list[socket.socket] = []
        self._connections: list[Connection] = []
        for disk in DISKS:
            self._connect(disk.name)
        self._arriving: dict[int, _Request] = {}
        self._taken = 0
        self.written = [bytearray(disk.size_bytes) for disk in DISKS]
        self.replica = [bytearray(disk.size_bytes) for disk in DISKS]

    def _connect(self, disk: str) -> None:
        ours, theirs = socket.socketpair()
        connection = Connection(
            theirs, tuple((d.name, d.size_bytes) for d in DISKS), self._writer, self._epoll
        )
        self._peers.append(ours)
        self._connections.append(connection)
        name = disk.encode()
        go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        ours.sendall(struct.pack(">I", _CLIENT_FLAGS) + _OPTION.pack(_OPTION_MAGIC, _GO, len(go)))
        ours.sendall(go)
        connection.handle(select.EPOLLIN)
        assert connection.disk is not None, "the tap did not take the connection"
        ours.recv(1 << 16)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for peer in self._peers:
            peer.close()
        self._epoll.close()
        self._reader.close()
        self._writer.close()

    def run(self) -> str:
        """Return what a cut held that it must not have, "" if none did."""
        for _ in range(FRAGMENTS):
            self._deliver(self._chance.randrange(len(DISKS)))
            if self._chance.random() < CUT_SHARE and (problem := self._cut()):
                return problem
        return ""

    def _deliver(self, place: int) -> None:
        """Have the next fragment of the disk's request arrive; those of several disks overlap."""
        current = self._arriving.get(place) or self._new_request(place)
        end = min(current.sent + self._chance.randint(1, len(current.wire)), len(current.wire))
        self._peers[place].sendall(current.wire[current.sent : end])
        current.sent = end
        self._connections[place].handle(select.EPOLLIN)
        if end < len(current.wire):
            self._arriving[place] = current
            return
        self._arriving.pop(place, None)
        assert len(self._peers[place].recv(_REPLY_BYTES)) == _REPLY_BYTES
        image, data = self.written[place], current.data
        image[current.offset : current.offset + len(data)] = data

    def _new_request(self, place: int) -> _Request:
        length = SECTOR * self._chance.choice((1, 3, 8, 8, 16, 64))
        last = (DISKS[place].size_bytes - length) // SECTOR
        offset = self._chance.randrange(last + 1) * SECTOR
        is_zeroes = self._chance.random() < 0.1
        command = _WRITE_ZEROES if is_zeroes else _WRITE
        head = REQUEST.pack(_MAGIC << 32 | command, bytes(8), offset, length)
        data = bytes(length) if is_zeroes else self._chance.randbytes(length)
        return _Request(offset, data, head if is_zeroes else head + data)

    def _cut(self) -> str:
        """Make a cut of what came since the last one; say what is wrong with the disks then."""
        stop = self._writer.position
        self._writer.append(KIND_MARK, disk=0, length=0, offset=0, time_ns=0)
        changes = build_cut(
            self._reader.records(self._taken, stop),
            first_position=self._taken,
            buffer_of=self._reader.buffer,
            sweep=(),
            disks=DISKS,
        )
        for image, change in zip(self.replica, changes, strict=True):
            for segment in change.segments:
                content = b"".join(segment.data)
                for extent in segment.extents:
                    start = int(extent["start"]) * segment.unit
                    length = int(extent["count"]) * segment.unit
                    at = int(extent["position"])
                    image[start : start + length] = (
                        bytes(length)
                        if at == ZEROES
                        else content[at * segment.unit : at * segment.unit + length]
                    )
        self._taken = stop + 1
        self._reader.release(self._taken)
        for disk, image, wanted in zip(DISKS, self.replica, self.written, strict=True):
            if image != wanted:
                return f"a cut of disk {disk.name} is not what had been acknowledged"
        return ""
