"""What `--help` says: every command and every argument explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from leeward.cli.main import build_app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(build_app())))
SAY_NOTHING = {"up", "down", "serve", "agent", "worker"}
"""Daemons: they run, and report in their logs."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_and_all_it_takes(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    unexplained = [each.name for each in command.params if not getattr(each, "help", "")]
    assert not unexplained


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SAY_NOTHING))
def test_what_a_command_says_can_be_had_as_json(name: str) -> None:
    assert any("--output" in each.opts for each in COMMANDS[name].params)
