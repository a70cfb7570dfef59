"""A log that grew too large begins anew under its writer, and its end is kept beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeward.fabric import logs


def test_only_large_logs_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 1000)
    monkeypatch.setattr(logs, "LOG_BYTES_KEPT", 10)
    large, small, gone = (tmp_path / name for name in ("console.log", "qemu.log", "gone.log"))
    small.write_bytes(b"x" * 1000)
    with large.open("ab") as writer:
        writer.write(b"x" * 1000 + b"the end")
        writer.flush()
        assert logs.limit_logs([large, small, gone]) == [large]
        writer.write(b"and on")
    assert large.read_bytes() == b"and on"
    assert (tmp_path / "console.log.1").read_bytes() == b"xxxthe end"
    assert len(small.read_bytes()) == 1000
