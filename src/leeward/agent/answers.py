"""The journal of answers: which commands were carried out, with what result, told or still to tell.

Owns: that a command delivered twice is carried out once, across restarts. Must not know: how
results travel. Between the link and the disk.

An append-only file of one JSON line per entry: `{"result": CommandResult}` when a command has been
carried out, `{"told": id}` when the service has taken the result. It is rewritten when it has grown
to twice what is kept.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

from leeward.agent.records import write_file
from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import InvalidRequest, Unavailable
from leeward.observability.log import get_logger
from leeward.protocol.messages import CommandResult

log = get_logger()

TOLD_KEPT = 1000
"""Results kept after the service took them, should it still ask again."""

UNOPENED, CLOSED = -1, -2


class AnswerJournal:
    """Durable answers of one node. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._results: dict[str, CommandResult] = {}
        self._untold: dict[str, None] = {}  # insertion-ordered set
        self._lines = 0
        self._is_torn = False
        self._descriptor = UNOPENED
        path.parent.mkdir(parents=True, exist_ok=True)
        self._load()
        try:
            self._rewrite()
        except Unavailable as error:  # a full disk: VMs may have to be deleted by us to empty it
            log.warning("answers_not_rewritten", error=str(error))
            self._open(os.O_CREAT)
            self._is_torn = True

    def answer_to(self, command_id: str) -> CommandResult | None:
        """Return the recorded answer to a command, or None if it was never carried out."""
        with self._lock:
            return self._results.get(command_id)

    def record(self, result: CommandResult) -> None:
        """Make the answer durable, and due to be told.

        Raises: Unavailable when the disk is full: it is due to be told all the same, and a restart
        forgets it.
        """
        with self._lock:
            self._results[result.command_id] = result
            self._untold[result.command_id] = None
            self._append({"result": to_plain(result)})

    def ask_again(self, command_id: str) -> None:
        """Make a recorded answer due to be told once more: the service has asked for it again."""
        with self._lock:
            if command_id in self._results:
                self._untold[command_id] = None

    def told(self, command_id: str) -> None:
        """The service has this answer; it is not told again unless it asks."""
        with self._lock:
            self._untold.pop(command_id, None)
            self._append({"told": command_id})
            if self._lines > 2 * (TOLD_KEPT + len(self._untold)) + 100:
                self._rewrite()

    def untold(self) -> list[CommandResult]:
        """Return the answers the service does not have yet, oldest first."""
        with self._lock:
            return [self._results[command_id] for command_id in self._untold]

    def close(self) -> None:
        """Release the file. What was recorded is already durable; nothing is from here on."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = CLOSED

    def _load(self) -> None:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in text.split(b"\n"):
            self._lines += 1
            try:
                entry = json.loads(line)
                if "told" in entry:
                    self._untold.pop(entry["told"], None)
                    continue
                result = from_plain(entry["result"], CommandResult)
            except (ValueError, KeyError, TypeError, InvalidRequest):
                continue  # a line torn by a crash was never acted upon
            self._results[result.command_id] = result
            self._untold[result.command_id] = None

    def _append(self, entry: object) -> None:
        if self._descriptor == CLOSED:  # its number may be another file's by now
            raise Unavailable(f"{self._path} is closed: the node is ending")
        line = json.dumps(entry).encode() + b"\n"
        if self._is_torn:  # what follows half a line would be lost with it
            line = b"\n" + line
        try:
            self._is_torn = os.write(self._descriptor, line) < len(line)
            if self._is_torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._is_torn = True
            raise Unavailable(f"cannot write {self._path}: {error.strerror}") from error
        self._lines += 1

    def _rewrite(self) -> None:
        """Keep every untold answer and the newest told ones; drop the rest."""
        told = [command_id for command_id in self._results if command_id not in self._untold]
        for command_id in told[:-TOLD_KEPT]:
            del self._results[command_id]
        lines: list[object] = []
        for command_id, result in self._results.items():
            lines.append({"result": to_plain(result)})
            if command_id not in self._untold:
                lines.append({"told": command_id})
        write_file(self._path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._open()
        self._lines, self._is_torn = len(lines), False

    def _open(self, flags: int = 0) -> None:
        before = self._descriptor
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | flags, 0o600)
        except OSError as error:
            raise Unavailable(f"cannot write {self._path}: {error.strerror}") from error
        if before >= 0:
            os.close(before)
