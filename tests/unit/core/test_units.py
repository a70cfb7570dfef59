"""Sizes and durations as people type and read them."""

from __future__ import annotations

import pytest

from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name, new_id
from leeward.core.units import GIB, MIB, format_bytes, format_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("64M", 64 * MIB), ("8GiB", 8 * GIB), ("1.5 g", 3 * GIB // 2)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "M", "12X", "1e9", "0x10"])
def test_what_is_no_size_names_its_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_size(text, field="--memory")
    assert caught.value.field == "--memory"


def test_sizes_and_durations_are_written() -> None:
    assert [format_bytes(n) for n in (0, 1536, 3 * GIB)] == ["0 B", "1.5 KiB", "3.0 GiB"]
    assert [format_seconds(s) for s in (0.44, 12, 185, 7800)] == [
        "0.4 s",
        "12 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
    assert [format_seconds(s) for s in (600, 7200, 86400, 7 * 86400, 90 * 3600)] == [
        "10 min",
        "2 h",
        "24 h",
        "7 d",
        "3 d 18 h",
    ]


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a/b", "a" * 64, "ä"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name)


def test_ids_are_fresh_names() -> None:
    assert new_id("job") != new_id("job")
    assert check_name(new_id("job"))
