"""A full disk under a database that is not the vault's own, the workflow engine's: waited for.

Owns: SQLAlchemy's error of it, in threads that ask for that. Must not know: what is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from leeward.observability.log import get_logger

log = get_logger()

_FULL = "disk is full"
_thread = threading.local()


@contextmanager
def space_awaited(check: Callable[[], None] | None) -> Iterator[None]:
    """In the block, what this thread writes and a full disk does not take fails as if no connection
    had been free, which DBOS tries again without end. check: called each time; raises to leave.
    None: it fails as it is, as outside."""
    before = getattr(_thread, "check", None)
    _thread.check = check
    try:
        yield
    finally:
        _thread.check = before


def _translate(context: sa.engine.ExceptionContext) -> sa.exc.TimeoutError | None:
    check, text = getattr(_thread, "check", None), str(context.original_exception)
    if check is None or _FULL not in text:
        return None
    check()
    log.warning("space_awaited", error=text)
    return sa.exc.TimeoutError(text)


sa.event.listen(sa.engine.Engine, "handle_error", _translate)
