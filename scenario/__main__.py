"""Dispatch: `python -m scenario NAME [MUTANT]` runs scenario/NAME.py, "-" written "_".

Owns: nothing but the way to a scenario's `run`. A scenario is a module with a `run` that returns a
Result; one that can plant defects has MUTANTS, their names, and `hunt`, which takes a name: what
must hold then is that its checks notice the defect. Exit code 0 only if nothing was violated and
nothing is left.
"""

from __future__ import annotations

import importlib
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from scenario.common import Result, print_result, seconds_since


def _names() -> list[str]:
    """Return the scenarios: what here can be run and says what it found."""
    return sorted(
        path.stem.replace("_", "-")
        for path in Path(__file__).parent.glob("*.py")
        if "\ndef run() -> Result:" in path.read_text()
    )


def main() -> int:
    """Run the named scenario. Returns: the exit code."""
    name, mutant, *more = [*sys.argv[1:], "", ""]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or name not in _names() or any(more):
        names = ", ".join(_names())
        print(f"usage: make scenario NAME=… [MUTANT=…], one of: {names}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"scenario.{name.replace('-', '_')}")
    mutants = tuple(getattr(module, "MUTANTS", ()))
    if mutant and mutant not in mutants:
        known = f"is none of: {', '.join(mutants)}" if mutants else f"is none that {name} knows"
        print(f"MUTANT: {mutant!r} {known}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it wants it cleaned up
    began = time.monotonic()
    result: Result = module.hunt(mutant) if mutant else module.run()
    print_result(name, replace(result, wall_s=seconds_since(began)))
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
