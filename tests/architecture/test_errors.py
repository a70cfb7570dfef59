"""The error tree: stable codes, each known to the wire, each drawn in its module's docstring."""

from __future__ import annotations

import pytest

from leeward.core import errors
from leeward.core.errors import LeewardError, error_from_code


def tree(root: type[LeewardError]) -> list[type[LeewardError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


KINDS = tree(LeewardError)


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire(kind: type[LeewardError]) -> None:
    error = error_from_code(kind.code, "no room", field="size", hint="make room")
    assert type(error) is kind
    assert (error.field, error.hint, str(error)) == ("size", "make room", "no room (make room)")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_in_the_tree(kind: type[LeewardError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
