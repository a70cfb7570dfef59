"""What is put under fire: a verb asked for, and rounds of them.

Owns: their shape, who can die. Must not know: any verb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.model.recovery import Job
from scenario.rig import Part, Rig

ASK_SECONDS = 120.0
"""While somebody who was killed is away, verbs are refused."""
WEB, DB = "web-1", "db-1"
GROUP, NETWORK, ACCOUNT, DISK = "web-rg", "corp", "sys", "logs"
POLICY, PLAN, SHOP = "default", "site", "shop"
SPARE = "a-spare"
"""Named so that items are given to it before the region's own worker."""
MEMORY_MIB = 64
NOWHERE, IN_EAST, IN_WEST = (0, 0), (1, 0), (0, 1)
Ask = Callable[[Rig], Job | None]
Victim = tuple[Part, str | None]
SERVICE: Victim = (Part.SERVICE, None)
AGENT_EAST: Victim = (Part.AGENT, "east")
AGENT_WEST: Victim = (Part.AGENT, "west")
WORKER_EAST: Victim = (Part.WORKER, "east")
WORKER_WEST: Victim = (Part.WORKER, "west")


def _nothing(_: Rig) -> None: ...


def _always(_: Rig) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One verb under fire.

    ask: returns its job, None while it is not begun; also asked again where a kill has made it fail
    and undo itself. running: how many VMs run in east and west when it has succeeded. before: what
    it needs, done in peace. holds: what is true when it has succeeded. may_fail: it ends red,
    leaving nothing all the same. victims: who has a part in it, the round's if none is named.
    """

    verb: str
    ask: Ask
    running: tuple[int, int] = IN_EAST
    before: Callable[[Rig], object] = _nothing
    holds: Callable[[Rig], object] = _always
    may_fail: bool = False
    victims: tuple[Victim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Acts in order, between a beginning and an end in peace; after the end all is as before it.

    victims: who has a part in them. It is played once for each.
    """

    name: str
    acts: tuple[Act, ...]
    victims: tuple[Victim, ...]
    begin: Callable[[Rig], object]
    end: Callable[[Rig], object]
