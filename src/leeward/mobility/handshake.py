"""The NBD handshake of one connection to the tap, as bytes in and bytes out.

Owns: newstyle fixed negotiation up to transmission, for write-only exports. Must not know: sockets,
other connections (so that none can wait for another), the journal. Standard library only.
Source: NetworkBlockDevice/nbd doc/proto.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_NBDMAGIC = 0x4E42444D41474943
_OPTION_MAGIC = 0x49484156454F5054
_REPLY_MAGIC = 0x3E889045565A9
_FLAG_FIXED, _FLAG_NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO = 1, 2, 3, 6, 7
_REP_ACK, _REP_SERVER, _REP_INFO = 1, 2, 3
_REP_ERR_UNSUP, _REP_ERR_INVALID, _REP_ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3

TRANSMISSION_FLAGS = 1 | 4 | 8 | 64
"""Has flags, flush, FUA, write-zeroes. No trim: see Connection.other in tap.py."""

_OPTION = struct.Struct(">QII")
_OPTION_BYTES_MAX = 8 << 10

GREETING = struct.pack(">QQH", _NBDMAGIC, _OPTION_MAGIC, _FLAG_FIXED | _FLAG_NO_ZEROES)
BLOCK_BYTES_PREFERRED = 4096


class Malformed(Exception):
    """The peer does not speak NBD, or not what we may accept: end its connection."""


class Finished(Exception):
    """The peer is done, politely: end the connection after sending `reply`."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply


class Handshake:
    """Negotiation of one connection. After `disk` is set, `rest` holds what followed it."""

    __slots__ = ("_disks", "_flags", "_write_bytes_max", "disk", "rest")

    def __init__(self, disks: Sequence[tuple[str, int]], *, write_bytes_max: int) -> None:
        self._disks = {name: (index, size) for index, (name, size) in enumerate(disks)}
        self._write_bytes_max = write_bytes_max
        self._flags: int | None = None
        self.disk: int | None = None
        self.rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return what to send in answer to `data`; `disk` is set once transmission begins.

        Raises: Malformed, Finished.
        """
        self.rest += data
        reply = b""
        if self._flags is None:
            if len(self.rest) < 4:
                return reply
            self._flags = int.from_bytes(self.rest[:4], "big")
            del self.rest[:4]
            if not self._flags & _FLAG_FIXED or self._flags & ~(_FLAG_FIXED | _FLAG_NO_ZEROES):
                raise Malformed("client flags")
        while self.disk is None and len(self.rest) >= _OPTION.size:
            magic, option, length = _OPTION.unpack_from(self.rest)
            if magic != _OPTION_MAGIC or length > _OPTION_BYTES_MAX:
                raise Malformed("option")
            if len(self.rest) < _OPTION.size + length:
                break
            body = bytes(self.rest[_OPTION.size : _OPTION.size + length])
            del self.rest[: _OPTION.size + length]
            reply += self._option(option, body)
        return reply

    def _option(self, option: int, body: bytes) -> bytes:
        if option in (_OPT_GO, _OPT_INFO):
            return self._go(option, body)
        if option == _OPT_EXPORT_NAME:
            return self._export_name(body)
        if option == _OPT_LIST:
            names = [name.encode() for name in self._disks]
            entries = [_reply(option, _REP_SERVER, struct.pack(">I", len(n)) + n) for n in names]
            return b"".join(entries) + _reply(option, _REP_ACK)
        if option == _OPT_ABORT:
            raise Finished(_reply(option, _REP_ACK))
        # structured replies, meta contexts, TLS: the peer goes on without them
        return _reply(option, _REP_ERR_UNSUP)

    def _go(self, option: int, body: bytes) -> bytes:
        length = int.from_bytes(body[:4], "big")
        if len(body) < 4 + length + 2:
            return _reply(option, _REP_ERR_INVALID)
        found = self._disks.get(body[4 : 4 + length].decode(errors="replace"))
        if found is None:
            return _reply(option, _REP_ERR_UNKNOWN)
        index, size = found
        # Minimum block 1: with a larger one QEMU would read from the tap to pad unaligned writes.
        sizes = (_INFO_BLOCK_SIZE, 1, BLOCK_BYTES_PREFERRED, self._write_bytes_max)
        if option == _OPT_GO:
            self.disk = index
        return (
            _reply(option, _REP_INFO, struct.pack(">HQH", _INFO_EXPORT, size, TRANSMISSION_FLAGS))
            + _reply(option, _REP_INFO, struct.pack(">HIII", *sizes))
            + _reply(option, _REP_ACK)
        )

    def _export_name(self, body: bytes) -> bytes:
        found = self._disks.get(body.decode(errors="replace"))
        if found is None:
            raise Malformed("unknown export")  # this option has no way to say so
        self.disk, size = found
        padding = b"" if (self._flags or 0) & _FLAG_NO_ZEROES else bytes(124)
        return struct.pack(">QH", size, TRANSMISSION_FLAGS) + padding


def _reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(body)) + body
