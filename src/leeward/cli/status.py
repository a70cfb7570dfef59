"""`leeward status`: regions, nodes, items, plans and running jobs on one screen.

Owns: what an operator wants to see first at night. Must not know: anything that changes things.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import typer

from leeward.cli import output
from leeward.cli.items import print_items
from leeward.cli.jobs import print_jobs
from leeward.cli.plan_drills import print_plans
from leeward.cli.session import Session, command
from leeward.client.jobs import ENDED
from leeward.client.views import ItemView, MachineView, NodeView
from leeward.core.units import format_seconds
from leeward.model.drills import PlanReadiness
from leeward.model.recovery import Job

_JOBS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSummary:
    """A region, its nodes, how many VMs it has, how many run, of how many their host is silent."""

    name: str
    nodes: tuple[NodeView, ...]
    machines: int
    running: int
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything at once; `jobs` are those that still run."""

    regions: tuple[RegionSummary, ...]
    items: tuple[ItemView, ...]
    plans: tuple[PlanReadiness, ...]
    jobs: tuple[Job, ...]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "status", rich_help_panel="Recovery")(status)


def status(session: Session) -> None:
    """Show regions, nodes, replicated items with their RPO, recovery plans, and jobs that run."""
    client = session.client
    nodes = client.nodes()
    regions = []
    for region in client.regions():
        machines = client.list(MachineView, region.name)
        regions.append(
            RegionSummary(
                name=region.name,
                nodes=tuple(node for node in nodes if node.region == region.name),
                machines=len(machines),
                running=sum(_power(machine) == "running" for machine in machines),
                unknown=sum(_power(machine) == "unknown" for machine in machines),
            )
        )
    vaults = client.vaults()
    summary = Summary(
        regions=tuple(regions),
        items=tuple(item for vault in vaults for item in client.items(vault.name)),
        plans=tuple(plan for vault in vaults for plan in client.plan_drills.listed(vault.name)),
        jobs=tuple(job for job in client.jobs() if job.state not in ENDED),
    )
    session.show(summary, lambda: _print(summary))


def _print(summary: Summary) -> None:
    rows = []
    for region in summary.regions:
        output.say(f"{region.name}: {_machines(region)}")
        for node in region.nodes:
            rows.append([region.name, node.role, node.name, _state(node)])
        if not region.nodes:
            rows.append([region.name, "", "no node enrolled", "offline"])
    output.say("")
    output.print_table(["REGION", "ROLE", "NODE", "STATE"], rows)
    output.say("")
    if summary.items:
        print_items(summary.items)
    else:
        output.say("no VM is protected yet; `leeward protect REGION/VM --to REGION` protects one")
    if summary.plans:
        output.say("")
        print_plans(summary.plans)
    if summary.jobs:
        output.say("")
        print_jobs(summary.jobs[:_JOBS_SHOWN])


def _state(node: NodeView) -> str:
    if node.is_online:
        return "online"
    if not node.last_seen_ns:
        return "offline, not heard since the service started"
    return f"offline for {format_seconds((time.time_ns() - node.last_seen_ns) / 1e9)}"


def _machines(region: RegionSummary) -> str:
    if not region.machines:
        return "no VMs"
    known = f"{region.running} of {region.machines} VMs running"
    return f"{known}, {region.unknown} unknown: their host is silent" if region.unknown else known


def _power(machine: MachineView) -> str:
    return machine.status.power.value if machine.status else "unknown"
