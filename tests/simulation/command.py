"""What `make campaign` runs: `python -m tests.simulation.command SEEDS [MUTANT]`.

Owns: the order of the campaigns, which defects are planted, what is printed, and ending early. Must
not know: stories, faults, checks.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable

from tests.simulation.campaign import MUTANT_SEEDS, SEEDS, Mutant, Tally, be_quiet, run_stories
from tests.simulation.mutants import MUTANTS
from tests.simulation.power_cut import cut_power_everywhere
from tests.simulation.power_mutants import POWER_MUTANTS
from tests.simulation.real_campaign import RealTally, hunt, run_real
from tests.simulation.real_mutants import REAL_MUTANTS


def main() -> int:
    """Run the campaign, print what it found; 0 if nothing was violated, each mutant caught. On
    SIGTERM nothing new is begun: what is running is ended, and what there was is printed."""
    be_quiet()
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else SEEDS
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    names = [*MUTANTS, *POWER_MUTANTS, *REAL_MUTANTS]
    if wanted not in ("", "all", *names):
        print(f"MUTANT: {wanted!r} is none of: all, {', '.join(names)}", file=sys.stderr)
        return 2
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    began = time.monotonic()
    tally, real = Tally(), RealTally()
    if not wanted:
        tally = run_stories(range(seeds), is_ending=ending.is_set)
        if lost := cut_power_everywhere():
            tally.violations.append(lost)
        if not ending.is_set():
            real = run_real(is_ending=ending.is_set)
    planted, caught = 0, 0
    for name in names if wanted == "all" else filter(wanted.__eq__, names):
        if name in REAL_MUTANTS:
            found = hunt(name, is_ending=ending.is_set)
        elif name in POWER_MUTANTS:
            with POWER_MUTANTS[name]():
                found = cut_power_everywhere()
        else:
            found = _hunt_in_stories(MUTANTS[name], ending.is_set)
        if ending.is_set() and not found:
            break
        print(f"{name}: {'caught: ' + found if found else 'NOT CAUGHT'}", flush=True)
        planted += 1
        caught += bool(found)
    violations = [*tally.violations, *real.violations]
    for violation in violations:
        print(f"violated: {violation}")
    metrics = {
        "cuts": tally.cuts,
        "fault_share": round(tally.faulted / tally.cuts, 3) if tally.cuts else 0.0,
        "cuts_real": real.cuts,
        "faults_real": sum(real.faults.values()),
        "violations": len(violations),
        "seeds": tally.stories,
        "mutants_planted": planted,
        "mutants_caught": caught,
        "ended_early": int(ending.is_set()),
        "wall_s": round(time.monotonic() - began, 1),
    }
    print(json.dumps({"campaign": "simulation", "metrics": metrics}))
    if ending.is_set():
        return 128 + signal.SIGTERM
    return 0 if not violations and caught == planted else 1


def _hunt_in_stories(mutant: Mutant, is_ending: Callable[[], bool]) -> str:
    with mutant():
        found = run_stories(range(MUTANT_SEEDS), until_violation=True, is_ending=is_ending)
    return found.violations[0] if found.violations else ""


if __name__ == "__main__":
    sys.exit(main())
