"""The verbs of site recovery: protect, failover, change-recovery-point, commit, unprotect, export.

Owns: those commands, at the top of `leeward`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from leeward.cli import rehearsals
from leeward.cli.arguments import Reference, parse_memory, parse_pairs, parse_reference
from leeward.cli.items import ItemArgument
from leeward.cli.output import Format, format_time
from leeward.cli.plan import print_plan
from leeward.cli.points import StoreOption
from leeward.cli.protecting import protect_several
from leeward.cli.session import (
    DataDirOption,
    NoWaitOption,
    OutputOption,
    RegionOption,
    Session,
    VaultOption,
    command,
)
from leeward.cli.vaults import vault_to_protect_in
from leeward.client.views import ItemView
from leeward.core.errors import InvalidRequest, LeewardError
from leeward.core.ids import check_name
from leeward.model.recovery import POWER_OFF_SECONDS, Job

_PANEL = "Recovery"


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    settings = {"rich_help_panel": _PANEL}
    command(app, "protect", **settings)(protect)
    command(app, "failover", **settings)(failover)
    command(app, "change-recovery-point", **settings)(change_recovery_point)
    command(app, "commit", **settings)(commit)
    command(app, "undo-commit", **settings)(undo_commit)
    rehearsals.register(app, **settings)
    command(app, "reprotect", **settings)(reprotect)
    command(app, "unprotect", **settings)(unprotect)
    app.command("export", rich_help_panel=_PANEL)(export)


def protect(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="VMs, as REGION/NAME, or NAME with --region."),
    ],
    to: Annotated[str, typer.Option("--to", metavar="REGION", help="Target region.")],
    region: RegionOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be created, and create nothing.")
    ] = False,
    vault: Annotated[
        str | None,
        typer.Option("--vault", help="Vault it is protected in. Default: the only one."),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="Replication policy.")] = "",
    resource_group: Annotated[
        str, typer.Option("--target-resource-group", help="Default: <source>-asr.")
    ] = "",
    network: Annotated[
        list[str] | None,
        typer.Option("--target-network", metavar="SOURCE=TARGET", help="Default: <source>-asr."),
    ] = None,
    account: Annotated[
        list[str] | None,
        typer.Option("--target-account", metavar="DISK=ACCOUNT", help="Default: <source>asr."),
    ] = None,
    cache_account: Annotated[
        str, typer.Option("--cache-account", help="Storage account for the cache.")
    ] = "",
    availability_set: Annotated[
        str, typer.Option("--target-availability-set", help="Or none. Default: <source>-asr.")
    ] = "",
    target_vm: Annotated[
        str, typer.Option("--target-vm", help="Name of the VM after failover. Default: the same.")
    ] = "",
    vcpus: Annotated[int, typer.Option("--vcpus", min=0, help="After failover. 0: same.")] = 0,
    memory: Annotated[str, typer.Option("--memory", help="After failover, like 2G.")] = "",
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="NIC=IP", help="Address after failover."),
    ] = None,
    exclude_disk: Annotated[
        list[str] | None,
        typer.Option("--exclude-disk", metavar="DISK", help="Not the system disk."),
    ] = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Replicate a running VM to another region, continuously.

    leeward protect east/web-1 --to west --plan
    leeward protect east/web-1 --to west --target-network corp=dr --exclude-disk scratch
    leeward protect east/web-1 east/db-1 --to west
    """
    wanted = [parse_reference(name, region) for name in names]
    own = {"--target-vm": target_vm, "--target-account": account, "--address": address}
    own["--exclude-disk"] = exclude_disk
    for option, given in own.items():
        if given and len(wanted) > 1:
            raise InvalidRequest(
                f"{option} is about one VM, and {len(wanted)} are named",
                field=option,
                hint="protect that one by itself",
            )
    request: dict[str, object] = {
        "target_region": check_name(to, field="--to"),
        "policy": policy,
        "target_resource_group": resource_group,
        "target_networks": parse_pairs("--target-network", network or []),
        "target_accounts": parse_pairs("--target-account", account or []),
        "cache_account": cache_account,
        "target_availability_set": availability_set,
        "target_vm": target_vm,
        "vcpus": vcpus,
        "memory_mib": parse_memory(memory) if memory else 0,
        "addresses": parse_pairs("--address", address or []),
        "exclude_disks": exclude_disk or [],
        "plan_only": plan,
    }
    chosen = vault_to_protect_in(session.client, vault, may_create=not plan)
    check_name(chosen, field="--vault")
    if len(wanted) == 1:
        _protect_one(session, chosen, wanted[0], request, no_wait=no_wait)
    else:
        protect_several(session, chosen, wanted, request, no_wait=no_wait)


def _protect_one(
    session: Session, vault: str, where: Reference, request: dict[str, object], *, no_wait: bool
) -> None:
    this = {**request, "source_region": where.region, "vm": where.name}
    reply = session.client.protect(vault, this)
    if isinstance(reply, Job):
        done = f"{where.region}/{where.name} is protected in {request['target_region']}"
        session.finish(reply, done, no_wait=no_wait)
    else:
        session.show(reply, lambda: print_plan(reply))


def failover(
    session: Session,
    item: ItemArgument,
    recovery_point: Annotated[
        str,
        typer.Option(
            "--recovery-point",
            help="latest: take in what the cache still gives (least data lost); latest-processed: "
            "the newest one listed (fastest); latest-app-consistent; a recovery point's id; or a "
            "time, as `leeward recovery-point list` shows it.",
        ),
    ] = "latest",
    planned: Annotated[
        bool,
        typer.Option("--planned", help="Shut the source down first and lose nothing."),
    ] = False,
    power_off: Annotated[
        float,
        typer.Option(
            "--power-off-seconds",
            min=0,
            help="With --planned: how long the guest may take to power off before it is paused.",
        ),
    ] = POWER_OFF_SECONDS,
    vault: VaultOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Start the VM in its target region from a recovery point.

    leeward failover web-1 --recovery-point latest
    leeward failover web-1 --planned
    """
    found = session.client.find_item(item, vault)
    job = (
        session.client.planned_failover(
            found, recovery_point=recovery_point, power_off_seconds=power_off
        )
        if planned
        else session.client.failover(found, recovery_point)
    )

    def done() -> str:
        where = _where_it_runs(session, found)
        result = session.client.job(job.id).result if planned and job is not None else {}
        if result.get("guest_powered_off", True):
            return where
        return (
            f"the guest had not powered off after {power_off:g} s and was paused: its disks are "
            f"complete, its file systems as after a power cut\n{where}"
        )

    session.finish(job, done, no_wait=no_wait)


def change_recovery_point(
    session: Session,
    item: ItemArgument,
    recovery_point: Annotated[
        str,
        typer.Argument(metavar="POINT", help="latest-processed, a recovery point's id, or a time."),
    ],
    vault: VaultOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Start a failed-over VM again from another recovery point, until `commit`.

    leeward change-recovery-point web-1 rp-0001-00000042
    """
    found = session.client.find_item(item, vault)
    job = session.client.change_recovery_point(found, recovery_point)
    session.finish(job, lambda: _where_it_runs(session, found), no_wait=no_wait)


def _where_it_runs(session: Session, item: ItemView) -> str:
    """Return where the item's VM runs now, from which moment on, and what comes next."""
    runs = f"{item.name} runs in {item.target_region}"
    with suppress(LeewardError):  # it does run; only the rest of the sentence is lost
        now = session.client.find_item(item.name, item.vault)
        for point in session.client.recovery_points(now):
            if point.id == now.recovery_point:
                runs += f", as it was at {format_time(point.time_ns)} ({point.id})"
    return (
        f"{runs}\nnext: `leeward commit {item.name}`, or until then "
        f"`leeward change-recovery-point {item.name} POINT`"
    )


def commit(
    session: Session, item: ItemArgument, vault: VaultOption = None, no_wait: NoWaitOption = False
) -> None:
    """Make a failover final: its recovery point cannot be changed any more."""
    job = session.client.commit(session.client.find_item(item, vault))
    session.finish(job, f"the failover of {item} is committed", no_wait=no_wait)


def undo_commit(
    session: Session, item: ItemArgument, vault: VaultOption = None, no_wait: NoWaitOption = False
) -> None:
    """Take a commit back: the recovery point can be changed again, until `reprotect`."""
    job = session.client.undo_commit(session.client.find_item(item, vault))
    session.finish(job, f"the failover of {item} is not committed any more", no_wait=no_wait)


def reprotect(
    session: Session, item: ItemArgument, vault: VaultOption = None, no_wait: NoWaitOption = False
) -> None:
    """Replicate a failed-over VM back to the region it came from; `failover` then fails it back.

    leeward reprotect web-1
    """
    found = session.client.find_item(item, vault)
    job = session.client.reprotect(found)
    done = (
        f"{found.name} in {found.target_region} is protected in {found.source_region}\n"
        f"next: `leeward failover {found.name} --planned` moves it to {found.source_region} "
        "without loss"
    )
    session.finish(job, done, no_wait=no_wait)


def unprotect(
    session: Session,
    item: ItemArgument,
    delete_replica: Annotated[
        bool,
        typer.Option("--delete-replica", help="Delete what is stored in the target region too."),
    ] = False,
    vault: VaultOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Stop replicating a VM; the VM itself stays as it is."""
    found = session.client.find_item(item, vault)
    job = session.client.unprotect(found, delete_replica=delete_replica)
    session.finish(job, f"{item} is no longer protected", no_wait=no_wait)


def export(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Item's name or id.")],
    point: Annotated[
        str,
        typer.Argument(metavar="POINT", help="Recovery point, latest, or latest-app-consistent."),
    ],
    disk: Annotated[str, typer.Option("--disk", help="Which disk.")],
    nbd: Annotated[
        Path | None,
        typer.Option("--nbd", metavar="SOCKET", help="Serve it read-only on this unix socket."),
    ] = None,
    raw: Annotated[
        Path | None, typer.Option("--raw", metavar="FILE", help="Write it as a sparse raw image.")
    ] = None,
    store: StoreOption = None,
    vault: VaultOption = None,
    chosen: OutputOption = Format.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Read a disk as it was at a recovery point: as an NBD export, or into a raw image.

    leeward export web-1 latest --disk data --raw data.raw
    leeward export item-94f584dd5277 latest --disk data --nbd data.sock
    --store file:///srv/west/storage/webdataasr/objects
    """
    from leeward.cli import export as work

    if (nbd is None) == (raw is None):
        raise InvalidRequest("say where to: either --nbd SOCKET or --raw FILE")
    found = work.find(item, point, list(store or []), data_dir, vault)
    if nbd is not None:
        work.serve(found, disk, nbd, chosen)
    elif raw is not None:
        work.write(found, disk, raw, chosen)
