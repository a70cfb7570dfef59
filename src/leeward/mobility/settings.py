"""What a replicator is told besides its specification: places on the host, and bounds.

Owns: their names and defaults. Must not know: anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leeward.core.units import MIB
from leeward.mobility.tap_client import TapConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Directories of the host, and where the VM's QEMU has its NBD server or shall have it."""

    run_dir: Path
    shm_dir: Path
    data_dir: Path
    nbd_socket: Path
    agent_socket: Callable[[], Path] | None = None
    """Where the VM's guest agent is reached; None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Bounds. sweep_cut_bytes: data that a sweep puts into one cut. rotate_seconds: age at which
    a bitmap generation gets a successor, if data flows. idle_cut_seconds: age at which the newest
    recovery point gets a successor although nothing was written. applied_seconds: how often the
    cache is asked what the target has applied. digests_seconds: how long a target that
    does not say what it holds is waited for; after that it gets everything."""

    buffer_bytes: int = 8 * MIB
    buffer_count: int = 32
    sweep_cut_bytes: int = 32 * MIB
    rotate_seconds: float = 20.0
    idle_cut_seconds: float = 1200.0
    applied_seconds: float = 5.0
    digests_seconds: float = 45.0


def tap_config(
    item_id: str, disks: tuple[tuple[str, int], ...], places: Places, tuning: Tuning
) -> TapConfig:
    """Return what the item's taps are started with. disks: (name, bytes) in journal order."""
    return TapConfig(
        item_id=item_id,
        disks=disks,
        run_dir=places.run_dir,
        shm_dir=places.shm_dir,
        data_dir=places.data_dir,
        buffer_bytes=tuning.buffer_bytes,
        buffer_count=tuning.buffer_count,
    )
