"""Commands about jobs: `leeward job`.

Owns: how jobs are listed, shown and waited for. Must not know: what any job does.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.progress import describe
from leeward.cli.session import Session, command
from leeward.core.units import format_seconds
from leeward.model.recovery import (
    Job,
)

app = typer.Typer(help="Jobs: long operations, their steps and their ends.")

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, as `leeward job list` shows it.")
]


@command(app, "list")
def list_jobs(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Newest so many.")] = 20,
) -> None:
    """List the jobs, newest first."""
    jobs = session.client.jobs(limit=limit)
    session.show(jobs, lambda: print_jobs(jobs))


@command(app, "show")
def show_job(session: Session, job_id: JobArgument) -> None:
    """Show a job and its steps."""
    job = session.client.job(job_id)

    def table() -> None:
        print_jobs((job,))
        for step in job.steps:
            output.say(f"  {describe(step, now_ns=time.time_ns())}")

    session.show(job, table)


@command(app, "wait")
def wait_for_job(session: Session, job_id: JobArgument) -> None:
    """Wait for a job to end; exit code 1 if it failed."""
    session.finish(session.client.job(job_id), f"{job_id} has succeeded")


@command(app, "cancel")
def cancel_job(session: Session, job_id: JobArgument) -> None:
    """Ask a job to end and undo what it did, where that is safe.

    vm.create, item.protect, item.planned-failover until the source is fenced, item.reprotect until
    the former source is removed, recovery-plan.run between two steps. Others are refused.
    """
    job = session.client.cancel_job(job_id)
    text = f"{job_id} is asked to end; `leeward job wait {job_id}` tells when it has"
    session.show(job, lambda: output.say(text))


def print_jobs(jobs: tuple[Job, ...]) -> None:
    """Print jobs, one a line, then what went wrong, a sentence each."""
    rows = [
        [
            job.id,
            job.verb,
            job.target,
            job.state.value,
            output.format_time(job.created_ns),
            format_seconds((job.ended_ns - job.created_ns) / 1e9) if job.ended_ns else "",
        ]
        for job in jobs
    ]
    output.print_table(["JOB", "VERB", "TARGET", "STATE", "BEGUN", "TOOK#"], rows)
    failed = [job for job in jobs if job.error]
    if failed:
        output.say("")
    for job in failed:
        output.say(f"{job.id} failed: {job.error}")
