"""Commands that start and end daemons: serve, agent, worker, up, down, doctor.

Owns: their options. Imports the daemons only when one is started: nothing else of the command line
needs them. Everything else speaks REST.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import output
from leeward.cli.output import Format
from leeward.cli.session import DataDirOption, OutputOption
from leeward.core.errors import InvalidRequest, LeewardError

if TYPE_CHECKING:
    from leeward.daemons.node import NodeOptions

_PANEL = "Daemons"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file. Default: $LEEWARD_CONFIG, else ./leeward.toml if it is there.",
        show_default=False,
    ),
]
NodeRegionOption = Annotated[str, typer.Option("--region", help="Region it belongs to.")]
NodeNameOption = Annotated[
    str, typer.Option("--name", help="Its name in the region. Default: this machine's name.")
]
ServiceOption = Annotated[str, typer.Option("--service", help="URL of the service.")]
TokenOption = Annotated[
    str,
    typer.Option("--token-file", help="File with the one-time token; deleted once it is spent."),
]
TunnelOption = Annotated[
    str,
    typer.Option(
        "--tunnel",
        metavar="ADDRESS[:PORT]",
        help="An address of this host where VXLAN tunnels from the region's other hosts end: "
        "virtual networks then span them. Only those hosts may reach the (UDP) port.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, function in (
        ("up", up),
        ("down", down),
        ("doctor", doctor),
        ("serve", serve),
        ("agent", agent),
        ("worker", worker),
    ):
        app.command(name, rich_help_panel=_PANEL)(function)


def up(
    data_dir: DataDirOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the service; 0: as before, or 8470.")
    ] = 0,
    regions: Annotated[
        str, typer.Option("--regions", help="Comma-separated. Default: as before, or east,west.")
    ] = "",
    hosts: Annotated[
        int,
        typer.Option(
            "--hosts", min=0, max=16, help="Agents per region, each a host; 0: as before, or 1."
        ),
    ] = 0,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything runs; `leeward down` ends it.")
    ] = False,
    chosen: OutputOption = Format.TABLE,
) -> None:
    """Run all of Leeward on this machine: the service, and a worker and an agent per region.

    Stays, and starts again what dies, until Ctrl-C; VMs go on running. Started again with the same
    data directory it continues.
    """
    from leeward.client.config import data_directory
    from leeward.daemons import up as daemon
    from leeward.daemons.signals import StopSignal

    if chosen is Format.JSON and not detach:
        raise InvalidRequest(
            "JSON is of what runs, and without --detach the command stays",
            field="--output",
            hint="add --detach",
        )
    data = data_directory(data_dir)
    options = daemon.UpOptions(
        data=data,
        port=port,
        hosts=hosts,
        regions=tuple(part.strip() for part in regions.split(",") if part.strip()),
    )
    if detach:
        arguments = ["up", "--data-dir", str(data), "--port", str(port)]
        arguments += ["--hosts", str(hosts)]
        if regions:
            arguments += ["--regions", regions]
        report = daemon.detach(arguments, options)
        if chosen is Format.JSON:
            output.print_json(report)
        else:
            output.say("\n".join(report.lines()))
        return
    from leeward.cli.administration import administer

    stop = StopSignal()
    daemon.Up(options, administer=administer(data), stop=stop, say=output.say).run()


def down(
    data_dir: DataDirOption = None,
    vms: Annotated[
        bool, typer.Option("--vms", help="End everything else too: VMs, taps, exports, networks.")
    ] = False,
    chosen: OutputOption = Format.TABLE,
) -> None:
    """End what `leeward up` started; VMs go on running unless --vms."""
    from leeward.client.config import data_directory
    from leeward.daemons.down import down as end_everything

    ended = end_everything(data_directory(data_dir), vms=vms)
    if chosen is Format.JSON:
        output.print_json({"ended": ended})
    elif not ended:
        output.say("nothing was running")
    elif vms:
        output.say("Leeward is down, and nothing of it runs any more")
    else:
        output.say("Leeward is down; VMs go on running, `leeward down --vms` ends them too")


def doctor(data_dir: DataDirOption = None, chosen: OutputOption = Format.TABLE) -> None:
    """Check whether this machine can run Leeward, in plain sentences."""
    from leeward.client.config import data_directory
    from leeward.daemons.doctor import Verdict, examine

    findings = examine(data_directory(data_dir))
    if chosen is Format.JSON:
        output.print_json(findings)
    else:
        for finding in findings:
            output.say(f"{finding.verdict.value:<5} {finding.sentence}")
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise LeewardError("this machine cannot run Leeward as it is; see the lines marked bad")


def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run the service: API, vault, workflows. Never in a region that it protects.

    Commands with the same data directory find it; elsewhere set LEEWARD_URL and LEEWARD_TOKEN (the
    token is in service/api-token).
    """
    from leeward.client.config import ClientConfig, save_config
    from leeward.daemons.settings import load_settings

    settings = load_settings(config)
    if data_dir is not None:
        settings = settings.model_copy(update={"data": data_dir.absolute()})
    from leeward.daemons.serve import run_service  # loads slowly; a mistake is told before

    def ready(url: str, token: str) -> None:
        save_config(settings.data, ClientConfig(url=url, token=token))

    run_service(settings, on_ready=ready)


def agent(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    region: NodeRegionOption = "",
    name: NodeNameOption = "",
    service: ServiceOption = "",
    token_file: TokenOption = "",
    tunnel: TunnelOption = "",
) -> None:
    """Run a host's agent: its VMs, networks, disks, and their replication.

    leeward agent --region east --service http://10.0.0.5:8470 --token-file token
    """
    options = _node_options(config, data_dir, region, name, service, token_file, tunnel)
    from leeward.daemons.agent import run_agent

    run_agent(options)


def worker(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    region: NodeRegionOption = "",
    name: NodeNameOption = "",
    service: ServiceOption = "",
    token_file: TokenOption = "",
) -> None:
    """Run a target region's worker: it turns what arrives in the cache into recovery points.

    leeward worker --region west --service http://10.0.0.5:8470 --token-file token
    """
    options = _node_options(config, data_dir, region, name, service, token_file)
    from leeward.daemons.worker import run_worker

    run_worker(options)


def _node_options(
    config: Path | None,
    data_dir: Path | None,
    region: str,
    name: str,
    service: str,
    token_file: str,
    tunnel: str = "",
) -> NodeOptions:
    """Return the settings, overruled by the command's options."""
    from leeward.daemons.node import NodeOptions, default_name
    from leeward.daemons.settings import load_settings

    settings = load_settings(config)
    return NodeOptions(
        data=(data_dir or settings.data).expanduser().absolute(),
        region=region or settings.region,
        name=name or settings.name or default_name(),
        service_url=service or settings.service_url,
        token_file=token_file or settings.token_file,
        tunnel=tunnel or settings.tunnel,
        key_file=settings.key_file,
        export_cache=settings.export_cache,
    )
