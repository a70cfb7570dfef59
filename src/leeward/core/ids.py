"""Identifiers: names people choose, and ids we make."""

from __future__ import annotations

import re
import secrets

from leeward.core.errors import InvalidRequest

_NAME = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")


def check_name(name: str, *, field: str = "name") -> str:
    """Return `name` unchanged if it may name a resource.

    1 to 63 of a-z, 0-9 and "-", not beginning or ending with "-" (a DNS label: it becomes a host
    name, a file name and part of an object name).
    Raises: InvalidRequest naming `field`.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field}: {name!r} cannot be a name",
            field=field,
            hint="use 1 to 63 of a-z, 0-9 and '-', not at either end",
        )
    return name


def new_id(prefix: str) -> str:
    """Return a fresh unguessable id such as "job-3f9a1c0b7d2e"."""
    return f"{prefix}-{secrets.token_hex(6)}"
