"""Tables for people, JSON for programs.

Owns: standard output. Must not know: requests.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from leeward.core.codec import to_plain

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_ELSEWHERE = 160
"""Columns where standard output is no terminal and COLUMNS does not say."""


class Format(Enum):
    TABLE = "table"
    JSON = "json"


def print_json(value: object) -> None:
    """Print `value` (dataclasses, containers) as JSON."""
    json.dump(to_plain(value), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def console(*, on_errors: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    from rich.console import Console

    stream = sys.stderr if on_errors else sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_ELSEWHERE
    return Console(file=stream, width=wide, highlight=False, soft_wrap=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows under columns; numbers stand right where the column's name ends in "#"."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column.endswith("#")
        table.add_column(
            column.rstrip("#"),
            justify="right" if right else "left",
            overflow="fold",
            header_style="bold",
        )
    for row in rows:
        table.add_row(*(Text(cell or "-", style=_style(cell)) for cell in row))
    console().print(table)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in fields:
        if value:
            table.add_row(Text(name, style="bold"), Text(value, style=_style(value)))
    console().print(table)


def say(text: str) -> None:
    """Print one plain line on standard output."""
    print(text, flush=True)


def format_time(time_ns: int) -> str:
    """Return local time with milliseconds and its distance from UTC, "" for 0.

    `--recovery-point` takes it as it stands: a time without a zone would be taken for UTC.
    """
    if not time_ns:
        return ""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', moment)}.{rest // 1_000_000:03d}{zone}"


_GOOD = {"protected", "streaming", "running", "succeeded", "online", "committed", "ok"}
_BAD = {"failed", "degraded", "offline", "tracking", "unknown"}


def _style(cell: str) -> str:
    word = cell.split(" ", 1)[0].rstrip(":,")
    return "green" if word in _GOOD else "red" if word in _BAD else ""
