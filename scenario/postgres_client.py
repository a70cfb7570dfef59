"""PostgreSQL's wire protocol, as much of it as an outside client needs: connect, ask, be told.

Owns: one connection without encryption or password. Must not know: what is asked.
"""

from __future__ import annotations

import socket
import struct

PROTOCOL = 3 << 16
USER = "postgres"
IN_TRANSACTION = b"I"
"""What the server says when no transaction is open: everything asked for is done."""


class DatabaseError(Exception):
    """The server answered with an error."""


class Database:
    """A connection to the database postgres at "address:port". Not thread-safe.

    Every method raises OSError when the server is gone or does not answer in time.
    """

    def __init__(self, address: str, *, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=seconds)
        self._received = b""
        parameters = f"user\0{USER}\0database\0{USER}\0\0".encode()
        hello = struct.pack("!II", len(parameters) + 8, PROTOCOL)
        try:
            self._socket.sendall(hello + parameters)
            self._take_answer()
        except BaseException:
            self.close()
            raise

    def ask(self, query: str) -> list[tuple[str, ...]]:
        """Return the rows of the last statement; all of it is committed. Raises: DatabaseError."""
        body = query.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self._take_answer()

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()

    def _take_answer(self) -> list[tuple[str, ...]]:
        """Return the rows that came before the server was ready again."""
        rows: list[tuple[str, ...]] = []
        problem = ""
        while True:
            kind, body = self._message()
            if kind == b"T":
                rows = []
            elif kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                problem = problem or _problem(body)
            elif kind == b"R" and body != bytes(4):
                raise DatabaseError("the server asks for a password")
            elif kind == b"Z":
                if problem:
                    raise DatabaseError(problem)
                if body != IN_TRANSACTION:
                    raise DatabaseError("a transaction is still open")
                return rows

    def _message(self) -> tuple[bytes, bytes]:
        head = self._exactly(5)
        return head[:1], self._exactly(struct.unpack("!I", head[1:])[0] - 4)

    def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            got = self._socket.recv(1 << 16)
            if not got:
                raise ConnectionResetError("the server hung up")
            self._received += got
        taken, self._received = self._received[:count], self._received[count:]
        return taken


def _row(body: bytes) -> tuple[str, ...]:
    """Return the columns of a DataRow as text, null as ""."""
    (columns,) = struct.unpack_from("!H", body)
    at, values = 2, []
    for _ in range(columns):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(body[at : at + length].decode() if length > 0 else "")
        at += max(length, 0)
    return tuple(values)


def _problem(body: bytes) -> str:
    """Return the message of an ErrorResponse: fields of a letter and a text each."""
    fields = {field[:1]: field[1:].decode("utf-8", "replace") for field in body.split(b"\0")}
    return fields.get(b"M", "an error without a message")
