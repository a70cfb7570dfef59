"""Who is killed at which step of a job: at each, in turn, everybody who can have a part in it.

Owns: what has been hit and what has not. Must not know: what must be true afterwards. Nodes die
while a step is carried out; so does the service, or just before the step is recorded, so that it is
carried out again.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from leeward.model.recovery import Job
from scenario.rig import Rig
from scenario.rounds.act import SERVICE, Act, Round, Victim

DELAY_SECONDS_MAX = 0.15
"""Into a step. What is over sooner is hit as the next one begins."""
TOLD_SECONDS = 3.0
"""How long the first step of a job waits until it is known that it is the one."""
SEED = 11
Step = tuple[str, str, str]
"""Round, verb, name of the step."""


class Nemesis:
    """`at_step` is called in threads of their own; the rest from one."""

    def __init__(self) -> None:
        self.rig: Rig | None = None
        self.kills = 0
        self._changed = threading.Condition()
        self._is_loose = False
        self._job = ""
        self._where = ("", "")
        self._victims: tuple[Victim, ...] = ()
        self._turn = 0
        self._met: list[str] = []
        self._coming: list[threading.Timer] = []
        self._steps: dict[Step, set[Victim]] = {}
        self._struck: defaultdict[Step, set[Victim]] = defaultdict(set)
        self._chance = random.Random(SEED)

    def aim(self, each: Round, act: Act, turn: int) -> None:
        """The act's steps are what comes. turn: varies who comes first."""
        self._victims, self._turn = act.victims or each.victims, turn
        self._where = (each.name, act.verb)

    @contextmanager
    def let_loose(self) -> Iterator[Callable[[str], None]]:
        """Somebody dies meanwhile at each step of the job that is told, and nobody afterwards."""

        def told(job: str) -> None:
            with self._changed:
                self._job = job
                self._changed.notify_all()

        with self._changed:
            self._is_loose, self._job, self._met = True, "", []
        try:
            yield told
        finally:
            with self._changed:
                self._is_loose = False
                self._changed.notify_all()
                coming, self._coming = self._coming, []
            for each in coming:
                each.join()

    def at_step(self, job: str, step: str, when: str) -> None:
        """The job is about to carry the step out, or has and will record it."""
        with self._changed:
            self._changed.wait_for(lambda: self._job or not self._is_loose, TOLD_SECONDS)
            if not self._is_loose or job != self._job:
                return
            victim = self._choose(step, when)
            if victim is None:
                return
            self._struck[(*self._where, step)].add(victim)
        if when == "after":
            self._kill(victim)
            return
        delay = self._chance.uniform(0, DELAY_SECONDS_MAX)
        killing = threading.Timer(delay, self._kill, [victim])
        with self._changed:
            self._coming.append(killing)
        killing.start()

    def saw(self, job: Job) -> None:
        """The job had these steps."""
        for step in job.steps:
            self._steps.setdefault((*self._where, step.name), set()).update(self._victims)

    def missed(self, name: str = "") -> list[str]:
        """Return a sentence for each who has not died at a step, of one round or of all."""
        return [
            f"{part.name.lower()} {region or ''} in {verb} at {step!r} ({round_name})"
            for (round_name, verb, step), victims in self._steps.items()
            if name in ("", round_name)
            for part, region in sorted(
                victims - self._struck[round_name, verb, step],
                key=lambda victim: (victim[0].name, victim[1] or ""),
            )
        ]

    def figures(self) -> dict[str, float]:
        """Return metrics. points: each step of each verb with each who can die at it; missed: those
        at which that one did not run just then."""
        return {
            "kills": float(self.kills),
            "verbs": float(len({verb for _, verb, _ in self._steps})),
            "points": float(sum(len(victims) for victims in self._steps.values())),
            "missed": float(len(self.missed())),
        }

    def _choose(self, step: str, when: str) -> Victim | None:
        """Return who dies: one at most each time the step is carried out, and one as it ends."""
        left = [each for each in self._in_turn(step) if each not in self._struck_at(step)]
        if when == "after":
            return SERVICE if SERVICE in left else None
        if step in self._met:
            return None
        self._met.append(step)
        is_early = self._chance.random() < 0.5
        nodes = [each for each in left if each != SERVICE or is_early]
        return next((each for each in nodes if self._pids(each)), None)

    def _struck_at(self, step: str) -> set[Victim]:
        return self._struck[(*self._where, step)]

    def _in_turn(self, step: str) -> list[Victim]:
        first = (self._turn + len(self._met)) % len(self._victims)
        return [*self._victims[first:], *self._victims[:first]]

    def _pids(self, victim: Victim) -> list[int]:
        return self.rig.pids(*victim) if self.rig is not None else []

    def _kill(self, victim: Victim) -> None:
        for pid in self._pids(victim):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
