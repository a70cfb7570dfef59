"""The durable engine port: a function of recorded steps that goes on where it was after a kill.

Owns: what verbs may rely on. Must not know: which engine. Implementations: DBOS (dbos_engine.py);
the tests' own one, which kills the run at every step in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Json = dict[str, object]
"""Plain JSON: what crosses the engine is readable in its database and outlives a refactoring."""


class Steps(Protocol):
    """The recorded steps of one run."""

    def run(self, name: str, action: Callable[[], Json]) -> Json:
        """Return the action's result, recorded: once it is, a later run of the same workflow gets
        the record instead of running the action again.

        A kill between action and record runs the action again: actions are idempotent. The order of
        steps must follow from the arguments and from earlier steps' results alone. The action must
        not raise an Exception; it returns errors as values.
        """


Body = Callable[[str, Steps], None]
"""What is run for a job id. It records its own outcome."""


class WorkflowEngine(Protocol):
    """Runs a body durably, one run per job id. Thread-safe."""

    def launch(self, body: Body) -> None:
        """Runs cut short by the end of an earlier process go on. Call once, before `start`."""

    def start(self, job_id: str) -> bool:
        """The body runs for the job in the background, unless it has ever been started; say false
        if that run has ended. Raises: Unavailable."""

    def forget(self, *, ended_before_ns: int) -> None:
        """Records of runs that ended before that are gone."""

    def close(self) -> None:
        """Nothing runs any more; what was cut short goes on at the next launch."""
