"""Which names an object may have, the same on every backend.

Owns: the rule. Must not know: what the objects mean. Every backend asks here before it acts.
"""

from __future__ import annotations

import re

from leeward.core.errors import InvalidRequest

NAME_CHARACTERS_MAX = 512
PART_CHARACTERS_MAX = 255

_PATH = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_HINT = "parts of A-Z, a-z, 0-9, '.', '_' and '-', joined by '/', none of them '.' or '..'"


def check_object_name(name: str) -> str:
    """Return `name` unchanged if an object may have it. Raises: InvalidRequest."""
    parts = name.split("/")
    if (
        len(name) > NAME_CHARACTERS_MAX
        or not _PATH.fullmatch(name)
        or any(part in (".", "..") or len(part) > PART_CHARACTERS_MAX for part in parts)
    ):
        raise InvalidRequest(f"{name[:80]!r} cannot name an object", field="name", hint=_HINT)
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` unchanged if names may be listed under it: "", or a name and "/".

    Raises: InvalidRequest.
    """
    if prefix == "":
        return prefix
    if not prefix.endswith("/"):
        raise InvalidRequest(
            f"{prefix[:80]!r} cannot be listed", field="prefix", hint="end the prefix with '/'"
        )
    check_object_name(prefix[:-1])
    return prefix


def check_range(offset: int, length: int) -> None:
    """Return if [offset, offset + length) can be asked of an object. Raises: InvalidRequest."""
    if offset < 0 or length < 0:
        raise InvalidRequest(f"range of {length} bytes at {offset}", field="offset")
