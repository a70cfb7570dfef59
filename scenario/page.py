"""A page's commands, run as they stand there.

Owns: which commands a page shows, in which words an operator's own names are put into them, and the
shell they run in. Must not know: what any of them does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from demo.command import CYAN, DIM, RESET, say

from scenario.common import Findings

ROOT = Path(__file__).resolve().parents[1]
END_SECONDS = 20.0
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(leeward\s[^`]+)`")
_NO_NAMES: Mapping[str, str] = {}
_FILE = re.compile(r"\[\[?\w")
"""How a block begins that is a file's content."""


def commands_of(page: str) -> tuple[str, ...]:
    """Return every command that the page shows, in blocks or in its sentences, once each.

    Comments are left out, and a command that goes on in the next line is one line.
    """
    found = []
    for block in _BLOCK.findall(page):
        if not _FILE.match(block):
            found += [
                re.sub(r"\s#.*", "", line) for line in block.replace("\\\n", " ").splitlines()
            ]
    found += _INLINE.findall(_BLOCK.sub("", page))
    tidy = (" ".join(command.split()) for command in found)
    return tuple(dict.fromkeys(command for command in tidy if command))


def files_of(page: str) -> tuple[str, ...]:
    """Return the content of every file that the page shows."""
    return tuple(block for block in _BLOCK.findall(page) if _FILE.match(block))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return the text with an operator's own names in place of those that the page uses."""
    names = "|".join(re.escape(name) for name in sorted(values, key=len, reverse=True))
    if not names:
        return text
    return re.sub(rf"(?<![\w-])(?:{names})(?![\w-])", lambda match: values[match[0]], text)


@dataclass(slots=True)
class Reader:
    """Somebody who does what the page says, in a shell of their own.

    directory: where the shell stands. values: names of the page and what they are here.
    """

    page: str
    directory: Path
    values: dict[str, str]
    findings: Findings
    environment: dict[str, str]
    ran: set[str] = field(default_factory=set)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self,
        command: str,
        *shows: str,
        names: Mapping[str, str] = _NO_NAMES,
        code: int = 0,
        seconds: float = 180,
    ) -> str:
        """Return what the command printed, having looked for every pattern of `shows` in it.

        command: as it stands on the page. names: of the page, and what they are this time.
        Raises: AssertionError unless it ends with `code`.
        """
        line = self._line(command, names)
        say(f"{CYAN}$ {line}{RESET}")
        done = self.aside(line, seconds=seconds)
        for said in done.stdout.splitlines():
            say(f"  {DIM}{said}{RESET}")
        assert done.returncode == code, (
            f"`{line}` ends with {done.returncode}: {done.stdout[-500:]}"
        )
        missing = [each for each in shows if not re.search(each, done.stdout, re.MULTILINE)]
        if shows:
            self.findings.check("it shows what the page says", not missing, " / ".join(missing))
        return done.stdout

    def aside(self, line: str, *, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Return how a command that is not of the page ended, in the same shell."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            text=True,
            check=False,
        )

    def start(
        self, command: str, *, names: Mapping[str, str] = _NO_NAMES
    ) -> subprocess.Popen[bytes]:
        """Return the command, which stays until it is told to end."""
        line = self._line(command, names)
        say(f"{CYAN}$ {line} &{RESET}")
        log = self.directory / f"{len(self._started)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.directory,
                env=self._environment(),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> int:
        """Return how a command that stayed has ended, told to."""
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            return process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def end_all(self) -> None:
        """Nothing that was started here runs."""
        for process in self._started:
            self.end(process)

    def _line(self, command: str, names: Mapping[str, str]) -> str:
        assert command in commands_of(self.page), f"the page does not say: {command}"
        self.ran.add(command)
        return filled(command, {**self.values, **names})

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "COLUMNS": "150", **self.environment}
