"""Commands about drills of recovery plans.

Owns: `leeward recovery-plan drill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.arguments import parse_duration
from leeward.cli.drills import due, finding_line, outcome, ready, schedule
from leeward.cli.session import NoWaitOption, Session, command
from leeward.cli.vaults import DEFAULT_VAULT
from leeward.core.units import format_seconds
from leeward.model.drills import PlanDrill, PlanDrillResult, PlanReadiness

app = typer.Typer(help="Drills of a recovery plan: all its VMs, in order, in isolation.")

PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="The plan's name.")]
PlanVaultOption = Annotated[str, typer.Option("--vault", help="Vault the plan belongs to.")]
_POINTS = "latest, latest-processed, latest-app-consistent or latest-shared"


@command(app, "run")
def run_drill(
    session: Session,
    name: PlanArgument,
    recovery_point: Annotated[
        str, typer.Option("--recovery-point", help=f"{_POINTS}. Default: as the drill says.")
    ] = "",
    vault: PlanVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Drill a plan now: boot its VMs in order and isolation, ask them, read their points, clean up.

    Its actions are carried out as in a test; approvals are passed over.

    leeward recovery-plan drill run site
    """
    job = session.client.plan_drills.run(vault, name, recovery_point)

    def done() -> str:
        results = session.client.plan_drills.results(vault, name)
        found = [line for each in results if each.verdict.job_id == job.id for line in _lines(each)]
        return "\n".join([f"plan {name} is proven", *found])

    session.finish(job, done, no_wait=no_wait)


@command(app, "create")
def put_drill(
    session: Session,
    name: PlanArgument,
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION", help="Drill it so often: 12h, 7d.")
    ] = "",
    recovery_point: Annotated[str, typer.Option("--recovery-point", help=f"{_POINTS}.")] = "latest",
    boot_only: Annotated[
        bool, typer.Option("--boot-only", help="Do not read the whole recovery points.")
    ] = False,
    vault: PlanVaultOption = DEFAULT_VAULT,
) -> None:
    """Say how often a plan is drilled; given again, it is changed. What each VM is asked, its own
    `leeward drill create` says.

    leeward recovery-plan drill create site --every 7d
    """
    drill = PlanDrill(
        name=name,
        vault=vault,
        every_seconds=parse_duration(every, field="--every") if every else 0,
        recovery_point=recovery_point,
        reads_all=not boot_only,
    )
    kept = session.client.plan_drills.put(drill)
    session.show(kept, lambda: output.say(f"plan {name} is drilled {schedule(kept)}"))


@command(app, "delete")
def delete_drill(
    session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT
) -> None:
    """Drill a plan no more by itself; the evidence of its drills stays."""
    session.client.plan_drills.delete(vault, name)
    session.show({"done": True}, lambda: output.say(f"plan {name} is drilled no more by itself"))


@command(app, "list")
def list_drills(session: Session, vault: PlanVaultOption = DEFAULT_VAULT) -> None:
    """List a vault's plans: how often each is drilled, and what its last drill proved."""
    found = session.client.plan_drills.listed(vault)
    session.show(found, lambda: print_plans(found))


@command(app, "show")
def show_drills(
    session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT
) -> None:
    """Show a plan's drills and what the newest has found; `leeward drill show ITEM` has all of one
    VM."""
    results = session.client.plan_drills.results(vault, name)

    def table() -> None:
        if not results:
            output.say(
                f"plan {name} has not been drilled yet; `leeward recovery-plan drill run {name}` "
                "does it"
            )
            return
        headings = ["DRILL", "BEGAN", "TOOK#", "OUTCOME", "RECOVERY POINTS"]
        output.print_table(headings, [_row(result) for result in results])
        output.say("")
        output.say(f"{results[0].verdict.job_id}, on host {results[0].host}:")
        for line in _lines(results[0]):
            output.say(line)

    session.show(results, table)


def print_plans(found: Sequence[PlanReadiness]) -> None:
    """People see how these plans are drilled, and what that proved."""
    rows = [
        [
            each.plan,
            schedule(each.drill) if each.drill else "when asked",
            ready(each.readiness),
            due(each.drill) if each.drill else "",
        ]
        for each in found
    ]
    output.print_table(["PLAN", "DRILLED", "READINESS", "NEXT"], rows)
    for each in found:
        if each.readiness.problem:
            output.say(f"{each.plan}: {each.readiness.problem}")


def _lines(result: PlanDrillResult) -> list[str]:
    return [f"  {finding_line(each)}" for each in result.findings]


def _row(result: PlanDrillResult) -> list[str]:
    verdict = result.verdict
    return [
        verdict.job_id,
        output.format_time(verdict.began_ns),
        format_seconds((verdict.ended_ns - verdict.began_ns) / 1e9),
        outcome(verdict),
        verdict.recovery_point,
    ]
