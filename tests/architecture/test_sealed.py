"""Whatever is encoded for a store is given the key, or none on purpose: it cannot be forgotten."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src/leeward"
KEY_AT = {
    "encode_segment": None,
    "seal_envelope": 3,
    "encode_manifest": 1,
    "encode_applied": 2,
    "encode_refused": 2,
    "encode_checkpoint": 3,
}
"""Encoder → position of its key; None: by keyword only."""
ALLOWED = {"replica/synthetic.py"}
"""Writes test replicas, never a guest's data."""


def test_every_encoder_is_given_a_key_or_none_on_purpose() -> None:
    lacking = [
        f"{path.relative_to(SOURCES)}:{call.lineno} {name}"
        for path in SOURCES.rglob("*.py")
        if str(path.relative_to(SOURCES)) not in ALLOWED
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and (name := _name(call)) in KEY_AT
        if not _has_key(call, KEY_AT[name])
    ]
    assert not lacking, "pass the store's key: keys_of(store).writing"


def _name(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _has_key(call: ast.Call, position: int | None) -> bool:
    by_keyword = any(keyword.arg == "key" for keyword in call.keywords)
    return by_keyword or (position is not None and len(call.args) > position)
