"""What every scenario shares: what it found, how it is printed, the noting of violations.

Owns: the output format. Must not know: what any scenario does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from demo.command import BOLD, GREEN, RED, RESET, say


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a scenario found. violations: of what it checks; leaks: what it left on the machine;
    figures: metrics of its own, by name; notes: for people, in order."""

    violations: tuple[str, ...]
    leaks: tuple[str, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def holds(self) -> bool:
        """Say whether nothing was violated and nothing is left."""
        return not self.violations and not self.leaks


class Findings:
    """Collects what a scenario checks while it goes on, printing each check as it is made."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.figures: dict[str, float] = {}

    def check(self, what: str, holds: bool, detail: str = "") -> bool:
        """Note and print one check; return whether it holds."""
        mark = f"{GREEN}✓{RESET}" if holds else f"{RED}✗ VIOLATED:{RESET}"
        say(f"  {mark} {what}{f'  ({detail})' if detail else ''}")
        if not holds:
            self.violations.append(f"{what} ({detail})" if detail else what)
        return holds

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Tell what begins; an error in it is a violation and ends the part, not the scenario."""
        say(f"\n{BOLD}{what}{RESET}")
        try:
            yield
        except Exception as error:  # whatever broke, the clean-up and the report still come
            self.check(f"{what}: goes through", False, f"{type(error).__name__}: {error}")


def print_result(name: str, result: Result) -> None:
    """Print what was found and, as the last line, the JSON object for programs."""
    say()
    for violation in result.violations:
        say(f"{RED}violated:{RESET} {violation}")
    for leak in result.leaks:
        say(f"{RED}left behind:{RESET} {leak}")
    if result.holds:
        say(f"{GREEN}nothing violated, nothing left behind{RESET} ({result.wall_s:.0f} s)")
    metrics = {
        "violations": len(result.violations),
        "leaks": len(result.leaks),
        "wall_s": round(result.wall_s, 1),
        **{name: round(value, 3) for name, value in result.figures.items()},
    }
    print(json.dumps({"scenario": name, "metrics": metrics}), flush=True)


def seconds_since(began: float) -> float:
    """Return how long ago that moment of the monotonic clock was."""
    return time.monotonic() - began


def command_of(pid: int) -> str:
    """Return the process's command line, words apart by blanks; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
