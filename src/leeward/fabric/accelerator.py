"""KVM where it really runs a guest, else TCG.

Owns: the proof, and remembering it for as long as the host is up. Must not know: VMs. A host may
have /dev/kvm and yet hang every kernel on it (nested or emulated virtualization).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from leeward.core.codec import from_json, to_json
from leeward.core.errors import InvalidRequest
from leeward.observability.log import get_logger
from leeward.qemu.machine import QEMU, Accelerator, accelerator_arguments

PROOF_SECONDS = 3.0
PROVEN_STATUS = 33
"""What QEMU exits with when the guest writes 0x10 to its isa-debug-exit port."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = get_logger()

# accelerator_probe.s assembled: long mode under its own page tables, then 20 timer interrupts
BOOT_SECTOR = (
    bytes.fromhex(
        """
    fa31c08ed88ec08ed0bc007cfcbf0010b90020f3abc70600100320c70600200330c70600308300c7060042aa
    7cc70602420800c7060442008e0f011ed67c0f0116d07cb011e620b020e621b004e621b001e621b0fee621b0
    ffe6a1b034e643b0a9e640b004e64066b8a00000000f22e066b8001000000f22d866b9800000c00f32660d00
    0100000f300f20c0660d010000800f22c0ea9a7c080031dbfbf483fb1472fab010e6f4f4ebfdffc3b020e620
    48cf660f1f440000000000000000000000000000009a200000000000009200001700b87c0000ff020040
    """
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


@dataclass(frozen=True, slots=True)
class _Verdict:
    boot_id: str
    qemu: str
    accelerator: Accelerator


def choose_accelerator(memory: Path) -> Accelerator:
    """Return KVM if a guest has been seen to run to its end on it, else TCG.

    memory: file that keeps the verdict until the host reboots or QEMU is replaced. Takes up to
    PROOF_SECONDS when there is none.
    """
    wanted = _Verdict(BOOT_ID.read_text().strip(), _qemu_identity(), Accelerator.TCG)
    known = _read(memory)
    if known and (known.boot_id, known.qemu) == (wanted.boot_id, wanted.qemu):
        return known.accelerator
    chosen = Accelerator.KVM if is_kvm_proven() else Accelerator.TCG
    _log.info("accelerator_chosen", accelerator=chosen.value)
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_name(memory.name + ".new")
    temporary.write_bytes(to_json(_Verdict(wanted.boot_id, wanted.qemu, chosen)))
    temporary.replace(memory)
    return chosen


def is_kvm_proven() -> bool:
    """Say whether a tiny guest runs to its end on KVM within PROOF_SECONDS."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and proves(Accelerator.KVM)


def proves(accelerator: Accelerator) -> bool:
    """Say whether the tiny guest runs to its end under `accelerator`, as VMs would run under it."""
    with tempfile.NamedTemporaryFile(prefix="leeward-probe-", suffix=".img") as image:
        image.write(BOOT_SECTOR)
        image.flush()
        argv = [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc", *accelerator_arguments(accelerator), "-m", "16"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
            *("-drive", f"file={image.name},format=raw,if=ide,snapshot=on"),
        ]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROOF_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        except FileNotFoundError as error:
            raise InvalidRequest(f"{QEMU} is not installed") from error
    return done.returncode == PROVEN_STATUS


def _qemu_identity() -> str:
    """Return what changes when another QEMU is installed."""
    for directory in os.get_exec_path():
        path = Path(directory) / QEMU
        if path.exists():
            found = path.stat()
            return f"{path}:{found.st_mtime_ns}:{found.st_size}"
    raise InvalidRequest(f"{QEMU} is not installed")


def _read(memory: Path) -> _Verdict | None:
    try:
        return from_json(memory.read_bytes(), _Verdict)
    except (FileNotFoundError, InvalidRequest):
        return None
