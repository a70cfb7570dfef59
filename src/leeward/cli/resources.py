"""Commands about a region's resources: groups, networks, storage accounts, availability sets.

Owns: `leeward region|resource-group|network|storage-account|availability-set`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from leeward.cli import output
from leeward.cli.arguments import Reference, parse_pairs, parse_reference, parse_subnet
from leeward.cli.session import NoWaitOption, RegionOption, Session, command
from leeward.core.errors import InvalidRequest, NotFound
from leeward.core.ids import check_name
from leeward.model.resources import (
    AvailabilitySet,
    Outbound,
    ResourceGroup,
    Routing,
    StorageAccount,
    Subnet,
    VirtualNetwork,
)

RegionArgument = Annotated[str, typer.Argument(metavar="REGION", help="The region's name.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="NAME, or REGION/NAME.")]
GroupOption = Annotated[
    str, typer.Option("--resource-group", "-g", help="Resource group it belongs to.")
]
BridgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bridge",
        metavar="SUBNET=BRIDGE",
        help="Existing bridge of the hosts that the subnet is joined with; may be given several "
        "times.",
    ),
]

region_app = typer.Typer(help="Regions: small clouds, each on hosts of its own.")
group_app = typer.Typer(help="Resource groups: what belongs and goes together.")
network_app = typer.Typer(help="Virtual networks and their subnets.")
account_app = typer.Typer(help="Storage accounts: where disks lie, and an object store.")
set_app = typer.Typer(help="Availability sets: VMs that are kept on different hosts.")


# --- regions


@command(region_app, "list")
def list_regions(session: Session) -> None:
    """List the regions."""
    regions = session.client.regions()
    session.show(regions, lambda: output.print_table(["REGION"], [[r.name] for r in regions]))


@command(region_app, "show")
def show_region(session: Session, name: RegionArgument) -> None:
    """Show a region and its nodes."""
    region = session.client.region(name)
    nodes = [node for node in session.client.nodes() if node.region == name]
    session.show(
        {"name": region.name, "nodes": nodes},
        lambda: output.print_table(
            ["NODE", "ROLE", "STATE"],
            [[n.name, n.role, "online" if n.is_online else "offline"] for n in nodes],
            title=f"Region {name}",
        ),
    )


@command(region_app, "create")
def create_region(session: Session, name: RegionArgument) -> None:
    """Create a region. Its agents and worker enrol with `leeward region token`."""
    region = session.client.create_region(check_name(name))
    session.show(region, lambda: output.say(f"region {name} exists"))


@command(region_app, "delete")
def delete_region(session: Session, name: RegionArgument) -> None:
    """Delete an empty region."""
    session.finish(session.client.delete_region(name), f"region {name} is gone")


@command(region_app, "token")
def make_token(session: Session, name: RegionArgument) -> None:
    """Make a one-time token with which one agent or worker of the region enrols.

    leeward region token east > token; leeward agent --region east --token-file token
    """
    token = session.client.enrolment_token(name)
    session.show(token, lambda: output.say(token.token))


@command(region_app, "forget-node")
def forget_node(
    session: Session,
    name: RegionArgument,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in the region.")],
    with_vms: Annotated[
        bool, typer.Option("--with-vms", help="And the VMs that were on it: they are lost.")
    ] = False,
) -> None:
    """Forget an agent or worker that is gone for good; it must enrol anew should it come back.

    Make sure that it and its VMs run nowhere: what is forgotten is told nothing any more.
    """
    found = [each for each in session.client.nodes() if (each.region, each.name) == (name, node)]
    if not found:
        raise NotFound(f"region {name} has no node {node}", hint=f"`leeward region show {name}`")
    for each in found:
        session.client.forget_node(each.id, with_vms=with_vms)
    session.show({"done": True}, lambda: output.say(f"node {node} of {name} is forgotten"))


# --- the kinds that are listed, shown and deleted alike


def _subnet_words(subnet: Subnet) -> str:
    joined = f" on {subnet.bridge}" if subnet.bridge else ""
    return f"{subnet.name} {subnet.prefix}{joined}"


def _register(
    app: typer.Typer,
    kind: type[Any],
    noun: str,
    columns: dict[str, Callable[[Any], str]],
) -> None:
    """Add list, show and, but for groups, delete for `kind`; columns: heading → what stands under
    it."""

    def rows(found: tuple[Any, ...]) -> list[list[str]]:
        return [[cell(each) for cell in columns.values()] for each in found]

    @command(app, "list", help=f"List the {noun}s, of every region unless one is named.")
    def list_them(session: Session, region: RegionOption = None) -> None:
        regions = [region] if region else [each.name for each in session.client.regions()]
        found = tuple(each for name in regions for each in session.client.list(kind, name))
        session.show(found, lambda: output.print_table(list(columns), rows(found)))

    @command(app, "show", help=f"Show one {noun}.")
    def show_it(session: Session, name: NameArgument, region: RegionOption = None) -> None:
        where = parse_reference(name, region)
        found = session.client.get(kind, where.region, where.name)
        fields = [(heading.lower(), cell(found)) for heading, cell in columns.items()]
        session.show(found, lambda: output.print_fields(fields))

    if kind is ResourceGroup:
        return  # its deletion shows what goes with it: cli.changes

    @command(app, "delete", help=f"Delete one {noun} that nothing uses.")
    def delete_it(
        session: Session,
        name: NameArgument,
        region: RegionOption = None,
        no_wait: NoWaitOption = False,
    ) -> None:
        where = parse_reference(name, region)
        job = session.client.delete(kind, where.region, where.name)
        session.finish(job, f"{noun} {name} is gone", no_wait=no_wait)


_register(
    group_app,
    ResourceGroup,
    "resource group",
    {"NAME": lambda each: each.name, "REGION": lambda each: each.region},
)
_register(
    network_app,
    VirtualNetwork,
    "virtual network",
    {
        "NAME": lambda each: each.name,
        "REGION": lambda each: each.region,
        "RESOURCE GROUP": lambda each: each.resource_group,
        "ADDRESS SPACE": lambda each: ", ".join(each.address_space),
        "SUBNETS": lambda each: ", ".join(_subnet_words(s) for s in each.subnets),
        "ROUTING": lambda each: each.routing.value,
        "OUTBOUND": lambda each: each.outbound.value,
    },
)
_register(
    account_app,
    StorageAccount,
    "storage account",
    {
        "NAME": lambda each: each.name,
        "REGION": lambda each: each.region,
        "RESOURCE GROUP": lambda each: each.resource_group,
        "URL": lambda each: each.url,
        "DISKS IN": lambda each: each.disk_directory,
    },
)
_register(
    set_app,
    AvailabilitySet,
    "availability set",
    {
        "NAME": lambda each: each.name,
        "REGION": lambda each: each.region,
        "RESOURCE GROUP": lambda each: each.resource_group,
        "FAULT DOMAINS": lambda each: str(each.fault_domains),
    },
)


# --- creating each kind


def _made(noun: str, where: Reference) -> str:
    return f"{noun} {where.region}/{where.name} exists"


@command(group_app, "create")
def create_group(
    session: Session, name: NameArgument, region: RegionOption = None, no_wait: NoWaitOption = False
) -> None:
    """Create a resource group: `leeward resource-group create web-rg --region east`"""
    where = parse_reference(name, region)
    job = session.client.put(ResourceGroup(region=where.region, name=where.name))
    session.finish(job, _made("resource group", where), no_wait=no_wait)


def _subnets(subnets: list[str], bridges: list[str] | None) -> tuple[Subnet, ...]:
    """Return the subnets of several "NAME=CIDR", each with its bridge of several "NAME=BRIDGE"."""
    parsed = tuple(parse_subnet(each) for each in subnets)
    by_name = parse_pairs("--bridge", bridges or [])
    if unknown := by_name.keys() - {each.name for each in parsed}:
        raise InvalidRequest(f"--bridge: there is no --subnet {sorted(unknown)[0]}", field="bridge")
    return tuple(replace(each, bridge=by_name.get(each.name, "")) for each in parsed)


@command(network_app, "create")
def create_network(
    session: Session,
    name: NameArgument,
    resource_group: GroupOption,
    address_space: Annotated[
        list[str], typer.Option("--address-space", help="CIDR; may be given several times.")
    ],
    subnet: Annotated[
        list[str],
        typer.Option("--subnet", metavar="NAME=CIDR", help="May be given several times."),
    ],
    bridge: BridgeOption = None,
    routed: Annotated[bool, typer.Option("--routed", help="Its subnets reach each other.")] = False,
    nat: Annotated[
        bool, typer.Option("--nat", help="Its VMs reach the outside, with the host's address.")
    ] = False,
    region: RegionOption = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Create a virtual network.

    leeward network create corp --region east -g web-rg --address-space 10.10.0.0/16
    --subnet front=10.10.1.0/24 --subnet back=10.10.2.0/24 --nat
    """
    where = parse_reference(name, region)
    network = VirtualNetwork(
        region=where.region,
        name=where.name,
        resource_group=resource_group,
        address_space=tuple(address_space),
        subnets=_subnets(subnet, bridge),
        routing=Routing.ROUTED if routed else Routing.ISOLATED,
        outbound=Outbound.NAT if nat else Outbound.NONE,
    )
    session.finish(session.client.put(network), _made("virtual network", where), no_wait=no_wait)


@command(account_app, "create")
def create_account(
    session: Session,
    name: NameArgument,
    resource_group: GroupOption,
    region: RegionOption = None,
    url: Annotated[
        str,
        typer.Option(
            "--url",
            help="Object store: file:///…, s3://…, az://… Default: a directory in the "
            "region's storage root.",
            show_default=False,
        ),
    ] = "",
    disk_directory: Annotated[
        Path | None,
        typer.Option(
            "--disk-directory",
            help="Directory on the region's hosts for disk images.",
            show_default=False,
        ),
    ] = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Create a storage account.

    leeward storage-account create websystem --region east -g web-rg
    leeward storage-account create deep --region west -g web-rg --url s3://bucket/prefix
    --disk-directory /srv/disks
    """
    where = parse_reference(name, region)
    account = StorageAccount(
        region=where.region,
        name=where.name,
        resource_group=resource_group,
        url=url,
        disk_directory=str(disk_directory or ""),
    )
    session.finish(session.client.put(account), _made("storage account", where), no_wait=no_wait)


@command(set_app, "create")
def create_set(
    session: Session,
    name: NameArgument,
    resource_group: GroupOption,
    region: RegionOption = None,
    fault_domains: Annotated[
        int, typer.Option("--fault-domains", min=1, help="On how many hosts its VMs are spread.")
    ] = 2,
    no_wait: NoWaitOption = False,
) -> None:
    """Create an availability set: `leeward availability-set create as-1 --region east -g web-rg`"""
    where = parse_reference(name, region)
    wanted = AvailabilitySet(
        region=where.region,
        name=where.name,
        resource_group=resource_group,
        fault_domains=fault_domains,
    )
    session.finish(session.client.put(wanted), _made("availability set", where), no_wait=no_wait)
