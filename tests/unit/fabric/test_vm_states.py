"""How the host's VMs stand is told in time, whatever some of them do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from leeward.fabric.qemu_driver import QemuDriver
from leeward.fabric.records import Phase, Records, VmRecord
from leeward.fabric.vms import VmFiles, VmProcesses
from leeward.model.resources import PowerState
from leeward.protocol.fabric import VmSpec

VMS = ("vm-1", "vm-2", "vm-3", "vm-4", "vm-5", "vm-6")
HANG_SECONDS = 60.0


def test_vms_are_asked_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that does not answer takes its time limit: one after the other, five would make an
    agent look silent."""
    everybody = threading.Barrier(len(VMS))

    def power(self: VmProcesses, files: VmFiles) -> PowerState:
        everybody.wait(HANG_SECONDS)
        return PowerState.STOPPED

    records = Records(tmp_path / "data" / "vms", VmRecord)
    for vm_id in VMS:
        spec = VmSpec(
            vm_id=vm_id, name=vm_id, vcpus=1, memory_mib=64, firmware="bios", disks=(), nics=()
        )
        records.put(vm_id, VmRecord(spec=spec, phase=Phase.READY))
    monkeypatch.setattr(VmProcesses, "power", power)
    driver = QemuDriver(tmp_path / "data", tmp_path / "run", is_privileged=False)
    try:
        assert tuple(status.vm_id for status in driver.list_vms()) == VMS
    finally:
        driver.close()
