"""Rounds of verbs that bring everything back to where it was, for `kill-everywhere` to disturb.

Owns: which there are, choosing some. tests/architecture/test_killed_verbs.py holds that every verb
that the service registers is an act of one of them. Must not know: who is killed when.
"""

from __future__ import annotations

from fnmatch import fnmatch

from scenario.rounds.act import Round
from scenario.rounds.item import GUEST, ITEM
from scenario.rounds.machines import MACHINES
from scenario.rounds.moving import KEPT, MOVED, THERE_AND_BACK
from scenario.rounds.several import GROUPS, PLANS
from scenario.rounds.worker import WORKER

ROUNDS = (THERE_AND_BACK, MACHINES, ITEM, GUEST, MOVED, KEPT, PLANS, GROUPS, WORKER)


def choose_rounds(wanted: str) -> tuple[tuple[Round, frozenset[str]], ...]:
    """Return the rounds to play, each with the verbs that are put under fire in it; the others of
    the round are carried out in peace.

    wanted: names of rounds or verbs, with * for anything, separated by commas; "": all. Raises:
    ValueError.
    """
    patterns = [each.strip() for each in wanted.split(",") if each.strip()] or ["*"]
    names = [*(each.name for each in ROUNDS), *sorted(verbs_of(ROUNDS))]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"VERBS: no round or verb is called {pattern}; there are {', '.join(names)}"
            )
    chosen = []
    for each in ROUNDS:
        is_whole = any(fnmatch(each.name, pattern) for pattern in patterns)
        verbs = frozenset(
            verb
            for verb in verbs_of([each])
            if is_whole or any(fnmatch(verb, pattern) for pattern in patterns)
        )
        if verbs:
            chosen.append((each, verbs))
    return tuple(chosen)


def verbs_of(rounds: list[Round] | tuple[Round, ...]) -> frozenset[str]:
    """Return the verbs that the rounds have, by the names under which the service registers
    them."""
    return frozenset(act.verb for each in rounds for act in each.acts)
