"""Dispatch: `python -m bench NAME [OPTION=NUMBER ...]` runs bench/NAME.py, "-" written "_"; without
a name all run, each in a process of its own.

Owns: nothing but the way to a benchmark's `run`. A benchmark is a module with a `run` that returns
a Result; its parameters, all with defaults, are the options (shorter runs for a quick look).
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

from bench.common import Invalid, Result, print_result

_NOT_BENCHES = {
    "__init__",
    "__main__",
    "archive_peers",
    "bitmap_peer",
    "common",
    "content",
    "far_store",
    "fleet",
    "guest_boot",
    "image_replica",
    "path",
    "sides",
}


def _names() -> list[str]:
    here = Path(__file__).parent
    return sorted(p.stem.replace("_", "-") for p in here.glob("*.py") if p.stem not in _NOT_BENCHES)


def main() -> int:
    """Run the named benchmark, or all; 0 if the figures are valid."""
    return _run(sys.argv[1:]) if sys.argv[1:] else _run_all()


def _run_all() -> int:
    """Run every benchmark, a failure holding up none of the others."""
    failed = []
    for name in _names():
        print(f"\n▸ {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "bench", name], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"no valid figures: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(arguments: list[str]) -> int:
    name, *options = arguments
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or name not in _names():
        print(f"usage: python -m bench NAME, NAME one of: {', '.join(_names())}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"bench.{name.replace('-', '_')}")
    known = inspect.signature(module.run).parameters
    if any(
        not re.fullmatch(r"[a-z_]+=\d+(\.\d+)?", o) or o.split("=")[0] not in known for o in options
    ):
        print(
            f"usage: python -m bench {name} [{' '.join(f'{k}=N' for k in known)}]", file=sys.stderr
        )
        return 2
    try:
        given = {key: float(value) for key, value in (option.split("=") for option in options)}
        result: Result = module.run(**given)
    except Invalid as error:
        print(f"bench {name}: not a valid run: {error}", file=sys.stderr)
        return 1
    print_result(name, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
