"""A job's steps while they run: a live picture on a terminal, plain lines elsewhere.

Owns: how progress looks. Must not know: what the steps do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leeward.cli.output import console
from leeward.client.jobs import wait_job
from leeward.core.units import format_bytes, format_seconds
from leeward.model.recovery import Job, JobState, JobStep

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leeward.client.client import Client

_LINE_SECONDS = 2.0
"""Where lines are printed: a step that ends sooner has one line, a longer one also says that it
runs, and so often how far it is if it moves bytes."""
_BAR_CELLS = range(6, 25)
_COLUMNS_BESIDE_BAR = 78
"""What the longest line without a detail needs beside its bar."""
_MARKS = {
    JobState.PENDING: "·",
    JobState.RUNNING: "▸",
    JobState.SUCCEEDED: "✓",
    JobState.FAILED: "✗",
    JobState.CANCELLED: "-",
}


def watch(client: Client, job: Job, *, quiet: bool) -> Job:
    """Return the job when it has ended, having shown its steps on standard error."""
    if quiet:
        return wait_job(client, job)
    if not sys.stderr.isatty():
        return wait_job(client, job, on_progress=Lines().show)
    from rich.live import Live

    screen = console(on_errors=True)
    with Live(console=screen, refresh_per_second=8) as live:
        return wait_job(
            client, job, on_progress=lambda now: live.update(picture(now, screen.width))
        )


def describe(step: JobStep, *, now_ns: int, bar_cells: int = _BAR_CELLS[-1]) -> str:
    """Return a step's line: mark, name, bar, bytes, rate, time left, detail."""
    parts = [f"{_MARKS[step.state]} {step.name}"]
    if step.bytes_total:
        done = min(step.bytes_done / step.bytes_total, 1.0)
        filled = round(done * bar_cells)
        parts.append(f"{'━' * filled}{'╌' * (bar_cells - filled)} {done:4.0%}")
        parts.append(_amount(step.bytes_done, step.bytes_total))
    seconds = ((step.ended_ns or now_ns) - step.started_ns) / 1e9 if step.started_ns else 0.0
    if step.bytes_done and seconds > 0.2:
        parts.append(f"{format_bytes(step.bytes_done / seconds)}/s")
    if step.state is JobState.RUNNING and step.eta_seconds >= 0 and step.bytes_total:
        parts.append(f"ETA {format_seconds(step.eta_seconds)}")
    elif step.started_ns and step.state is not JobState.PENDING:
        parts.append(format_seconds(max(seconds, 0.0)))
    if step.detail:
        parts.append(step.detail)
    return "  ".join(parts)


def _amount(done: int, total: int) -> str:
    """Return "1.5 of 64.0 MiB"; the first unit only where it is another one."""
    so_far, in_all = format_bytes(done), format_bytes(total)
    number, _, unit = so_far.partition(" ")
    return f"{number if in_all.endswith(f' {unit}') else so_far} of {in_all}"


def picture(job: Job, columns: int) -> RenderableType:
    """Return the job's steps, one line each on a terminal of that many columns."""
    from rich.text import Text

    styles = {JobState.SUCCEEDED: "green", JobState.FAILED: "red", JobState.PENDING: "dim"}
    cells = min(max(columns - _COLUMNS_BESIDE_BAR, _BAR_CELLS[0]), _BAR_CELLS[-1])
    lines = []
    for step in job.steps:
        line = describe(step, now_ns=time.time_ns(), bar_cells=cells)
        lines.append(Text(f"  {line}", style=styles.get(step.state, "")))
    return Text("\n").join(lines or [Text(f"  {job.verb} {job.target}")])


@dataclass(slots=True)
class Lines:
    """Prints a step when it has ended, and now and then before that if it takes long."""

    clock: Callable[[], float] = time.monotonic
    _ended: set[str] = field(default_factory=set)
    _printed: dict[str, float] = field(default_factory=dict)
    """When each step was seen to run first, or was printed last."""
    _said_running: set[str] = field(default_factory=set)

    def show(self, job: Job) -> None:
        """Print what has changed since the last call."""
        for step in job.steps:
            if step.state is JobState.RUNNING:
                self._show_running(step)
            elif step.state is not JobState.PENDING and step.name not in self._ended:
                self._ended.add(step.name)
                _print_line(step)

    def _show_running(self, step: JobStep) -> None:
        now = self.clock()
        if now - self._printed.setdefault(step.name, now) < _LINE_SECONDS:
            return
        if step.bytes_total or step.name not in self._said_running:
            self._printed[step.name] = now
            self._said_running.add(step.name)
            _print_line(step)


def _print_line(step: JobStep) -> None:
    print(f"  {describe(step, now_ns=time.time_ns())}", file=sys.stderr, flush=True)
