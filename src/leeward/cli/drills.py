"""Commands about drills.

Owns: `leeward drill`, and how readiness is told.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.arguments import parse_duration, parse_probe
from leeward.cli.session import NoWaitOption, Session, VaultOption, command
from leeward.client.views import ItemView
from leeward.core.errors import Conflict, NotFound
from leeward.core.units import format_bytes, format_seconds
from leeward.model.drills import (
    Drill,
    DrillOutcome,
    DrillResult,
    DrillVerdict,
    Finding,
    PlanDrill,
    Readiness,
    ReadinessState,
)

app = typer.Typer(help="Drills: test failovers that look for themselves whether a VM comes up.")

ItemArgument = Annotated[
    str, typer.Argument(metavar="ITEM", help="Name of the replicated item (its source VM's).")
]
PointOption = Annotated[
    str,
    typer.Option("--recovery-point", help="latest, latest-processed or latest-app-consistent."),
]


@command(app, "run")
def run_drill(
    session: Session,
    item: ItemArgument,
    recovery_point: Annotated[
        str, typer.Option("--recovery-point", help="Any, also an id. Default: as the drill says.")
    ] = "",
    vault: VaultOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Drill an item now: boot a test VM in isolation, ask it, read its point, clean up.

    leeward drill run web-1
    """
    found = session.client.find_item(item, vault)
    job = session.client.drills.run(found, recovery_point)
    session.finish(job, lambda: _passed(session, found, job.id), no_wait=no_wait)


@command(app, "create")
def put_drill(
    session: Session,
    item: ItemArgument,
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION", help="Drill it so often: 12h, 1d.")
    ] = "",
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="tcp:PORT|http:PORT/PATH",
            help="What must answer inside; with ,status=204 ,text=TEXT ,timeout=2m. May be given "
            "several times.",
        ),
    ] = None,
    recovery_point: PointOption = "latest",
    boot: Annotated[
        str, typer.Option("--boot", metavar="DURATION", help="How long it may take to boot.")
    ] = "5m",
    boot_only: Annotated[
        bool, typer.Option("--boot-only", help="Do not read the whole recovery point.")
    ] = False,
    vault: VaultOption = None,
) -> None:
    """Say how an item is drilled, and how often; given again, it is changed.

    leeward drill create web-1 --every 1d --probe tcp:5432 --probe http:8080/check,text=ok
    """
    found = session.client.find_item(item, vault)
    drill = Drill(
        name=found.name,
        vault=found.vault,
        every_seconds=parse_duration(every, field="--every") if every else 0,
        recovery_point=recovery_point,
        probes=tuple(parse_probe(each) for each in probe or ()),
        boot_seconds=float(parse_duration(boot, field="--boot")),
        reads_all=not boot_only,
    )
    kept = session.client.drills.put(drill)
    session.show(kept, lambda: output.say(f"{found.name} is drilled {schedule(kept)}"))


@command(app, "delete")
def delete_drill(session: Session, item: ItemArgument, vault: VaultOption = None) -> None:
    """Drill an item no more by itself; the evidence of its drills stays."""
    session.client.drills.delete(session.client.find_item(item, vault))
    session.show({"done": True}, lambda: output.say(f"{item} is drilled no more by itself"))


@command(app, "list")
def list_drills(session: Session, vault: VaultOption = None) -> None:
    """List every item: how often it is drilled, and what its last drill proved."""
    client = session.client
    vaults = [vault] if vault else [each.name for each in client.vaults()]
    items = [item for name in vaults for item in client.items(name)]
    drills = {
        (each.vault, each.name): each for name in vaults for each in client.drills.listed(name)
    }
    shown = [{"item": i.name, "vault": i.vault, "readiness": i.readiness} for i in items]
    for each, item in zip(shown, items, strict=True):
        each["drill"] = drills.get((item.vault, item.name))

    def table() -> None:
        rows = [
            [
                item.name,
                schedule(drill) if drill else "when asked",
                ready(item.readiness),
                item.readiness.recovery_point,
                due(drill) if drill else "",
            ]
            for item in items
            for drill in (drills.get((item.vault, item.name)),)
        ]
        output.print_table(["ITEM", "DRILLED", "READINESS", "RECOVERY POINT", "NEXT"], rows)
        for item in items:
            if item.readiness.problem:
                output.say(f"{item.name}: {item.readiness.problem}")

    session.show(shown, table)


@command(app, "show")
def show_drills(session: Session, item: ItemArgument, vault: VaultOption = None) -> None:
    """Show an item's drills and all the evidence of the newest."""
    found = session.client.find_item(item, vault)
    results = session.client.drills.results(found)

    def table() -> None:
        if not results:
            output.say(f"{item} has not been drilled yet; `leeward drill run {item}` does it")
            return
        output.print_table(
            ["DRILL", "BEGAN", "TOOK#", "OUTCOME", "RECOVERY POINT"], [_row(r) for r in results]
        )
        _print_evidence(results[0])

    session.show(results, table)


@command(app, "screenshot")
def save_screen(
    session: Session,
    item: ItemArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new PNG file.")],
    drill: Annotated[
        str, typer.Option("--drill", help="The drill, as `show` lists it. Default: the newest.")
    ] = "",
    vault: VaultOption = None,
) -> None:
    """Save the picture a drill took of the test VM's display."""
    found = session.client.find_item(item, vault)
    results = session.client.drills.results(found)
    if not drill and not results:
        raise NotFound(f"{item} has not been drilled yet")
    if file.exists():
        raise Conflict(f"{file} exists already", field="file", hint="choose another name")
    picture = session.client.drills.screen(found, drill or results[0].verdict.job_id)
    file.write_bytes(picture)
    shown = {"file": str(file), "bytes": len(picture)}
    session.show(shown, lambda: output.say(f"{file}: {format_bytes(len(picture))}"))


def ready(readiness: Readiness) -> str:
    """Return a readiness for people: "proven 3 h ago"."""
    if readiness.state is ReadinessState.UNPROVEN:
        return "unproven"
    word = "proven" if readiness.state is ReadinessState.PROVEN else "FAILED"
    return f"{word} {format_seconds(readiness.age_seconds)} ago"


def _passed(session: Session, item: ItemView, job_id: str) -> str:
    results = session.client.drills.results(item)
    found = [line for each in results if each.verdict.job_id == job_id for line in _lines(each)]
    return "\n".join([f"{item.name} is proven: it comes up in {item.target_region}", *found])


def _lines(result: DrillResult) -> list[str]:
    return [f"  {finding_line(each)}" for each in result.findings]


def finding_line(finding: Finding) -> str:
    """Return what was found, for people."""
    took = f" after {format_seconds(finding.took_seconds)}" if finding.took_seconds else ""
    return f"{'✓' if finding.passed else '✗'} {finding.name}: {finding.detail}{took}"


def _print_evidence(result: DrillResult) -> None:
    output.say("")
    output.say(f"{result.verdict.job_id}, on host {result.host}:")
    for line in _lines(result):
        output.say(line)
    for disk in result.disks:
        size = format_bytes(disk.size_bytes)
        output.say(f"  disk {disk.disk} ({size}): SHA-256 {disk.sha256}")
    if result.screen_sha256:
        output.say(f"  display: `leeward drill screenshot {result.item} FILE.png`")
    if result.console:
        output.say("  console:")
        for line in result.console.splitlines()[-10:]:
            output.say(f"    {line}")


def _row(result: DrillResult) -> list[str]:
    verdict = result.verdict
    return [
        verdict.job_id,
        output.format_time(verdict.began_ns),
        format_seconds((verdict.ended_ns - verdict.began_ns) / 1e9),
        outcome(verdict) + (f", of plan {result.plan}" if result.plan else ""),
        verdict.recovery_point,
    ]


def outcome(verdict: DrillVerdict) -> str:
    """Return what a drill came to, for people."""
    if verdict.outcome is DrillOutcome.FAILED:
        return f"FAILED: {verdict.problem}"
    return str(verdict.outcome.value).replace("_", " ")


def schedule(drill: Drill | PlanDrill) -> str:
    """Return how often it is, for people."""
    if not drill.every_seconds:
        return "when asked"
    return f"every {format_seconds(drill.every_seconds)}"


def due(drill: Drill | PlanDrill) -> str:
    """Return when it is due next, for people; "": when somebody asks."""
    if not drill.every_seconds:
        return ""
    seconds = (max(drill.since_ns, drill.begun_ns) - time.time_ns()) / 1e9 + drill.every_seconds
    return f"in {format_seconds(seconds)}" if seconds > 0 else f"due for {format_seconds(-seconds)}"
