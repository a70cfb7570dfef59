"""Structured logging: a fixed snake_case event, data in fields.

The only home of structlog. Guest bytes and secrets are never passed here.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    import structlog

# structlog is imported when first used: it costs a short-lived process most of its start, and an
# export must answer a guest's first read in well under a second.


def configure_logging(*, stream: TextIO = sys.stderr, as_json: bool | None = None) -> None:
    """Send every log line to `stream`: readable on a terminal, JSON elsewhere unless told. Lines
    that it does not take, on a full disk or with nobody at its other end, are lost."""
    import structlog

    render_json = not stream.isatty() if as_json is None else as_json
    renderer: Any = (
        structlog.processors.JSONRenderer() if render_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(stream))),
        cache_logger_on_first_use=True,
    )


class _Lossy:
    """A stream that raises nothing: whoever logs has more important things to do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Logger:
    """Stands for structlog's logger, which it becomes when first written to."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        import structlog

        return getattr(structlog.get_logger(**self._fields), name)


def get_logger(**fields: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that adds `fields` to every line."""
    return cast("structlog.typing.FilteringBoundLogger", _Logger(fields))
