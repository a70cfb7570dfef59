"""Commands about recovery plans.

Owns: `leeward recovery-plan`.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from leeward.cli import output
from leeward.cli.plan_drills import app as drill_app
from leeward.cli.session import NoWaitOption, Session, command
from leeward.cli.vaults import DEFAULT_VAULT
from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name
from leeward.core.units import format_seconds
from leeward.model.plans import PlanAction, PlanReport, RecoveryPlan

app = typer.Typer(help="Recovery plans: many VMs in order, with what has to happen between.")
app.add_typer(drill_app, name="drill", no_args_is_help=True)

PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="The plan's name.")]
PlanVaultOption = Annotated[str, typer.Option("--vault", help="Vault the plan belongs to.")]
PointOption = Annotated[
    str,
    typer.Option(
        "--recovery-point",
        help="latest, latest-processed, latest-app-consistent, or latest-shared: items of a "
        "consistency group go to the newest point that it shares, others to latest-processed.",
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="The groups and their actions, as TOML or JSON."),
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME=ITEM,ITEM",
        help="A group without actions, in place of --file. May be given several times, in order.",
    ),
]


@command(app, "list")
def list_plans(session: Session, vault: PlanVaultOption = DEFAULT_VAULT) -> None:
    """List a vault's recovery plans."""
    found = session.client.plans.listed(vault)
    rows = [
        [plan.name, ", ".join(f"{g.name} ({len(g.items)})" for g in plan.groups)] for plan in found
    ]
    session.show(found, lambda: output.print_table(["PLAN", "GROUPS (VMS)"], rows))


@command(app, "show")
def show_plan(session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT) -> None:
    """Show a recovery plan: its groups, their VMs and actions."""
    plan = session.client.plans.get(vault, name)
    session.show(plan, lambda: _print_plan(plan))


@command(app, "create")
def create_plan(
    session: Session,
    name: PlanArgument,
    file: FileOption = None,
    group: GroupOption = None,
    vault: PlanVaultOption = DEFAULT_VAULT,
) -> None:
    """Create a recovery plan; `update` replaces one.

    leeward recovery-plan create site --group db=db-1 --group web=web-1,web-2
    leeward recovery-plan create site --file site.toml
    """
    known = {plan.name for plan in session.client.plans.listed(vault)}
    if name in known:
        raise InvalidRequest(
            f"there is a plan {name} already",
            field="name",
            hint=f"`leeward recovery-plan update {name}` replaces it",
        )
    plan = session.client.plans.put(vault, check_name(name), _described(file, group or []))
    session.show(plan, lambda: output.say(f"plan {vault}/{name} is set"))


@command(app, "update")
def update_plan(
    session: Session,
    name: PlanArgument,
    file: FileOption = None,
    group: GroupOption = None,
    vault: PlanVaultOption = DEFAULT_VAULT,
) -> None:
    """Replace a recovery plan's groups and actions.

    leeward recovery-plan update site --file site.toml
    """
    session.client.plans.get(vault, name)
    plan = session.client.plans.put(vault, name, _described(file, group or []))
    session.show(plan, lambda: output.say(f"plan {vault}/{name} is changed"))


@command(app, "delete")
def delete_plan(
    session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT
) -> None:
    """Delete a recovery plan; what it fails over stays as it is."""
    session.client.plans.delete(vault, name)
    session.show({"done": True}, lambda: output.say(f"plan {vault}/{name} is gone"))


@command(app, "dry-run")
def dry_run(session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT) -> None:
    """Show what a run would do now and what is against it, and do nothing."""
    shown = session.client.plans.dry_run(vault, name)

    def table() -> None:
        output.say(f"{name} would fail over to {shown.target_region or 'nowhere'}:")
        for step in shown.steps:
            output.say(f"  {step}")
        for obstacle in shown.obstacles:
            output.say(f"not now: {obstacle}")

    session.show(shown, table)


@command(app, "run")
def run_plan(
    session: Session,
    name: PlanArgument,
    planned: Annotated[
        bool, typer.Option("--planned", help="Shut the sources down first and lose nothing.")
    ] = False,
    recovery_point: PointOption = "latest",
    vault: PlanVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Fail the plan's VMs over, group after group; back, once they are reprotected.

    leeward recovery-plan run site --planned
    """
    job = session.client.plans.run(vault, name, planned=planned, recovery_point=recovery_point)
    session.finish(job, f"plan {name} is through", no_wait=no_wait)


@command(app, "test")
def rehearse_plan(
    session: Session,
    name: PlanArgument,
    recovery_point: PointOption = "latest",
    vault: PlanVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Test the plan: its VMs boot in isolated networks that they share; replication goes on.

    Its actions are carried out; scripts and calls are told that it is a test ("is_test": true).

    leeward recovery-plan test site
    """
    job = session.client.plans.test(vault, name, recovery_point=recovery_point)
    text = f"the test of plan {name} is through; next: `leeward recovery-plan test-cleanup {name}`"
    session.finish(job, text, no_wait=no_wait)


@command(app, "test-cleanup")
def clean_up_test(
    session: Session,
    name: PlanArgument,
    vault: PlanVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Remove every trace of a plan's test: VMs, disks, networks."""
    job = session.client.plans.clean_up_test(vault, name)
    session.finish(job, f"nothing of the test of plan {name} is left", no_wait=no_wait)


@command(app, "resume")
def resume_plan(
    session: Session,
    name: PlanArgument,
    vault: PlanVaultOption = DEFAULT_VAULT,
    no_wait: NoWaitOption = False,
) -> None:
    """Go on where the plan's last run stopped; what it had done is not done again."""
    job = session.client.plans.resume(vault, name)
    session.finish(job, f"plan {name} is through", no_wait=no_wait)


@command(app, "approve")
def approve(
    session: Session,
    name: PlanArgument,
    action: Annotated[
        str, typer.Argument(metavar="[ACTION]", help="Default: whichever it waits for.")
    ] = "",
    comment: Annotated[str, typer.Option("--comment", help="Kept with the run.")] = "",
    vault: PlanVaultOption = DEFAULT_VAULT,
) -> None:
    """Approve the action that the plan's run waits for."""
    approval = session.client.plans.approve(vault, name, action=action, comment=comment)
    session.show(approval, lambda: output.say(f"{approval.step} is approved"))


@command(app, "report")
def report(session: Session, name: PlanArgument, vault: PlanVaultOption = DEFAULT_VAULT) -> None:
    """Show how the plan's newest run goes or went, step by step, with times."""
    shown = session.client.plans.report(vault, name)
    session.show(shown, lambda: _print_report(shown))


def _described(file: Path | None, groups: list[str]) -> dict[str, object]:
    if (file is None) == (not groups):
        raise InvalidRequest("give --file or --group", field="--file")
    if file is None:
        return {"groups": [_group(text) for text in groups]}
    try:
        text = file.read_text(encoding="utf-8")
        read: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror}", field="--file") from error
    except ValueError as error:
        raise InvalidRequest(f"{file}: {error}", field="--file") from error
    if not isinstance(read, dict):
        raise InvalidRequest(f"{file}: not a table of groups", field="--file")
    return dict(read)


def _group(text: str) -> dict[str, object]:
    name, _, items = text.partition("=")
    if not items:
        raise InvalidRequest(f"--group: {text!r} is not NAME=ITEM,ITEM", field="--group")
    return {"name": name, "items": items.split(",")}


def _print_plan(plan: RecoveryPlan) -> None:
    rows = [
        [
            group.name,
            ", ".join(group.after),
            ", ".join(_action(action) for action in group.pre),
            ", ".join(group.items),
            ", ".join(_action(action) for action in group.post),
        ]
        for group in plan.groups
    ]
    output.print_table(["GROUP", "AFTER", "BEFORE ITS VMS", "VMS", "THEN"], rows, title=plan.name)


def _action(action: PlanAction) -> str:
    return f"{action.name} ({action.kind.value})"


def _print_report(shown: PlanReport) -> None:
    output.say(f"{shown.plan}: {shown.state}, {format_seconds(shown.took_seconds)}")
    rows = [
        [
            each.step.group,
            each.step.what,
            each.step.subject,
            each.state,
            format_seconds(each.took_seconds) if each.took_seconds else "",
            each.detail,
        ]
        for each in shown.steps
    ]
    output.print_table(["GROUP", "WHAT", "SUBJECT", "STATE", "TOOK#", "DETAIL"], rows)
    for line in shown.critical_path:
        output.say(f"critical path: {line}")
    if shown.waits_for:
        output.say(f"waits for approval: `leeward recovery-plan approve {shown.plan}`")
    if shown.error:
        output.say(f"stopped: {shown.error}; `leeward recovery-plan resume {shown.plan}` goes on")
