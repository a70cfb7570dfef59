"""Defects of the consistency-group barrier, planted on purpose to see whether the scenario notices.

Owns: what each defect is, how it gets into the processes of one installation and of no other, the
proof that it was at work there. Must not know: what is checked. Leeward knows nothing of this: a
Python process that has a directory on its path imports the sitecustomize.py there as it starts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from scenario.rig import ROOT, Part

Act = Callable[[], None]
"""Called whenever the defect acts: that is noted."""

_SITE = """\
import sys

if any(all(sys.orig_argv[at : at + 1] == [word] for at, word in part) for part in {parts!r}):
    sys.path.append({root!r})
    from pathlib import Path

    from scenario.mutants import plant

    plant({name!r}, Path({marks!r}), late_host={late_host!r})
"""


@dataclass(frozen=True, slots=True)
class Mutant:
    """part: which processes have the defect. plant: puts it into the process that calls it.
    late_seconds: how long one member takes to hold, so that what the defect lets apart is apart."""

    part: Part
    plant: Callable[[Act], None]
    late_seconds: float


MUTANTS: dict[str, Mutant] = {}


def _mutant(
    part: Part, *, late_seconds: float
) -> Callable[[Callable[[Act], None]], Callable[[Act], None]]:
    """Register the defect under its function's name."""

    def register(plant: Callable[[Act], None]) -> Callable[[Act], None]:
        MUTANTS[plant.__name__.replace("_", "-")] = Mutant(part, plant, late_seconds)
        return plant

    return register


@_mutant(Part.AGENT, late_seconds=1.5)
def no_barrier(act: Act) -> None:
    """A member that holds goes on without waiting for the others to hold."""
    from leeward.agent.meetings import _Gate

    def held(self: _Gate) -> bool:
        act()
        return True

    patch.object(_Gate, "held", held).start()


@_mutant(Part.AGENT, late_seconds=1.5)
def ended_holds_count(act: Act) -> None:
    """A member has its share although its hold ended before all members held."""
    from leeward.mobility import portions
    from leeward.mobility.shared_cut import Held

    def why_not(held: Held, *, is_point: bool) -> str:
        if not held.is_common:
            act()
        return "" if is_point else "its stream was interrupted"

    patch.object(portions, "why_not", why_not).start()


@_mutant(Part.TAP, late_seconds=0.15)
def holds_acknowledge(act: Act) -> None:
    """A tap that holds goes on receiving and acknowledging."""
    from leeward.mobility.connection import Connection

    patch.object(Connection, "pause", lambda self: act()).start()


def prepare(name: str, directory: Path, *, late_host: str) -> Mapping[str, str]:
    """Return the environment in which `leeward up` starts processes that have the defect.

    late_host: the name of the agent that is late to hold.
    """
    directory.mkdir()
    site = _SITE.format(
        parts=(Part.AGENT.value, Part.TAP.value),
        root=str(ROOT),
        name=name,
        marks=str(directory),
        late_host=late_host,
    )
    (directory / "sitecustomize.py").write_text(site)
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def plant(name: str, marks: Path, *, late_host: str) -> None:
    """This process has the defect, if it is one of those that are to; it leaves its marks."""
    mutant = MUTANTS[name]
    if _is(mutant.part):
        mutant.plant(_marking(marks / f"{mutant.part.name}-{os.getpid()}"))
    if _is(Part.AGENT) and late_host in sys.orig_argv:
        _be_late(mutant.late_seconds, _marking(marks / f"late-{os.getpid()}"))


def times_acted(marks: Path, pid: int, *, part: Part | None = None) -> int:
    """Return how often the defect has acted in the process, or, without a part, it was late; -1 if
    nothing was planted there."""
    mark = marks / f"{part.name if part else 'late'}-{pid}"
    return len(mark.read_text()) if mark.exists() else -1


def _is(part: Part) -> bool:
    return all(sys.orig_argv[at : at + 1] == [word] for at, word in part.value)


def _marking(mark: Path) -> Act:
    """Return what adds a byte to the mark, which is there from now on."""

    def act() -> None:
        with mark.open("a") as file:
            file.write(".")

    mark.touch()
    return act


def _be_late(seconds: float, act: Act) -> None:
    from leeward.mobility.taps import Taps

    hold = Taps.hold

    def late(self: Taps) -> object:
        act()
        time.sleep(seconds)
        return hold(self)

    patch.object(Taps, "hold", late).start()
