"""Commands about replication policies: `leeward policy`.

Owns: how they are asked for and shown. Must not know: what nodes make of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from leeward.cli import output
from leeward.cli.arguments import (
    parse_bandwidth,
    parse_duration,
    parse_seconds,
    parse_tier,
)
from leeward.cli.session import Session, command
from leeward.cli.vaults import DEFAULT_VAULT
from leeward.core.errors import NotFound
from leeward.core.ids import check_name
from leeward.core.units import format_bytes, format_seconds
from leeward.model.recovery import BandwidthLimit, Policy, RetentionTier

app = typer.Typer(help="Replication policies: how often, and how long kept.")

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="The policy's name.")]
PolicyVaultOption = Annotated[str, typer.Option("--vault", help="Vault the policy belongs to.")]


@command(app, "list")
def list_policies(session: Session, vault: PolicyVaultOption = DEFAULT_VAULT) -> None:
    """List a vault's replication policies."""
    found = session.client.policies(vault)
    rows = [
        [
            p.name,
            format_seconds(p.cut_interval_seconds),
            _tiers(p.tiers),
            p.compression,
            p.encryption,
            format_seconds(p.rpo_alert_seconds),
        ]
        for p in found
    ]
    columns = ["POLICY", "CUT EVERY", "KEEP", "COMPRESSION", "ENCRYPTION", "RPO ALERT"]
    session.show(found, lambda: output.print_table(columns, rows))


@command(app, "show")
def show_policy(
    session: Session,
    name: PolicyArgument,
    vault: PolicyVaultOption = DEFAULT_VAULT,
) -> None:
    """Show a replication policy."""
    policy = session.client.policy(vault, name)
    fields = [
        ("policy", policy.name),
        ("cut every", format_seconds(policy.cut_interval_seconds)),
        ("keep", _tiers(policy.tiers)),
        ("compression", policy.compression),
        ("encryption", policy.encryption),
        ("RPO alert", format_seconds(policy.rpo_alert_seconds)),
        ("consistency groups share every", format_seconds(policy.shared_interval_seconds)),
        ("bandwidth", _bandwidth(policy.bandwidth)),
        ("application-consistent", _every(policy.app_consistent_seconds)),
        ("trim", _every(policy.trim_seconds)),
    ]
    session.show(policy, lambda: output.print_fields(fields))


@command(app, "create")
def create_policy(
    session: Session,
    name: PolicyArgument,
    vault: PolicyVaultOption = DEFAULT_VAULT,
    cut_interval: Annotated[
        str | None,
        typer.Option(
            "--cut-interval",
            metavar="DURATION",
            help="Between two recovery points: 1s (unless said), 0.5, 1m.",
        ),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            "--tier",
            metavar="EVERY:FOR",
            help="How many points are kept, how long: all:10m, 1m:2h, 1h:1d. May be given several "
            "times.",
        ),
    ] = None,
    compression: Annotated[
        str | None, typer.Option("--compression", help="zstd (unless said), lz4 or none.")
    ] = None,
    encryption: Annotated[
        str | None,
        typer.Option("--encryption", help="none (unless said) or aes-256-gcm, by the vault's key."),
    ] = None,
    rpo_alert: Annotated[
        str | None,
        typer.Option(
            "--rpo-alert", metavar="DURATION", help="The RPO worth an alert: 30s (unless said)."
        ),
    ] = None,
    shared_interval: Annotated[
        str | None,
        typer.Option(
            "--shared-interval",
            metavar="DURATION",
            help="Between two points that the items of a consistency group share: 1m (unless "
            "said).",
        ),
    ] = None,
    bandwidth: Annotated[
        list[str] | None,
        typer.Option(
            "--bandwidth",
            metavar="[HH:MM-HH:MM=]SIZE",
            help="Bytes a second each VM may send, at a time of the day by its host's clock: "
            "08:00-18:00=5M, then 50M for the rest; 0 is no limit. The first that fits counts.",
        ),
    ] = None,
    app_consistent: Annotated[
        str | None,
        typer.Option(
            "--app-consistent-every",
            metavar="DURATION",
            help="How often guests are frozen, by their agent, for application-consistent points: "
            "1h. 0 (unless said): only by `leeward recovery-point create`.",
        ),
    ] = None,
    trim: Annotated[
        str | None,
        typer.Option(
            "--trim-every",
            metavar="DURATION",
            help="How often guests are asked, through their agent, to give back what they do not "
            "use: 7d. 0 (unless said): only by `leeward vm trim`.",
        ),
    ] = None,
) -> None:
    """Create a replication policy, or change what is named of one that is there.

    leeward policy create gold --cut-interval 1 --tier all:10m --tier 1m:2h --tier 1h:7d
    """
    asked: dict[str, Any] = {
        "cut_interval_seconds": _seconds(cut_interval, "--cut-interval"),
        "tiers": tuple(parse_tier(each) for each in tier) if tier else None,
        "compression": compression,
        "encryption": encryption,
        "rpo_alert_seconds": _seconds(rpo_alert, "--rpo-alert"),
        "shared_interval_seconds": _seconds(shared_interval, "--shared-interval"),
        "bandwidth": tuple(parse_bandwidth(each) for each in bandwidth) if bandwidth else None,
        "app_consistent_seconds": None
        if app_consistent is None
        else parse_duration(app_consistent, field="--app-consistent-every"),
        "trim_seconds": None if trim is None else parse_duration(trim, field="--trim-every"),
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    policy = replace(_policy_before(session, vault, check_name(name)), **changes)
    session.client.put_policy(vault, policy)
    session.show(policy, lambda: output.say(f"policy {vault}/{name} is set"))


@command(app, "delete")
def delete_policy(
    session: Session,
    name: PolicyArgument,
    vault: PolicyVaultOption = DEFAULT_VAULT,
) -> None:
    """Delete a replication policy that no item follows."""
    session.client.delete_policy(vault, name)
    session.show({"done": True}, lambda: output.say(f"policy {vault}/{name} is gone"))


def _policy_before(session: Session, vault: str, name: str) -> Policy:
    """Return the policy as it is; one of defaults where there is none yet. What keeps recovery
    points for how long must not change because something else does."""
    try:
        return session.client.policy(vault, name)
    except NotFound:
        return Policy(name=name)


def _seconds(text: str | None, option: str) -> float | None:
    return None if text is None else parse_seconds(text, field=option)


def _every(seconds: int) -> str:
    return f"every {format_seconds(seconds)}" if seconds else "when asked"


def _bandwidth(limits: Sequence[BandwidthLimit]) -> str:
    return ", ".join(
        f"{limit.start}-{limit.end} {rate(limit.bytes_per_second)}" for limit in limits
    ) or rate(0)


def rate(bytes_per_second: int) -> str:
    return f"{format_bytes(bytes_per_second)}/s" if bytes_per_second else "no limit"


def _tiers(tiers: tuple[RetentionTier, ...]) -> str:
    return ", ".join(
        f"{'every one' if not t.every_seconds else 'one per ' + format_seconds(t.every_seconds)} "
        f"for {format_seconds(t.for_seconds)}"
        for t in tiers
    )
