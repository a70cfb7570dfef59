"""Images are taken away for good, whoever is making them."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from leeward.fabric.disks import delete_image


def test_an_image_is_gone_though_what_makes_it_has_outlived_its_agent(tmp_path: Path) -> None:
    """The agent was killed before its qemu-img had opened the file."""
    path, partial = tmp_path / "vm-data.qcow2", tmp_path / "vm-data.qcow2.part"
    with partial.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        late = subprocess.Popen(["sh", "-c", f"sleep 0.5; echo x > {partial}"], stdin=held)
    delete_image(path)
    assert late.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_makes_is_deleted_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vm-data.qcow2"
    path.with_name("vm-data.qcow2.part").write_bytes(b"left behind")
    path.write_bytes(b"whole")
    delete_image(path)
    delete_image(path)
    assert list(tmp_path.iterdir()) == []
