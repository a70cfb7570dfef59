"""Dispatch: `python -m scenario NAME` runs scenario/NAME.py, "-" written "_".

Owns: nothing but the way to a scenario's `run`. A scenario is a module with a `run` that returns a
Result. Exit code 0 only if nothing was violated and nothing is left.
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

_NOT_SCENARIOS = {
    *("__init__", "__main__", "capture", "checker", "common", "leaks"),
    *("postgres_client", "postgres_load", "rig", "stage"),
}


def _names() -> list[str]:
    here = Path(__file__).parent
    return sorted(
        path.stem.replace("_", "-") for path in here.glob("*.py") if path.stem not in _NOT_SCENARIOS
    )


def main() -> int:
    """Run the named scenario. Returns: the exit code."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or name not in _names():
        print(f"usage: make scenario NAME=…, one of: {', '.join(_names())}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it wants it cleaned up
    module = importlib.import_module(f"scenario.{name.replace('-', '_')}")
    began = time.monotonic()
    result: Result = module.run()
    print_result(name, replace(result, wall_s=seconds_since(began)))
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
