"""Small durable records: whole or not there, and none in another's way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from leeward.agent.records import Records
from leeward.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    size: int


def test_a_record_that_cannot_be_read_keeps_no_other_from_being_found(tmp_path: Path) -> None:
    records = Records(tmp_path, Thing)
    records.put("a", Thing(size=1))
    records.put("c", Thing(size=3))
    (tmp_path / "b.json").write_bytes(b"\0" * 40)
    assert records.all() == {"a": Thing(size=1), "c": Thing(size=3)}
    with pytest.raises(InvalidRequest, match=r"b\.json cannot be read"):
        records.get("b")
    assert (tmp_path / "b.json").exists(), "whoever mends it finds it"
    records.put("b", Thing(size=2))
    assert list(records.all()) == ["a", "b", "c"]
