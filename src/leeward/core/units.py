"""Sizes and durations: constants, reading what people type, writing what people read."""

from __future__ import annotations

import re

from leeward.core.errors import InvalidRequest

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SECTOR = 512
"""Smallest unit a guest writes, bytes."""
BLOCK = 4 * KIB
"""Granularity of the replica log's block map, bytes."""
CHUNK = 64 * KIB
"""Unit of the block map's base entries and of a segment's frames, bytes."""

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*$", re.IGNORECASE)


def parse_size(text: str, *, field: str = "size") -> int:
    """Return bytes for "512M", "8GiB", "1.5 T" or a plain number of bytes (powers of 1024).

    Raises: InvalidRequest naming `field`.
    """
    match = _SIZE.match(text)
    if not match:
        raise InvalidRequest(
            f"{field}: {text!r} is not a size", field=field, hint="write it like 512M or 8G"
        )
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_bytes(count: float) -> str:
    """Return a size for people: "0 B", "12.3 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"; what is
    even is not spelt out: "10 min", "24 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    if whole < 3 * 86400:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(whole // 3600, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
