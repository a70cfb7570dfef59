"""Commands about a virtual machine's disks: `leeward vm disk …`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

import typer

from leeward.cli.arguments import parse_disk, parse_reference
from leeward.cli.resources import NameArgument
from leeward.cli.session import NoWaitOption, RegionOption, Session, command
from leeward.core.units import format_bytes, parse_size

app = typer.Typer(help="Disks of a virtual machine, added, removed and made larger while it runs.")

DiskArgument = Annotated[str, typer.Argument(metavar="DISK", help="Name of the disk.")]


@command(app, "add")
def add_disk(
    session: Session,
    name: NameArgument,
    disk: Annotated[
        str,
        typer.Argument(
            metavar="NAME=ACCOUNT,…",
            help="With ,size=8G or ,image=PATH and, if wanted, ,format=qcow2.",
        ),
    ],
    region: RegionOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Give a virtual machine one more disk. A protected one's is replicated, too.

    leeward vm disk add east/web-1 logs=sa1,size=8G
    """
    where, wanted = parse_reference(name, region), parse_disk(disk)
    if wanted.image:
        wanted = replace(wanted, image=os.path.abspath(wanted.image))
    job = session.client.add_disk(where.region, where.name, wanted)
    session.finish(job, f"VM {where.region}/{where.name} has a disk {wanted.name}", no_wait=no_wait)


@command(app, "remove")
def remove_disk(
    session: Session,
    name: NameArgument,
    disk: DiskArgument,
    region: RegionOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Take a disk from a virtual machine and delete it. Recovery points that have it keep it."""
    where = parse_reference(name, region)
    job = session.client.remove_disk(where.region, where.name, disk)
    session.finish(job, f"disk {disk} of {where.region}/{where.name} is gone", no_wait=no_wait)


@command(app, "grow")
def grow_disk(
    session: Session,
    name: NameArgument,
    disk: DiskArgument,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Its new size, like 16G.")],
    region: RegionOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Make a disk larger. The guest sees it at once; what is on it has to be grown there."""
    where, size_bytes = parse_reference(name, region), parse_size(size, field="size")
    job = session.client.grow_disk(where.region, where.name, disk, size_bytes)
    done = f"disk {disk} of {where.region}/{where.name} has {format_bytes(size_bytes)}"
    session.finish(job, done, no_wait=no_wait)
