"""The path at length with nothing modelled: storage daemons under load, and what dies around them.

Owns: which fault comes when, how many points are to be seen, what a mutant is hunted with. Must not
know: how an item's processes are started. Beside campaign.py, which models stores and processes.

Every recovery point that any item lists is read from its target store and must be a prefix of its
writers' log over both disks; what a cache says is applied must be in the catalog; and when all is
over, the last point holds exactly what the disks hold.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.storage_daemon import wait_until
from tests.simulation.real_item import RealItem
from tests.simulation.real_mutants import REAL_MUTANTS
from tests.simulation.requests import Guest

from leeward.fabric.processes import ProcessIdentity

POINTS = 1000
ITEM_FORMATS = ("raw", "qcow2")
POINTS_BETWEEN = (0, 1, 4, 12, 24)
"""Points of an item between two faults of it, one of these; 0: the second meets the first's
repairs."""
PATIENCE_SECONDS = 60.0
"""How long they are waited for: a hang guard."""
STALL_SECONDS = 1800.0
"""A campaign that has not seen its points by then will never."""
LAST_POINT_SECONDS = 60.0
MISSED_WRITES = 150
CRAWL_BYTES = 10_000
"""A second, of a disk that QEMU reads from what the tap has missed: a minute's work, about."""
POINTS_WHILE_BEHIND = 8
HUNT_FAULTS = 25
"""A mutant that lives through so many is not caught."""
RECEIVED_SEEDS = range(50)

Fault = Callable[[RealItem, random.Random], None]


@dataclass
class RealTally:
    """What a campaign on real processes has seen. cuts: points checked."""

    cuts: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def kill_tap(item: RealItem, chance: random.Random) -> None:
    _signal(item.tap(), signal.SIGKILL)


def stop_tap(item: RealItem, chance: random.Random) -> None:
    """It is stopped, not dead: the watchdog has to free the guest."""
    _signal(item.tap(), signal.SIGSTOP)


def kill_watchdog(item: RealItem, chance: random.Random) -> None:
    _signal(item.watchdog(), signal.SIGKILL)


def kill_agent(item: RealItem, chance: random.Random) -> None:
    item.signal("agent", signal.SIGKILL)
    if chance.random() < 0.3:
        _signal(item.tap(), signal.SIGKILL)
    time.sleep(chance.choice((0.0, 0.0, 0.5)))
    item.start("agent")


def kill_worker(item: RealItem, chance: random.Random) -> None:
    item.signal("worker", signal.SIGKILL)
    item.start("worker")


def stop_for_a_while(item: RealItem, chance: random.Random) -> None:
    side = chance.choice(("agent", "worker"))
    item.signal(side, signal.SIGSTOP)
    time.sleep(chance.uniform(0.2, 1.0))
    item.signal(side, signal.SIGCONT)


def lose_cache_for_a_while(item: RealItem, chance: random.Random) -> None:
    item.set_cache_failing(True)
    time.sleep(chance.uniform(0.3, 1.0))
    item.set_cache_failing(False)


def lose_journals(item: RealItem, chance: random.Random) -> None:
    """The host forgets what its taps had received and no cache has: only bitmaps know."""
    item.set_cache_failing(True)
    time.sleep(chance.uniform(0.3, 0.9))
    item.signal("agent", signal.SIGKILL)
    _signal(item.tap(), signal.SIGKILL)
    item.lose_journals()
    item.set_cache_failing(False)
    item.start("agent")


def miss_much(item: RealItem, chance: random.Random) -> None:
    """A tap is away while the guest writes much, and QEMU takes long to make up for that: longer
    than an agent needs for its next cuts, however busy the machine is."""
    item.signal("agent", signal.SIGKILL)
    _signal(item.tap(), signal.SIGKILL)
    wanted = item.writers.write_count + MISSED_WRITES
    wait_until(lambda: item.writers.write_count >= wanted, "the guest writes on")
    item.daemon.set_speed(CRAWL_BYTES)
    item.start("agent")
    _watch([item], item, POINTS_WHILE_BEHIND, lambda: False)
    item.daemon.set_speed(item.daemon.bytes_per_second)


def restart_daemon(item: RealItem, chance: random.Random) -> None:
    """SIGKILL only where all that was acknowledged is in the page cache; qcow2 keeps part of what
    it was not asked to flush in its own memory."""
    item.restart_daemon(cleanly=item.format != "raw" or chance.random() < 0.3)


FAULTS: tuple[Fault, ...] = (
    *(kill_tap, stop_tap, kill_watchdog, kill_agent, kill_worker, kill_agent),
    *(stop_for_a_while, lose_cache_for_a_while, lose_journals, restart_daemon),
)
HUNTS: dict[str, tuple[Fault, int]] = {
    "bitmap-retired-early": (lose_journals, 0),
    "generation-added-after-the-mark": (lose_journals, 0),
    "sealed-while-not-clean": (miss_much, 400_000),
}
"""The fault that a defect, planted in the agent, cannot live with, and how many bytes a second the
disks give (0: any number). One that is not here is planted in the tap's receiving end."""


def _signal(process: ProcessIdentity | None, number: signal.Signals) -> None:
    if process is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def run_real(
    points: int = POINTS,
    *,
    seed: int = 0,
    formats: Sequence[str] = ITEM_FORMATS,
    faults: Sequence[Fault] = FAULTS,
    seconds: float = STALL_SECONDS,
    is_ending: Callable[[], bool] = lambda: False,
) -> RealTally:
    """Return what so many recovery points under so many faults have shown, or as many as there were
    when it was to end."""
    tally, chance = RealTally(), random.Random(seed)
    with ExitStack() as stack:
        items: list[RealItem] = []
        for number, one in enumerate(formats):
            items.append(RealItem(seed=seed + number, format=one))
            stack.callback(items[-1].close)
        deadline = time.monotonic() + seconds
        while tally.cuts < points and not any(item.problems for item in items):
            if is_ending():
                return tally
            if time.monotonic() > deadline:
                tally.violations.append(f"only {tally.cuts} points within {seconds:g} s")
                break
            item = chance.choice(items)
            _disturb(item, chance.choice(faults), chance, tally)
            _watch(items, item, chance.choice(POINTS_BETWEEN), is_ending)
            tally.cuts = sum(item.points_checked for item in items)
        for item in items:
            if not item.problems:
                item.finish(seconds=LAST_POINT_SECONDS)
        tally.cuts = sum(item.points_checked for item in items)
        if problem := receive(RECEIVED_SEEDS):
            tally.violations.append(problem)
        tally.violations += [problem for item in items for problem in item.problems]
    return tally


def receive(seeds: range) -> str:
    """Return what fragments of requests, with cuts between them, have shown; "" if nothing."""
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="lwrequests") as directory:
            guest = Guest(Path(directory), seed)
            try:
                if problem := guest.run():
                    return f"requests {seed}: {problem}"
            finally:
                guest.close()
    return ""


def hunt(mutant: str, *, is_ending: Callable[[], bool] = lambda: False) -> str:
    """Return what gave the planted defect away, "" if nothing did."""
    if mutant not in HUNTS:
        with REAL_MUTANTS[mutant]():
            return receive(RECEIVED_SEEDS)
    chance, tally = random.Random(0), RealTally()
    fault, bytes_per_second = HUNTS[mutant]
    item = RealItem(seed=0, format="raw", bytes_per_second=bytes_per_second, mutant=mutant)
    try:
        _watch([item], item, 1, is_ending)
        while not item.problems and sum(tally.faults.values()) < HUNT_FAULTS and not is_ending():
            _disturb(item, fault, chance, tally)
            _watch([item], item, 2, is_ending)
        if not item.problems and not is_ending():
            item.finish(seconds=LAST_POINT_SECONDS)
        return item.problems[0] if item.problems else ""
    finally:
        item.close()


def _disturb(item: RealItem, fault: Fault, chance: random.Random, tally: RealTally) -> None:
    name = fault.__name__.replace("_", "-")
    tally.faults[name] = tally.faults.get(name, 0) + 1
    fault(item, chance)


def _watch(
    items: Sequence[RealItem],
    disturbed: RealItem,
    points: int,
    is_ending: Callable[[], bool],
) -> None:
    """Check what comes, until so much has come of the item that was disturbed."""
    deadline, wanted = time.monotonic() + PATIENCE_SECONDS, disturbed.points_checked + points
    while True:
        seen = sum(item.check() for item in items)
        is_enough = disturbed.points_checked >= wanted or any(item.problems for item in items)
        if is_enough or is_ending() or time.monotonic() > deadline:
            return
        if not seen:
            time.sleep(0.05)
