"""Commands about network mappings: `leeward network-mapping`.

Owns: how they are asked for and shown. Must not know: what protection makes of them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leeward.cli import output
from leeward.cli.arguments import parse_reference
from leeward.cli.session import Session, command
from leeward.model.recovery import NetworkMapping

app = typer.Typer(help="Network mappings: where VMs of a network come out in another region.")

SourceArgument = Annotated[
    str, typer.Argument(metavar="REGION/NETWORK", help="The network that the VMs are in.")
]


@command(app, "list")
def list_mappings(session: Session) -> None:
    """List the network mappings, each direction by itself."""
    mappings = session.client.mappings.listed()
    session.show(
        mappings,
        lambda: output.print_table(
            ["VMS OF", "COME OUT IN"],
            [
                [f"{m.source_region}/{m.source_network}", f"{m.target_region}/{m.target_network}"]
                for m in mappings
            ],
        ),
    )


@command(app, "create")
def create_mapping(
    session: Session,
    source: SourceArgument,
    target: Annotated[
        str, typer.Argument(metavar="REGION/NETWORK", help="The network they come out in.")
    ],
    one_way: Annotated[
        bool, typer.Option("--one-way", help="Leave the opposite direction as it is.")
    ] = False,
) -> None:
    """Create or change a network mapping, in both directions.

    VMs protected from now on heed it; those that are protected keep their networks (`leeward item
    update`).

    leeward network-mapping create east/corp west/corp-dr
    """
    there, here = parse_reference(target, None), parse_reference(source, None)
    mapping = NetworkMapping(
        source_region=here.region,
        source_network=here.name,
        target_region=there.region,
        target_network=there.name,
    )
    made = session.client.mappings.put(mapping, is_one_way=one_way)
    session.show(made, lambda: output.say(f"VMs of {source} come out in {target}"))


@command(app, "delete")
def delete_mapping(
    session: Session,
    source: SourceArgument,
    region: Annotated[str, typer.Argument(metavar="REGION", help="The target region.")],
) -> None:
    """Delete one direction of a network mapping; the next VM gets a network made for it.

    leeward network-mapping delete east/corp west
    """
    here = parse_reference(source, None)
    session.client.mappings.delete(here.region, here.name, region)
    session.show(
        {"done": True}, lambda: output.say(f"VMs of {source} are not mapped into {region} any more")
    )
