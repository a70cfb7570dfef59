"""What replication costs the guest, the whole path running on the guest's own processors.

Owns: metrics baseline_p50_us, added_p50_us, added_p99_us, achieved_ratio at an offered 2 000 IOPS
of 4 KiB random writes, saturation_ratio and bitmap_saturation_ratio at as many as go (protected,
or under a bitmap peer, ÷ unprotected), over_bitmap_ratio (the one ÷ the other), max_stall_s (a
write's longest time in any protected run), streaming_share; to read these by, baseline_iops and
bitmap_cycle_s, the longest of the peer's cycles of one second. Two equal guests, one of them
protected, take turns.
"""

from __future__ import annotations

from typing import Any

from bench.bitmap_peer import BitmapPeer
from bench.common import Invalid, Result, scratch
from bench.path import ACHIEVED_RATIO_MIN, Guest, Protection, guest, protected
from leeward.core.units import GIB

DISK_BYTES = GIB
IOPS = 2000


def run(rounds: float = 5, seconds: float = 4.0, busy_seconds: float = 10.0) -> Result:
    """Measure `rounds` times, `seconds` per guest and kind of load, but the protected guest with as
    many writes as go for `busy_seconds`: longer than the tap's buffers alone could hold out."""
    figures: dict[str, list[float]] = {}
    with (
        scratch() as root,
        guest(root, "plain", DISK_BYTES) as plain,
        guest(root, "guest", DISK_BYTES) as writer,
        protected(root, writer) as protection,
    ):
        _offered(plain, 1.0)  # whatever happens once has happened
        for _ in range(int(rounds)):
            for metric, value in _round(plain, protection, seconds, busy_seconds).items():
                figures.setdefault(metric, []).append(value)
    return Result(
        figures,
        {
            "added_p50_us": "≤ 150",
            "added_p99_us": "≤ 1000",
            "saturation_ratio": "≥ 0.5",
            "over_bitmap_ratio": "≥ 2",
            "streaming_share": "≥ 0.99",
        },
        worst=frozenset({"max_stall_s"}),
    )


def _round(
    plain: Guest, protection: Protection, seconds: float, busy_seconds: float
) -> dict[str, float]:
    base = _offered(plain, seconds)
    with protection.watched() as steady:
        ours = _offered(protection.guest, seconds)
    protection.settle()
    base_iops = _saturated(plain, seconds)["iops"]
    with protection.watched() as busy:
        full = _saturated(protection.guest, busy_seconds)
    protection.settle()
    with BitmapPeer(plain) as cycles:
        peer = _saturated(plain, seconds)
    return {
        "baseline_p50_us": _percentile_us(base, 50),
        "added_p50_us": _percentile_us(ours, 50) - _percentile_us(base, 50),
        "added_p99_us": _percentile_us(ours, 99) - _percentile_us(base, 99),
        "achieved_ratio": ours["iops"] / IOPS,
        "saturation_ratio": full["iops"] / base_iops,
        "bitmap_saturation_ratio": peer["iops"] / base_iops,
        "over_bitmap_ratio": full["iops"] / peer["iops"],
        "max_stall_s": max(ours["clat_ns"]["max"], full["clat_ns"]["max"]) / 1e9,
        "streaming_share": min(steady.streaming_share, busy.streaming_share),
        "baseline_iops": base_iops,
        "bitmap_cycle_s": cycles.longest_seconds,
    }


def _offered(writer: Guest, seconds: float) -> dict[str, Any]:
    figures = writer.write(seconds, "--bs=4k", f"--rate_iops={IOPS}")
    if figures["iops"] < ACHIEVED_RATIO_MIN * IOPS:
        raise Invalid(f"the guest wrote only {figures['iops']:.0f} times a second")
    return figures


def _saturated(writer: Guest, seconds: float) -> dict[str, Any]:
    return writer.write(seconds, "--bs=4k")


def _percentile_us(figures: dict[str, Any], percent: int) -> float:
    return float(figures["clat_ns"]["percentile"][f"{percent}.000000"]) / 1e3
