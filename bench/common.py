"""What every benchmark shares: where it ran, how its figures are printed, fio.

Owns: the output format. Must not know: what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Invalid(Exception):
    """The run does not show what it was meant to show; its figures would mislead."""


@dataclass(frozen=True, slots=True)
class Result:
    """A benchmark's figures. Every metric has one value per run; the median is reported.

    `targets` says what a metric is to reach, for people: "≥ 80 000". Of metrics in `worst` the
    largest value is reported: their name promises a maximum.
    """

    runs: Mapping[str, Sequence[float]]
    targets: Mapping[str, str]
    worst: frozenset[str] = frozenset()


def machine() -> dict[str, object]:
    """Return what the figures depend on and a reader cannot see."""
    return {
        "cpus": os.cpu_count(),
        "model": _cpu_model(),
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def print_result(name: str, result: Result) -> None:
    """Print the table for people and, as the last line, the JSON object for programs."""
    figures = {
        metric: _round(max(runs) if metric in result.worst else statistics.median(runs))
        for metric, runs in result.runs.items()
    }
    width = max(len(metric) for metric in figures)
    print(f"{'metric':<{width}}  {'median':>12}  {'target':>12}  runs")
    for metric, figure in figures.items():
        runs = ", ".join(f"{_round(value):g}" for value in result.runs[metric])
        note = " (the worst)" if metric in result.worst else ""
        target = result.targets.get(metric, "")
        print(f"{metric:<{width}}  {figure:>12g}  {target:>12}  {runs}{note}")
    count = max(len(runs) for runs in result.runs.values())
    print(json.dumps({"bench": name, "machine": machine(), "runs": count, "metrics": figures}))


def fio(*options: str) -> dict[str, Any]:
    """Run fio with `--name=bench` and `options` and return its only job's report.

    Raises: Invalid if it fails.
    """
    command = ["fio", "--name=bench", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        raise Invalid(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    job: dict[str, Any] = json.loads(done.stdout[start:])["jobs"][0]
    if job["error"]:
        raise Invalid(f"fio reports error {job['error']}")
    return job


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory with a short path (unix sockets) that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lwb") as name:
        yield Path(name)


def _round(value: float) -> float:
    return round(value, 3) if abs(value) < 100 else round(value, 1)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
