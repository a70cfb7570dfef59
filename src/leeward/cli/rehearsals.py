"""Test failover from the command line: `leeward test-failover` and its clean-up.

Owns: their options. Must not know: how a test VM is isolated.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from leeward.cli.arguments import parse_pairs
from leeward.cli.items import ItemArgument
from leeward.cli.session import NoWaitOption, Session, VaultOption, command
from leeward.core.codec import from_plain
from leeward.core.errors import InvalidRequest
from leeward.protocol.fabric import VmStatus


def register(app: typer.Typer, **settings: Any) -> None:
    """Add the commands to the program."""
    command(app, "test-failover", **settings)(rehearse)
    command(app, "test-failover-cleanup", **settings)(clean_up)


def rehearse(
    session: Session,
    item: ItemArgument,
    recovery_point: Annotated[
        str,
        typer.Option(
            "--recovery-point",
            help="latest, latest-processed, latest-app-consistent, an id, or a time.",
        ),
    ] = "latest",
    forward: Annotated[
        list[int] | None,
        typer.Option(
            "--forward",
            metavar="PORT",
            min=1,
            max=65535,
            help="TCP port of the test VM that its host forwards from 127.0.0.1: of isolated "
            "copies the only way in, and there is none out. May be given several times.",
        ),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            metavar="[NIC=]NETWORK[/SUBNET]",
            help="Network of the target region set aside for tests, or `isolated`: of all "
            "interfaces, or of one. Else as `leeward item update --test-network` has it.",
        ),
    ] = None,
    vault: VaultOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Boot a test VM from a recovery point; replication goes on.

    Its networks are isolated copies, unless some set aside for tests are named, here or by
    `leeward item update`.

    leeward test-failover web-1 --forward 8080
    """
    found = session.client.find_item(item, vault)
    for_all = [text for text in network or [] if "=" not in text]
    if len(for_all) > 1:
        raise InvalidRequest(f"--network: {' and '.join(for_all)} are both for all interfaces")
    networks = parse_pairs("--network", [text for text in network or [] if "=" in text])
    job = session.client.test_failover(
        found,
        recovery_point,
        forwards=tuple(forward or ()),
        network="".join(for_all),
        networks=networks,
    )

    def done() -> str:
        result = session.client.job(job.id).result if job else {}
        status = from_plain(result.get("status", {"vm_id": "", "power": "unknown"}), VmStatus)
        forwards = ", ".join(
            f"{f.host_address}:{f.host_port} → {f.guest_port}" for f in status.forwards
        )
        reached = f"reachable on its host at {forwards}\n" if forwards else ""
        where = "isolated"
        if name := result.get("network"):
            addresses = from_plain(result.get("addresses", {}), dict[str, str])
            where = f"in network {name} at {', '.join(addresses.values())}"
        return (
            f"a test VM of {found.name} runs in {found.target_region}, {where}, from "
            f"{result.get('recovery_point')}\n{reached}"
            f"next: `leeward test-failover-cleanup {found.name}`"
        )

    session.finish(job, done, no_wait=no_wait)


def clean_up(
    session: Session, item: ItemArgument, vault: VaultOption = None, no_wait: NoWaitOption = False
) -> None:
    """Remove every trace of an item's test VM."""
    job = session.client.clean_up_test_failover(session.client.find_item(item, vault))
    session.finish(job, f"nothing of the test VM of {item} is left", no_wait=no_wait)
