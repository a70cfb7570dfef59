"""How a job's progress looks."""

from __future__ import annotations

import time

import pytest

from leeward.cli.progress import Lines, describe, picture
from leeward.model.recovery import Job, JobState, JobStep

SECOND = 10**9


def step(**fields: object) -> JobStep:
    return JobStep(**{"name": "initial replication", "state": JobState.RUNNING, **fields})  # type: ignore[arg-type]


def test_step_that_moves_bytes_shows_share_amount_rate_and_time_left() -> None:
    line = describe(
        step(started_ns=SECOND, bytes_done=16 << 20, bytes_total=64 << 20, eta_seconds=6.0),
        now_ns=3 * SECOND,
    )
    assert " 25%" in line
    assert "16.0 of 64.0 MiB" in line
    assert "8.0 MiB/s" in line
    assert "ETA 6.0 s" in line


def test_step_without_bytes_shows_its_time() -> None:
    line = describe(step(started_ns=SECOND, detail="booting"), now_ns=4 * SECOND)
    assert line == "▸ initial replication  3.0 s  booting"


def job_of(*steps: JobStep) -> Job:
    return Job(id="j", verb="v", target="t", state=JobState.RUNNING, created_ns=1, steps=steps)


def test_a_quick_step_has_one_line_where_lines_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(clock=lambda: 0.0)
    waiting = step(name="next", state=JobState.PENDING)
    lines.show(job_of(step(started_ns=SECOND), waiting))
    assert capsys.readouterr().err == ""
    done = step(state=JobState.SUCCEEDED, started_ns=SECOND, ended_ns=2 * SECOND)
    lines.show(job_of(done, waiting))
    lines.show(job_of(done, waiting))
    assert capsys.readouterr().err == "  ✓ initial replication  1.0 s\n"


def test_a_long_step_says_that_it_runs_once_and_how_far_it_is_again_and_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    moving = step(started_ns=SECOND, bytes_done=1 << 20, bytes_total=4 << 20)
    still = step(name="boot", started_ns=SECOND)
    for second in range(7):
        now = float(second)
        lines.show(job_of(moving, still))
    printed = capsys.readouterr().err
    assert printed.count("initial replication") == 3
    assert printed.count("boot") == 1


@pytest.mark.parametrize("columns", [80, 110, 200])
def test_a_step_that_moves_bytes_fits_on_a_line_of_the_terminal(columns: int) -> None:
    from rich.console import Console

    moving = step(
        started_ns=time.time_ns() - 20 * SECOND,
        bytes_done=402 << 20,
        bytes_total=418 << 20,
        eta_seconds=59.0,
    )
    screen = Console(width=columns)
    with screen.capture() as capture:
        screen.print(picture(job_of(moving), columns))
    assert len(capture.get().splitlines()) == 1
