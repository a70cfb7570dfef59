"""The verdict on KVM is remembered for one boot of the host and one QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeward.fabric import accelerator
from leeward.qemu.machine import Accelerator


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("first\n")
    monkeypatch.setattr(accelerator, "BOOT_ID", boot_id)
    monkeypatch.setattr(accelerator, "_qemu_identity", lambda: "qemu-1")
    return boot_id


def verdicts(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> list[bool]:
    left = list(answers)
    monkeypatch.setattr(accelerator, "is_kvm_proven", lambda: left.pop(0))
    return left


def test_the_proof_is_asked_for_once_per_boot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: Path
) -> None:
    left = verdicts(monkeypatch, True, False)
    memory = tmp_path / "state" / "accelerator.json"
    assert accelerator.choose_accelerator(memory) is Accelerator.KVM
    assert accelerator.choose_accelerator(memory) is Accelerator.KVM
    host.write_text("second\n")
    assert accelerator.choose_accelerator(memory) is Accelerator.TCG
    assert left == []


def test_another_qemu_is_proven_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = verdicts(monkeypatch, True, False)
    accelerator.choose_accelerator(tmp_path / "a.json")
    monkeypatch.setattr(accelerator, "_qemu_identity", lambda: "qemu-2")
    assert accelerator.choose_accelerator(tmp_path / "a.json") is Accelerator.TCG
    assert left == []


def test_a_torn_memory_is_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"boot_id": "fir')
    verdicts(monkeypatch, False)
    assert accelerator.choose_accelerator(tmp_path / "a.json") is Accelerator.TCG


def test_the_boot_sector_is_one() -> None:
    assert len(accelerator.BOOT_SECTOR) == 512
    assert accelerator.BOOT_SECTOR.endswith(b"\x55\xaa")
