"""The tutorial: every command of docs/tutorial.md, in order, as written.

Owns: reading the page and judging how its commands end. Must not know: what any of them does; the
page says it. What the commands print is shown as a reader sees it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from demo.command import BOLD, DIM, RESET, say
from demo.fire import kill_all, processes_of

from scenario.common import Findings, Result, seconds_since
from scenario.leaks import find_leaks, namespaces

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
DATA = Path("/var/tmp/leeward-tutorial")
LIMIT_SECONDS = 1200
_BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def steps(page: str) -> list[tuple[str, str]]:
    """Return (heading, commands) of every block of the page, in order."""
    found = []
    for block in _BLOCK.finditer(page):
        headings = _HEADING.findall(page[: block.start()])
        found.append((headings[-1] if headings else "", block[1]))
    return found


def run() -> Result:
    """Return how the tutorial went."""
    findings, before, began = Findings(), namespaces(), time.monotonic()
    if DATA.exists():
        findings.check(f"{DATA} is free for the tutorial", False, "somebody is at it: remove it")
        return Result(violations=tuple(findings.violations), leaks=())
    try:
        with findings.part("docs/tutorial.md"):
            _follow(findings)
            findings.figures["tutorial_s"] = seconds_since(began)
    finally:
        leaks = find_leaks(DATA, namespaces_before=before)
        kill_all(processes_of(DATA))
    return Result(violations=tuple(findings.violations), leaks=leaks, figures=findings.figures)


def _follow(findings: Findings) -> None:
    """One shell runs it all, as a reader's does; a step that fails ends the tutorial."""
    marks = [(heading, json.dumps(f"step {n}")) for n, (heading, _) in enumerate(steps(_page()))]
    script = "set -euo pipefail\n" + "\n".join(
        f"echo; echo {mark}\n{commands}"
        for (_, mark), (_, commands) in zip(marks, steps(_page()), strict=True)
    )
    shell = subprocess.Popen(
        ["timeout", "--kill-after=10", str(LIMIT_SECONDS), "bash", "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = list(_shown(shell, dict(enumerate(heading for heading, _ in marks))))
    code = shell.wait()
    findings.check(f"all {len(marks)} steps go through", code == 0, " / ".join(said[-3:]))
    checks = [json.loads(line) for line in said if '"filesystems_clean"' in line]
    findings.check("the guest was asked twice", len(checks) == 2, str(len(checks)))
    for answer in checks:
        findings.check("the guest says that all is there", bool(answer["ok"]), json.dumps(answer))


def _shown(shell: subprocess.Popen[str], headings: dict[int, str]) -> Iterator[str]:
    """Print what the shell says, with the page's headings, and yield its lines."""
    assert shell.stdout is not None
    shown = ""
    for line in shell.stdout:
        text = line.rstrip("\n")
        mark = re.fullmatch(r"step (\d+)", text)
        if mark is not None:
            heading = headings[int(mark[1])]
            if heading != shown:
                say(f"{BOLD}{heading}{RESET}")
            shown = heading
        elif text:
            say(f"  {DIM}{text}{RESET}")
            yield text


def _page() -> str:
    return PAGE.read_text()
