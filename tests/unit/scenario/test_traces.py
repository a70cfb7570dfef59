"""What a round has left on hosts and in stores is seen, what every host has is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario import traces
from scenario.rig import Rig

KEPT = ("accelerator.json", "answers.jsonl", "logs/tap-item-1.log", "scripts/tell")
LEFT = ("vms/web-1/record.json", "replications/item-1.json", "exports/web-1/config.json")


def test_what_is_left_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    monkeypatch.setattr(traces, "_known", lambda _: iter(()))
    home = rig.data / "regions" / "east" / "hosts" / "east-1"
    for name in KEPT:
        _touch(home / name)
    before = traces.find_traces(rig)
    for name in LEFT:
        _touch(home / name)
    disk = rig.data / "regions" / "west" / "storage" / "sysasr" / "disks" / "web-1-system.raw"
    _touch(disk)
    changed = traces.wait_same(rig, before, 0)
    assert sorted(changed) == sorted(
        [
            *(f"left: file {home / name}" for name in LEFT),
            f"left: store {disk.parents[1]}",
            f"left: stored {disk}",
        ]
    )
    disk.unlink()
    assert traces.wait_same(rig, traces.find_traces(rig), 0) == ()


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
