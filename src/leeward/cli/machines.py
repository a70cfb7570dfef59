"""Commands about virtual machines: `leeward vm …`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.arguments import parse_disk, parse_memory, parse_nic, parse_reference
from leeward.cli.disks import app as disk_app
from leeward.cli.resources import GroupOption, NameArgument
from leeward.cli.session import NoWaitOption, RegionOption, Session, command
from leeward.client.views import MachineView
from leeward.core.units import format_bytes
from leeward.model.resources import Disk, VirtualMachine

app = typer.Typer(help="Virtual machines.")
app.add_typer(disk_app, name="disk", no_args_is_help=True)


@command(app, "list")
def list_machines(session: Session, region: RegionOption = None) -> None:
    """List the virtual machines, of every region unless one is named."""
    regions = [region] if region else [each.name for each in session.client.regions()]
    found = tuple(vm for name in regions for vm in session.client.list(MachineView, name))
    rows = [
        [vm.name, vm.region, _power(vm), vm.resource_group, vm.host, _addresses(vm), _forwards(vm)]
        for vm in found
    ]
    columns = ["NAME", "REGION", "STATE", "RESOURCE GROUP", "HOST", "ADDRESSES", "FORWARDS"]
    session.show(found, lambda: output.print_table(columns, rows))


@command(app, "show")
def show_machine(session: Session, name: NameArgument, region: RegionOption = None) -> None:
    """Show a virtual machine."""
    where = parse_reference(name, region)
    vm = session.client.get(MachineView, where.region, where.name)
    status = vm.status
    fields = [
        ("name", vm.name),
        ("region", vm.region),
        ("state", _power(vm)),
        ("host", vm.host),
        ("resource group", vm.resource_group),
        ("availability set", vm.availability_set),
        ("size", f"{vm.vcpus} vCPU, {vm.memory_mib} MiB, {vm.firmware}"),
        ("display", vm.display if vm.display != "none" else ""),
        *((f"disk {disk.name}", _disk(disk)) for disk in vm.disks),
        *(
            (f"interface {nic.name}", f"{nic.network}/{nic.subnet} {nic.address} {nic.mac}")
            for nic in vm.nics
        ),
        ("forwards", _forwards(vm)),
        ("accelerator", status.accelerator if status else ""),
        ("console log", status.console_log if status else ""),
    ]
    session.show(vm, lambda: output.print_fields(fields))


@command(app, "create")
def create_machine(
    session: Session,
    name: NameArgument,
    resource_group: GroupOption,
    disk: Annotated[
        list[str],
        typer.Option(
            "--disk",
            metavar="NAME=ACCOUNT,…",
            help="With ,size=8G or ,image=PATH and, if wanted, ,format=qcow2. The first is the "
            "system disk. May be given several times.",
        ),
    ],
    region: RegionOption = None,
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, help="Virtual processors.")] = 1,
    memory: Annotated[str, typer.Option("--memory", help="Like 256M or 2G.")] = "256M",
    firmware: Annotated[
        str, typer.Option("--firmware", help="bios; hosts refuse uefi so far.")
    ] = "bios",
    display: Annotated[
        str, typer.Option("--display", help="none, or vga: drills take a picture of it.")
    ] = "none",
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic",
            metavar="NAME=NETWORK/SUBNET",
            help="With ,address=IP if it is to be static. May be given several times.",
        ),
    ] = None,
    availability_set: Annotated[
        str, typer.Option("--availability-set", help="Its VMs are kept on different hosts.")
    ] = "",
    forward: Annotated[
        list[int] | None,
        typer.Option(
            "--forward",
            metavar="PORT",
            min=1,
            max=65535,
            help="TCP port of the guest that the host forwards. May be given several times.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Host to place it on.")] = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Create a virtual machine and start it.

    leeward vm create web-1 --region east -g web-rg --memory 256M
    --disk system=sa1,image=system.raw --disk data=sa2,size=64M --nic front=corp/front
    """
    where = parse_reference(name, region)
    machine = VirtualMachine(
        region=where.region,
        name=where.name,
        resource_group=resource_group,
        vcpus=vcpus,
        memory_mib=parse_memory(memory),
        firmware=firmware,
        display=display,
        disks=tuple(_with_absolute_image(parse_disk(each)) for each in disk),
        nics=tuple(parse_nic(each) for each in nic or []),
        availability_set=availability_set,
        forwards=tuple(forward or []),
        host=host,
    )
    job = session.client.put(machine)
    session.finish(job, f"VM {where.region}/{where.name} runs", no_wait=no_wait)


@command(app, "start")
def start_machine(
    session: Session, name: NameArgument, region: RegionOption = None, no_wait: NoWaitOption = False
) -> None:
    """Start a virtual machine."""
    where = parse_reference(name, region)
    job = session.client.start_machine(where.region, where.name)
    session.finish(job, f"VM {where.region}/{where.name} runs", no_wait=no_wait)


@command(app, "stop")
def stop_machine(
    session: Session,
    name: NameArgument,
    region: RegionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Do not ask the guest.")] = False,
    no_wait: NoWaitOption = False,
) -> None:
    """Stop a virtual machine: the guest is asked first and has 30 s."""
    where = parse_reference(name, region)
    job = session.client.stop_machine(where.region, where.name, force=force)
    session.finish(job, f"VM {where.region}/{where.name} is stopped", no_wait=no_wait)


@command(app, "trim")
def trim_machine(
    session: Session, name: NameArgument, region: RegionOption = None, no_wait: NoWaitOption = False
) -> None:
    """Give back the space that a protected VM's guest has discarded.

    QEMU drops a guest's discards while its disks are replicated. The guest's agent is asked to trim
    its file systems once more; for that moment writes are only tracked, and sent afterwards.
    """
    where = parse_reference(name, region)
    job = session.client.trim_machine(where.region, where.name)
    session.finish(job, f"VM {where.region}/{where.name} is trimmed", no_wait=no_wait)


@command(app, "delete")
def delete_machine(
    session: Session, name: NameArgument, region: RegionOption = None, no_wait: NoWaitOption = False
) -> None:
    """Delete a virtual machine and the disks it was created with."""
    where = parse_reference(name, region)
    job = session.client.delete(VirtualMachine, where.region, where.name)
    session.finish(job, f"VM {where.region}/{where.name} is gone", no_wait=no_wait)


def _with_absolute_image(disk: Disk) -> Disk:
    """The host reads the image, from a working directory of its own."""
    return replace(disk, image=os.path.abspath(disk.image)) if disk.image else disk


def _power(vm: MachineView) -> str:
    return vm.status.power.value if vm.status else "unknown"


def _addresses(vm: MachineView) -> str:
    return ", ".join(nic.address for nic in vm.nics if nic.address)


def _forwards(vm: MachineView) -> str:
    forwards = vm.status.forwards if vm.status else ()
    return ", ".join(f"{f.host_address}:{f.host_port} → {f.guest_port}" for f in forwards)


def _disk(disk: Disk) -> str:
    size = format_bytes(disk.size_bytes) if disk.size_bytes else ""
    return " ".join(part for part in (disk.storage_account, disk.format, size, disk.image) if part)
