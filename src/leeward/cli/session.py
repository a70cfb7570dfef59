"""What every command that talks to the service has in common.

Owns: the options -o, --data-dir and --no-wait, the client's life, showing and judging a job. Must
not know: any particular noun.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from leeward.cli import output
from leeward.cli.output import Format
from leeward.core.errors import LeewardError
from leeward.model.recovery import Job, JobState

if TYPE_CHECKING:
    from leeward.client.client import Client

P = ParamSpec("P")

OutputOption = Annotated[
    Format, typer.Option("-o", "--output", help="A table for people, or JSON for programs.")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Data directory of the Leeward to talk to. Default: $LEEWARD_DATA, else "
        "~/.local/share/leeward.",
        show_default=False,
    ),
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Print the job and return; do not wait for its end.")
]
RegionOption = Annotated[
    str | None, typer.Option("--region", "-r", help="Region, where NAME is not REGION/NAME.")
]
VaultOption = Annotated[
    str | None, typer.Option("--vault", help="Vault. Default: whichever holds an item so named.")
]


@dataclass(frozen=True, slots=True)
class Session:
    """One command's connection to the service and its way of printing."""

    client: Client
    format: Format

    @property
    def is_json(self) -> bool:
        """Say whether standard output carries JSON and nothing else."""
        return self.format is Format.JSON

    def show(self, value: object, table: Callable[[], None]) -> None:
        """Print `value` as JSON, or what `table` prints."""
        if self.is_json:
            output.print_json(value)
        else:
            table()

    def finish(
        self, job: Job | None, done: str | Callable[[], str], *, no_wait: bool = False
    ) -> None:
        """Show the job until it has ended and say `done`; with no job, it was done at once.

        done: the sentence, or what makes it once the job has succeeded.

        Raises: LeewardError when it did not succeed.
        """
        if job is None:
            self.show({"done": True}, lambda: output.say(_sentence(done)))
            return
        if not no_wait:
            from leeward.cli.progress import watch

            job = watch(self.client, job, quiet=self.is_json)
        if job.state is JobState.FAILED:
            raise LeewardError(f"{job.id} failed: {job.error or 'it does not say why'}")
        if job.state is JobState.CANCELLED:
            raise LeewardError(f"{job.id} was cancelled")
        text = f"{job.id} goes on; `leeward job show {job.id}` tells how far it is"
        self.show(job, lambda: output.say(text if no_wait else _sentence(done)))


def _sentence(done: str | Callable[[], str]) -> str:
    return done if isinstance(done, str) else done()


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Make a function of (session, …) the command `name` of `app`, with -o and --data-dir added."""

    def register(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        text = settings.pop("help", None) or inspect.getdoc(function)
        app.command(name, help=text, **settings)(_with_session(function))
        return function

    return register


def _with_session(function: Callable[..., None]) -> Callable[..., None]:
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("output", kind, annotation=OutputOption, default=Format.TABLE),
        inspect.Parameter("data_dir", kind, annotation=DataDirOption, default=None),
    ]

    def run(**arguments: Any) -> None:
        chosen, directory = arguments.pop("output"), arguments.pop("data_dir")
        with connect(directory) as client:
            function(Session(client, chosen), **arguments)

    parameters = [parameter.replace(kind=kind) for parameter in own] + added
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__name__ = function.__name__
    return run


def connect(directory: Path | None) -> Client:
    """Return a client of the service that `directory` (or the environment) names."""
    from leeward.client.client import Client
    from leeward.client.config import data_directory, load_config
    from leeward.client.rest import Rest

    return Client(Rest(load_config(data_directory(directory))))
