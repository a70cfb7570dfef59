"""Where a scenario plays: Leeward up with two regions, taken down and looked through at the end.

Owns: beginning and end of a scenario. Must not know: its story.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from demo.command import say
from demo.ports import free_port

from scenario.common import Findings, Result
from scenario.leaks import find_leaks, namespaces
from scenario.rig import Rig, keep_logs


def play(
    story: Callable[[Rig, Findings], None],
    *,
    up: Callable[[Rig], None] = lambda rig: rig.up(free_port()),
) -> Result:
    """Return what the story found with Leeward up, and what was left after taking it down."""
    findings, before = Findings(), namespaces()
    directory = Path(tempfile.mkdtemp(prefix="lwscn", dir="/var/tmp"))
    rig = Rig(directory)
    try:
        with findings.part("Leeward up: regions east and west"):
            up(rig)
            story(rig, findings)
    finally:
        say("\nclean up")
        ended = rig.try_run("down", "--vms", seconds=120)
        if ended.code != 0:
            findings.check("`leeward down --vms` goes through", False, ended.said)
        leaks = find_leaks(rig.data, namespaces_before=before)
        rig.down()
        if findings.violations:
            keep_logs(rig)
        shutil.rmtree(directory, ignore_errors=True)
    return Result(violations=tuple(findings.violations), leaks=leaks, figures=findings.figures)
