"""How old the newest recovery point in the target storage is while a guest writes steadily.

Owns: metrics p50_s, p99_s, max_s, achieved_ratio, streaming_share at 50 MB/s and p99_s_100 at
100 MB/s. The age is now minus the source's time of the newest cut whose catalog record the target
storage holds durably (the cache does not count), looked up there every 50 ms.
"""

from __future__ import annotations

import statistics
import threading
import time

from bench.common import Invalid, Result, scratch
from bench.path import ACHIEVED_RATIO_MIN, Protection, guest, protected
from leeward.core.units import GIB

DISK_BYTES = 2 * GIB
SAMPLE_SECONDS = 0.05
WARM_UP_SECONDS = 4.0
"""Not counted: before it the VM was idle, and an idle VM's points may be old without loss."""


def run(seconds: float = 60.0, fast_seconds: float = 120.0) -> Result:
    """Write at 50 MB/s for `seconds`, then at 100 MB/s for `fast_seconds` (0: not at all)."""
    with (
        scratch() as root,
        guest(root, "guest", DISK_BYTES) as writer,
        protected(root, writer) as protection,
    ):
        ages, achieved, share = _ages(protection, 50, seconds)
        figures = {
            "p50_s": [statistics.median(ages)],
            "p99_s": [_p99(ages)],
            "max_s": [max(ages)],
            "achieved_ratio": [achieved],
            "streaming_share": [share],
        }
        if fast_seconds:
            protection.settle()
            figures["p99_s_100"] = [_p99(_ages(protection, 100, fast_seconds)[0])]
    return Result(figures, {"p99_s": "≤ 2", "p99_s_100": "≤ 5"})


def _ages(
    protection: Protection, megabytes: int, seconds: float
) -> tuple[list[float], float, float]:
    """Return the ages sampled, achieved ÷ offered rate, and the share of the time streamed."""
    stop = threading.Event()
    samples: list[tuple[float, float]] = []
    sampler = threading.Thread(target=_sample, args=(protection, samples, stop))
    began = time.monotonic()
    sampler.start()
    try:
        with protection.watched() as window:
            figures = protection.guest.write(
                WARM_UP_SECONDS + seconds, "--bsrange=4k-64k", f"--rate={megabytes * 10**6}"
            )
    finally:
        stop.set()
        sampler.join()
    achieved = figures["bw_bytes"] / (megabytes * 10**6)
    if achieved < ACHIEVED_RATIO_MIN:
        raise Invalid(f"the guest wrote only {achieved:.1%} of {megabytes} MB/s")
    ages = [age for at, age in samples if at - began >= WARM_UP_SECONDS]
    if len(ages) < 0.5 * seconds / SAMPLE_SECONDS:
        raise Invalid(f"only {len(ages)} samples in {seconds} s")
    return ages, achieved, window.streaming_share


def _sample(
    protection: Protection, samples: list[tuple[float, float]], stop: threading.Event
) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        newest = protection.newest_time_ns()
        samples.append((time.monotonic(), (time.time_ns() - newest) / 1e9))


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
