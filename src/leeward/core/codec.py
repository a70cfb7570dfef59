"""JSON to and from our frozen dataclasses: parse once at the edge, or say which field is wrong.

The only home of msgspec.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from leeward.core.errors import InvalidRequest

T = TypeVar("T")


def to_json(value: object) -> bytes:
    """Return `value` (dataclasses, enums, containers) as JSON bytes, keys in field order."""
    return msgspec.json.encode(value)


def to_plain(value: object) -> Any:
    """Return `value` as dictionaries, lists, strings and numbers only."""
    return msgspec.to_builtins(value)


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Return a `kind` decoded from JSON bytes. Unknown keys are ignored.

    Raises: InvalidRequest naming the path of the field at fault.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"not a valid {kind.__name__}: {error}") from error


def from_plain(data: object, kind: type[T]) -> T:
    """Return a `kind` from plain dictionaries and lists, as `from_json` does from bytes."""
    try:
        return msgspec.convert(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"not a valid {kind.__name__}: {error}") from error
