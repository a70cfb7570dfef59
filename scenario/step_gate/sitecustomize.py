"""Loaded by every Python process that has this directory on its PYTHONPATH: the service waits at
each step of a job, before its action and between the action and its record, until a scenario that
listens says "go on".

Owns: the waiting; the defect that is planted there when the scenario is to notice one. Must not
know: who is killed meanwhile. Without a listener nobody waits.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "LEEWARD_SCENARIO_GATE"
NO_UNDO = "LEEWARD_SCENARIO_NO_UNDO"
"""Names the file that shows that the defect has acted; without it there is none."""
WAIT_SECONDS = 60.0
"""A guard: the scenario may have died."""
Json = dict[str, object]


def _wait(step: str, when: str) -> None:
    from dbos import DBOS

    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(WAIT_SECONDS)
        try:
            channel.connect(os.environ[SOCKET])
            about = {"job": DBOS.workflow_id, "step": step, "when": when}
            channel.sendall(json.dumps(about).encode() + b"\n")
            channel.recv(1)
        except OSError:
            return


def _install() -> None:
    from leeward.workflows.dbos_engine import _DbosSteps

    run = _DbosSteps.run

    def gated(self: _DbosSteps, name: str, action: Callable[[], Json]) -> Json:
        def waited() -> Json:
            _wait(name, "before")
            outcome = action()
            _wait(name, "after")
            return outcome

        return run(self, name, waited)

    _DbosSteps.run = gated  # type: ignore[method-assign]


def _plant(mark: str) -> None:
    """What a drill has booted, it leaves."""
    from leeward.workflows.job import RunningJob

    undo = RunningJob.undo_orders

    def kept(self: RunningJob, name: str, make: Callable[[], Any], **how: Any) -> tuple[str, ...]:
        if name != "clean up":
            return undo(self, name, make, **how)
        Path(mark).touch()
        return undo(self, name, list, **how)

    RunningJob.undo_orders = kept  # type: ignore[method-assign]


if SOCKET in os.environ and sys.orig_argv[2:4] == ["leeward.cli.main", "serve"]:
    _install()
    if NO_UNDO in os.environ:
        _plant(os.environ[NO_UNDO])
