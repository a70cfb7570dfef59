"""Exit codes, and the one sentence on standard error that goes with each.

Owns: what a script may rely on. Printed by `leeward --help`.
"""

from __future__ import annotations

import os
import sys

from leeward.core.errors import (
    Conflict,
    InvalidRequest,
    LeewardError,
    NotAllowed,
    NotFound,
    Unavailable,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
UNAVAILABLE = 5
NOT_ALLOWED = 6
INTERRUPTED = 130

TABLE = (
    "Exit codes: 0 done; 1 failed, or the job it waited for did; 2 something in the command or the "
    "configuration must change; 3 no such thing; 4 the state of things forbids it; 5 the service, "
    "a store or a program cannot be reached, try again; 6 not allowed; 130 interrupted."
)

_CODES: tuple[tuple[type[LeewardError], int], ...] = (
    (InvalidRequest, USAGE),
    (NotFound, NOT_FOUND),
    (Conflict, CONFLICT),
    (Unavailable, UNAVAILABLE),
    (NotAllowed, NOT_ALLOWED),
)


def exit_code(error: LeewardError) -> int:
    """Return the exit code that says what the caller must do about `error`."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def complain(sentence: str) -> None:
    """Print one line on standard error, beginning with the program's name."""
    print(f"leeward: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def wants_traceback() -> bool:
    """Say whether LEEWARD_DEBUG asks for the traceback as well."""
    return os.environ.get("LEEWARD_DEBUG", "") not in ("", "0")
