"""The NBD protocol as bytes: numbers, packing, parsing.

Owns: every constant and layout of newstyle NBD that we speak (the protocol's doc/proto.md names
them). Must not know: sockets, devices. Below client, server and the tap. Nothing read is trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from leeward.core.errors import InvalidRequest

# Handshake
MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP = REP_ERROR | 1
REP_ERR_POLICY = REP_ERROR | 2
REP_ERR_INVALID = REP_ERROR | 3
REP_ERR_UNKNOWN = REP_ERROR | 6
REP_ERR_TOO_BIG = REP_ERROR | 9

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

# Transmission
EXPORT_HAS_FLAGS = 1
EXPORT_READ_ONLY = 2
EXPORT_SEND_FLUSH = 4
EXPORT_SEND_FUA = 8
EXPORT_SEND_TRIM = 32
EXPORT_SEND_WRITE_ZEROES = 64
EXPORT_SEND_DF = 128
EXPORT_CAN_MULTI_CONN = 256
EXPORT_SEND_CACHE = 1024

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1
CMD_FLAG_NO_HOLE = 2
CMD_FLAG_DF = 4
CMD_FLAG_REQ_ONE = 8

CHUNK_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR_BIT = 1 << 15
CHUNK_ERROR = CHUNK_ERROR_BIT | 1
CHUNK_ERROR_OFFSET = CHUNK_ERROR_BIT | 2

STATE_HOLE = 1
STATE_ZERO = 2
STATE_DIRTY = 1
"""Flags of base:allocation (HOLE, ZERO) and of qemu:dirty-bitmap:<name> (DIRTY)."""

EPERM = 1
EIO = 5
EINVAL = 22
ENOSPC = 28
EOVERFLOW = 75
ENOTSUP = 95

BASE_ALLOCATION = "base:allocation"

STRING_BYTES_MAX = 4096
"""Longest export or context name the protocol allows."""
OPTION_BYTES_MAX = 64 << 10
"""Longest option or option reply we read; a peer that sends more is not taken seriously."""
PAYLOAD_BYTES_MAX = 32 << 20
"""Longest read or write either side may assume the other accepts."""

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
"""Structured reply chunk: magic, flags, type, cookie, length."""
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
STATUS_EXTENT = struct.Struct(">II")
_EXPORT_INFO = struct.Struct(">HQH")
_BLOCK_SIZE_INFO = struct.Struct(">HIII")
_ERROR_HEAD = struct.Struct(">IH")


class Request(NamedTuple):
    """One request of the transmission phase; a write's payload follows it."""

    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


class ExportInfo(NamedTuple):
    """What NBD_INFO_EXPORT says."""

    size_bytes: int
    flags: int


class BlockSizes(NamedTuple):
    """What NBD_INFO_BLOCK_SIZE says, bytes."""

    minimum: int
    preferred: int
    maximum: int


class NameQuery(NamedTuple):
    """The body of OPT_INFO and OPT_GO: an export and the infos asked for."""

    export: str
    infos: tuple[int, ...]


class ContextQuery(NamedTuple):
    """The body of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""

    export: str
    queries: tuple[str, ...]


def pack_option(option: int, data: bytes = b"") -> bytes:
    """Return an option as a client sends it."""
    return OPTION.pack(OPTION_MAGIC, option, len(data)) + data


def pack_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """Return a server's reply to `option`."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def pack_name_query(export: str, infos: Sequence[int] = ()) -> bytes:
    """Return the body of OPT_INFO or OPT_GO."""
    count = struct.pack(f">H{len(infos)}H", len(infos), *infos)
    return _pack_string(export) + count


def parse_name_query(data: bytes) -> NameQuery:
    """Return the parsed body of OPT_INFO or OPT_GO. Raises: InvalidRequest."""
    export, at = _take_string(data, 0)
    if len(data) < at + 2:
        raise InvalidRequest("NBD option ends before its count of infos")
    (count,) = struct.unpack_from(">H", data, at)
    if len(data) != at + 2 + 2 * count:
        raise InvalidRequest("NBD option's length does not fit its count of infos")
    return NameQuery(export, struct.unpack_from(f">{count}H", data, at + 2))


def pack_context_query(export: str, queries: Sequence[str]) -> bytes:
    """Return the body of OPT_LIST_META_CONTEXT or OPT_SET_META_CONTEXT."""
    return b"".join(
        (_pack_string(export), U32.pack(len(queries)), *(_pack_string(q) for q in queries))
    )


def parse_context_query(data: bytes) -> ContextQuery:
    """Return the parsed body of a meta context option. Raises: InvalidRequest."""
    export, at = _take_string(data, 0)
    if len(data) < at + 4:
        raise InvalidRequest("NBD option ends before its count of contexts")
    (count,) = U32.unpack_from(data, at)
    at += 4
    queries = []
    for _ in range(min(count, len(data))):
        query, at = _take_string(data, at)
        queries.append(query)
    if at != len(data) or len(queries) != count:
        raise InvalidRequest("NBD option's length does not fit its count of contexts")
    return ContextQuery(export, tuple(queries))


def pack_export_info(info: ExportInfo) -> bytes:
    """Return the body of a REP_INFO with NBD_INFO_EXPORT."""
    return _EXPORT_INFO.pack(INFO_EXPORT, *info)


def pack_block_sizes(sizes: BlockSizes) -> bytes:
    """Return the body of a REP_INFO with NBD_INFO_BLOCK_SIZE."""
    return _BLOCK_SIZE_INFO.pack(INFO_BLOCK_SIZE, *sizes)


def parse_info(data: bytes) -> ExportInfo | BlockSizes | None:
    """Return the parsed body of a REP_INFO, None for one we do not know. Raises: InvalidRequest."""
    kind = int.from_bytes(data[:2], "big") if len(data) >= 2 else -1
    if kind == INFO_EXPORT and len(data) == _EXPORT_INFO.size:
        return ExportInfo(*_EXPORT_INFO.unpack(data)[1:])
    if kind == INFO_BLOCK_SIZE and len(data) == _BLOCK_SIZE_INFO.size:
        return BlockSizes(*_BLOCK_SIZE_INFO.unpack(data)[1:])
    if kind in (INFO_EXPORT, INFO_BLOCK_SIZE, -1):
        raise InvalidRequest("NBD info reply of a wrong length")
    return None


def pack_request(request: Request) -> bytes:
    """Return a request as a client sends it (without a write's payload)."""
    return REQUEST.pack(REQUEST_MAGIC, *request)


def parse_request(data: bytes | bytearray | memoryview) -> Request:
    """Return the parsed 28 bytes of a request. Raises: InvalidRequest when the magic is wrong."""
    magic, *fields = REQUEST.unpack(data)
    if magic != REQUEST_MAGIC:
        raise InvalidRequest("not an NBD request: wrong magic")
    return Request(*fields)


def pack_simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply (without a read's payload)."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def pack_chunk(cookie: int, kind: int, length: int, *, done: bool) -> bytes:
    """Return the header of a structured reply chunk whose payload has `length` bytes."""
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE if done else 0, kind, cookie, length)


def pack_error_chunk(cookie: int, error: int, message: str = "") -> bytes:
    """Return a whole, final structured reply that says `error`."""
    text = message.encode()[:STRING_BYTES_MAX]
    body = _ERROR_HEAD.pack(error, len(text)) + text
    return pack_chunk(cookie, CHUNK_ERROR, len(body), done=True) + body


def parse_error_chunk(data: bytes) -> tuple[int, str]:
    """Return (error number, message) of an error chunk's payload. Raises: InvalidRequest."""
    if len(data) < _ERROR_HEAD.size:
        raise InvalidRequest("NBD error chunk is too short")
    error, length = _ERROR_HEAD.unpack_from(data)
    text = data[_ERROR_HEAD.size : _ERROR_HEAD.size + length]
    return error, text.decode("utf-8", "replace")


def pack_block_status(context_id: int, extents: Iterable[tuple[int, int]]) -> bytes:
    """Return the payload of a block status chunk: (length, flags) extents."""
    return U32.pack(context_id) + b"".join(STATUS_EXTENT.pack(*extent) for extent in extents)


def parse_block_status(data: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Return (context id, [(length, flags)…]) of a block status chunk. Raises: InvalidRequest."""
    if len(data) < 12 or (len(data) - 4) % STATUS_EXTENT.size:
        raise InvalidRequest("NBD block status chunk of a wrong length")
    (context_id,) = U32.unpack_from(data)
    extents = list(STATUS_EXTENT.iter_unpack(data[4:]))
    if not all(length for length, _ in extents):
        raise InvalidRequest("NBD block status extent of no length")
    return context_id, extents


def _pack_string(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > STRING_BYTES_MAX:
        raise InvalidRequest(f"an NBD name may have {STRING_BYTES_MAX} bytes at most")
    return U32.pack(len(encoded)) + encoded


def _take_string(data: bytes, at: int) -> tuple[str, int]:
    """Return the string at `at` and the position behind it."""
    if len(data) < at + 4:
        raise InvalidRequest("NBD option ends before a name's length")
    (length,) = U32.unpack_from(data, at)
    end = at + 4 + length
    if length > STRING_BYTES_MAX or end > len(data):
        raise InvalidRequest("NBD option's name is longer than the option")
    try:
        return data[at + 4 : end].decode(), end
    except UnicodeDecodeError as error:
        raise InvalidRequest("NBD option's name is not UTF-8") from error
