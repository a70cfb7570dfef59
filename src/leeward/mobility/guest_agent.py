"""What the agent inside a guest is asked, and how long it may take to answer.

Owns: QEMU's guest agent protocol on its socket: one JSON object a line, answers in order. Must not
know: what is frozen for what. Standard library only: the thaw guard imports it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

RECEIVE_BYTES = 4096
ANSWER_BYTES_MAX = 1 << 20
_DELIMITER = b"\xff"
"""Never part of JSON: what comes before it belongs to an earlier conversation."""


class AgentError(Exception):
    """What the guest's agent did not do, in words for a person."""


class AgentGone(AgentError):
    """The VM's end of the channel is not there: it does not run."""


class AgentSilent(AgentError):
    """No answer in time. What was asked for may still be done, whenever the agent gets to it."""


class AgentRefused(AgentError):
    """The agent answered that it cannot, in its own words."""


class GuestAgent:
    """The channel to one VM's guest agent, which serves one client at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket: socket.socket | None = None
        self._received = b""
        self._owed = 0

    def sync(self, *, seconds: float) -> None:
        """Have the agent's full attention: it has done all it was asked before, and nothing it
        answers from here on is about that. Raises: AgentGone, AgentSilent."""
        deadline = time.monotonic() + seconds
        self.connect(seconds=seconds)
        number = int.from_bytes(os.urandom(4), "big") >> 1
        self._send("guest-sync-delimited", {"id": number}, deadline, before=_DELIMITER)
        while True:
            self._until(_DELIMITER, deadline)
            line = self._until(b"\n", deadline)
            if _parsed(line).get("return") == number:
                self._owed = 0
                return

    def execute(self, command: str, *, seconds: float) -> Any:
        """Return what the agent returns. Commands are carried out one after the other, also those
        whose answer was not waited for. Raises: AgentGone, AgentSilent, AgentRefused."""
        deadline = time.monotonic() + seconds
        self._send(command, {}, deadline)
        self._owed += 1
        while self._owed:
            answer = _parsed(self._until(b"\n", deadline))
            self._owed -= 1
        if "return" in answer:
            return answer["return"]
        raise AgentRefused(str(answer.get("error", {}).get("desc", "it does not say why")))

    def close(self) -> None:
        """Let go of the channel. What was sent is still carried out. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._received, self._owed = b"", 0

    def connect(self, *, seconds: float) -> None:
        """Hold the channel. Idempotent. Raises: AgentGone."""
        if self._socket is not None:
            return
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(seconds)
        try:
            channel.connect(str(self.path))
        except OSError as error:
            channel.close()
            raise AgentGone(f"the VM's agent channel cannot be reached: {error.strerror}") from None
        self._socket = channel

    def _send(
        self, command: str, arguments: dict[str, object], deadline: float, *, before: bytes = b""
    ) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            channel = self._open(deadline)
            channel.sendall(before + json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise AgentSilent(f"the guest agent does not take {command}") from None
        except OSError as error:
            self.close()
            raise AgentGone(f"the VM went away during {command}") from error

    def _until(self, end: bytes, deadline: float) -> bytes:
        """Return what came before the next `end`, which is dropped."""
        while end not in self._received:
            try:
                got = self._open(deadline).recv(RECEIVE_BYTES)
            except TimeoutError:
                raise AgentSilent("the guest agent does not answer") from None
            except OSError:
                got = b""
            if not got:
                self.close()
                raise AgentGone("the VM closed its agent channel")
            self._received = (self._received + got)[-ANSWER_BYTES_MAX:]
        found, _, self._received = self._received.partition(end)
        return found

    def _open(self, deadline: float) -> socket.socket:
        if self._socket is None:
            raise AgentGone("the agent channel is not open")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
