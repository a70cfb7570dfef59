"""The program `leeward`: every command put together, and every error made one sentence.

Owns: the tree of commands and the exit code. Must not know: what any command does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from leeward.cli import (
    changes,
    consistency_groups,
    daemons,
    drills,
    events,
    items,
    jobs,
    machines,
    mappings,
    plans,
    points,
    policies,
    resources,
    status,
    storage,
    vault_commands,
    verbs,
)
from leeward.cli.exits import FAILED, INTERRUPTED, TABLE, complain, exit_code, wants_traceback
from leeward.core.errors import LeewardError

_RESOURCES = "Resources of a region"
_RECOVERY = "Recovery"


def build_app() -> typer.Typer:
    """Return the whole command tree."""
    app = typer.Typer(
        name="leeward",
        help="Site recovery for virtual machines on QEMU/KVM.",
        epilog=TABLE,
        invoke_without_command=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    verbs.register(app)
    status.register(app)
    for name, group, panel in (
        ("region", resources.region_app, _RESOURCES),
        ("resource-group", changes.group_app, _RESOURCES),
        ("network", changes.network_app, _RESOURCES),
        ("network-mapping", mappings.app, _RESOURCES),
        ("storage-account", resources.account_app, _RESOURCES),
        ("availability-set", changes.set_app, _RESOURCES),
        ("vm", machines.app, _RESOURCES),
        ("vault", vault_commands.app, _RECOVERY),
        ("policy", policies.app, _RECOVERY),
        ("item", items.app, _RECOVERY),
        ("recovery-point", points.app, _RECOVERY),
        ("consistency-group", consistency_groups.app, _RECOVERY),
        ("recovery-plan", plans.app, _RECOVERY),
        ("drill", drills.app, _RECOVERY),
        ("storage", storage.app, _RECOVERY),
        ("job", jobs.app, _RECOVERY),
        ("event", events.app, _RECOVERY),
    ):
        app.add_typer(group, name=name, rich_help_panel=panel, no_args_is_help=True)
    daemons.register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program on `arguments` (default: the command line's) and exit."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Return the exit code of the program run on `arguments`; errors are on standard error."""
    program = typer.main.get_command(build_app())
    try:
        result = program.main(arguments, prog_name="leeward", standalone_mode=False)
    except LeewardError as error:
        return _failed(str(error), exit_code(error))
    except typer.TyperException as error:
        text = error.format_message()
        return _failed(f"{text} (see `{_command_of(error)} --help`)", 2) if text else 2
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has had enough; say nothing about it
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", FAILED)
    except Exception as error:
        return _failed(
            f"unexpected {type(error).__name__}: {error} (LEEWARD_DEBUG=1 shows where)", FAILED
        )
    return result if isinstance(result, int) else 0


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Site recovery for virtual machines on QEMU/KVM."""
    if version:
        from importlib.metadata import version as version_of

        print(f"leeward {version_of('leeward')}")
        raise typer.Exit


def _failed(sentence: str, code: int) -> int:
    complain(sentence)
    if wants_traceback():
        import traceback

        traceback.print_exc()
    return code


def _command_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "leeward"


if __name__ == "__main__":
    main()
