"""Every `leeward` command that a page names exists, with the options that it is given there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from leeward.cli.main import build_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(leeward [^`]+)`")
END = re.compile(r"[;|&<>()]|\s#")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9/=_-]*|…|\[.*")


def commands_of(page: Path) -> Iterator[str]:
    """Yield every command of the page, as far as it is one program's."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        for line in block[1].replace("\\\n", " ").splitlines():
            for match in re.finditer(r"(?:^|[(;|&\"]\s*)leeward (.*)", line):
                yield END.split(match[1])[0]
    for match in INLINE.finditer(BLOCK.sub("", text)):
        words = " ".join(match[1].split()[1:])
        if "|" not in words:
            yield END.split(words)[0]


def problem_of(command: str, tree: Any) -> str:
    """Return what of the command does not exist, "" if all of it does."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    here = tree
    while words and hasattr(here, "commands"):
        word = words[0]
        if word in ("…", "--version", "--help") or PLACEHOLDER.fullmatch(word):
            return ""
        if word not in here.commands:
            return f"{word!r} is no command"
        here, words = here.commands[word], words[1:]
    known = {name for each in here.params for name in (*each.opts, *each.secondary_opts)}
    known |= {"--help", "-h"}
    for word in words:
        option = word.split("=")[0]
        if option.startswith("-") and len(option) > 1 and option not in known:
            return f"{option} is no option of it"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    tree = typer.main.get_command(build_app())
    wrong = {
        command: problem for command in commands_of(page) if (problem := problem_of(command, tree))
    }
    assert not wrong


def test_a_command_that_is_not_there_is_noticed() -> None:
    tree = typer.main.get_command(build_app())
    assert problem_of("item show web-1 -o json", tree) == ""
    assert "no command" in problem_of("item destroy web-1", tree)
    assert "no option" in problem_of("protect east/web-1 --to west --fast", tree)
    assert sum(1 for page in PAGES for _ in commands_of(page)) > 100
