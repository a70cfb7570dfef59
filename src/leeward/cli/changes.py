"""Commands that change resources that are there, and that delete groups with all in them.

Owns: `leeward network|availability-set|vm update` and `leeward resource-group delete`. Adds them to
the nouns' own groups of commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from leeward.cli import machines, output
from leeward.cli.arguments import parse_memory, parse_pairs, parse_reference, parse_subnet
from leeward.cli.resources import (
    BridgeOption,
    NameArgument,
    group_app,
    network_app,
    set_app,
)
from leeward.cli.session import NoWaitOption, RegionOption, Session, command
from leeward.client.views import GroupView
from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, NotFound
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)

__all__ = ["group_app", "network_app", "set_app"]


@command(network_app, "update")
def update_network(
    session: Session,
    name: NameArgument,
    region: RegionOption = None,
    add_subnet: Annotated[
        list[str] | None, typer.Option("--add-subnet", metavar="NAME=CIDR", help="A new subnet.")
    ] = None,
    remove_subnet: Annotated[
        list[str] | None, typer.Option("--remove-subnet", metavar="NAME", help="One nobody uses.")
    ] = None,
    bridge: BridgeOption = None,
    address_space: Annotated[
        list[str] | None, typer.Option("--address-space", help="All of it, anew.")
    ] = None,
    routed: Annotated[
        bool | None, typer.Option("--routed/--isolated", help="Whether subnets reach each other.")
    ] = None,
    nat: Annotated[
        bool | None, typer.Option("--nat/--no-nat", help="Whether VMs reach the outside.")
    ] = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Change a virtual network, on every host that has VMs in it.

    leeward network update east/corp --add-subnet db=10.10.3.0/24 --nat
    """
    where = parse_reference(name, region)
    network = session.client.get(VirtualNetwork, where.region, where.name)
    changes: dict[str, object] = {}
    subnets = _changed_subnets(network, add_subnet or [], remove_subnet or [], bridge or [])
    if subnets != network.subnets:
        changes["subnets"] = [to_plain(subnet) for subnet in subnets]
    if address_space:
        changes["address_space"] = address_space
    if routed is not None:
        changes["routing"] = "routed" if routed else "isolated"
    if nat is not None:
        changes["outbound"] = "nat" if nat else "none"
    if not changes:
        raise InvalidRequest("nothing to change", hint="`leeward network update --help`")
    job = session.client.change(VirtualNetwork, where.region, where.name, changes)
    done = f"virtual network {where.region}/{where.name} is changed"
    session.finish(job, done, no_wait=no_wait)


def _changed_subnets(
    network: VirtualNetwork, added: list[str], removed: list[str], bridges: list[str]
) -> tuple[Subnet, ...]:
    by_name = {subnet.name: subnet for subnet in network.subnets}
    for name in removed:
        if name not in by_name:
            raise NotFound(f"network {network.name} has no subnet {name}", field="remove_subnet")
        del by_name[name]
    for text in added:
        subnet = parse_subnet(text)
        if subnet.name in by_name:
            raise Conflict(f"network {network.name} has a subnet {subnet.name}", field="add_subnet")
        by_name[subnet.name] = subnet
    for name, bridge in parse_pairs("--bridge", bridges).items():
        if name not in by_name:
            raise NotFound(f"network {network.name} has no subnet {name}", field="bridge")
        by_name[name] = replace(by_name[name], bridge=bridge)
    return tuple(by_name.values())


@command(set_app, "update")
def update_set(
    session: Session,
    name: NameArgument,
    fault_domains: Annotated[
        int, typer.Option("--fault-domains", min=1, help="On how many hosts its VMs are spread.")
    ],
    region: RegionOption = None,
) -> None:
    """Change an availability set; VMs stay where they are."""
    where = parse_reference(name, region)
    changes: dict[str, object] = {"fault_domains": fault_domains}
    job = session.client.change(AvailabilitySet, where.region, where.name, changes)
    session.finish(job, f"availability set {where.region}/{where.name} is changed")


@command(machines.app, "update")
def update_machine(
    session: Session,
    name: NameArgument,
    region: RegionOption = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", min=1, help="Processors.")] = None,
    memory: Annotated[str, typer.Option("--memory", help="Like 256M or 2G.")] = "",
    forward: Annotated[
        list[int] | None,
        typer.Option(
            "--forward", metavar="PORT", min=1, max=65535, help="All forwarded ports, anew."
        ),
    ] = None,
    no_wait: NoWaitOption = False,
) -> None:
    """Change the size of a stopped virtual machine: it counts from its next start.

    leeward vm update east/web-1 --vcpus 2 --memory 1G
    """
    where = parse_reference(name, region)
    wanted: dict[str, object | None] = {
        "vcpus": vcpus,
        "memory_mib": parse_memory(memory) if memory else None,
        "forwards": forward,
    }
    changes = {key: value for key, value in wanted.items() if value is not None}
    if not changes:
        raise InvalidRequest("nothing to change", hint="`leeward vm update --help`")
    job = session.client.change(VirtualMachine, where.region, where.name, changes)
    session.finish(job, f"VM {where.region}/{where.name} is changed", no_wait=no_wait)


@command(group_app, "delete")
def delete_group(
    session: Session,
    name: NameArgument,
    region: RegionOption = None,
    with_contents: Annotated[
        bool, typer.Option("--with-contents", help="And all that is in it: it is shown first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    no_wait: NoWaitOption = False,
) -> None:
    """Delete an empty resource group, or one with all that is in it.

    leeward resource-group delete east/web-rg --with-contents
    """
    where = parse_reference(name, region)
    if with_contents:
        contents = session.client.group_contents(where.region, where.name)
        if not yes:
            _ask(session, f"{where.region}/{where.name}", contents)
        job = session.client.delete_group_with_contents(where.region, where.name)
    else:
        job = session.client.delete(ResourceGroup, where.region, where.name)
    session.finish(job, f"resource group {name} is gone", no_wait=no_wait)


def _ask(session: Session, name: str, contents: GroupView) -> None:
    """Return if the operator wants it all gone. Raises: InvalidRequest when nobody can be asked;
    Conflict when it cannot go, or is to stay."""
    if session.is_json:
        raise InvalidRequest("-o json asks nobody", hint="add --yes", field="yes")
    if contents.used_by:
        raise Conflict(f"resource group {name} cannot go: {'; '.join(contents.used_by)}")
    output.say(f"with resource group {name} go, with all their data:")
    for noun, names in (
        ("virtual machine", contents.vms),
        ("virtual network", contents.networks),
        ("storage account", contents.storage_accounts),
        ("availability set", contents.availability_sets),
    ):
        for each in names:
            output.say(f"  {noun} {each}")
    if not typer.confirm("delete all of it?"):
        raise Conflict("nothing was deleted")
