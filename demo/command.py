"""Runs `leeward` as a person would, showing the command and what it printed.

Owns: the subprocess and its JSON. Must not know: what the story is about.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOLD, DIM, GREEN, RED, CYAN, RESET = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[36m", "\033[0m")
    if sys.stdout.isatty()
    else ("",) * 6
)


class CommandFailed(Exception):
    """A `leeward` command ended with an error; the message is what it said."""


def say(text: str = "") -> None:
    """Print one line of the story at once."""
    print(text, flush=True)


@dataclass(frozen=True)
class Leeward:
    """The command line, bound to one data directory."""

    data_directory: Path

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(Path(sys.executable).with_name("leeward")), *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LEEWARD_DATA": str(self.data_directory), "COLUMNS": "110"}

    def show(self, *arguments: str, timeout_seconds: float = 180) -> None:
        """Run a command with its output for people to see. Raises: CommandFailed."""
        say(f"{CYAN}$ leeward {shlex.join(arguments)}{RESET}")
        done = subprocess.run(
            self._argv(arguments), env=self._environment, timeout=timeout_seconds, check=False
        )
        if done.returncode:
            raise CommandFailed(
                f"leeward {shlex.join(arguments)} ended with exit code {done.returncode}"
            )

    def ask(self, *arguments: str, timeout_seconds: float = 180) -> Any:
        """Run a command quietly and return its JSON. Raises: CommandFailed."""
        done = subprocess.run(
            [*self._argv(arguments), "-o", "json"],
            env=self._environment,
            timeout=timeout_seconds,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(f"leeward {shlex.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else {}
