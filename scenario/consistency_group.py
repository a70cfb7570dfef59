"""A consistency group of two VMs on two hosts that count in turn, many times a second.

db-1 tells web-1 of every number that is durable on its disk, and only then web-1 writes it; told of
that, db-1 writes the next. Hosts are late (their taps, then their agents stopped for a moment),
agents and service are killed; then the region is lost and both VMs fail over together. With a
defect planted (MUTANT=…) the same check must find shared points that are no moment of both.

Owns: the pair's workload, the nemesis, what must be true of every shared point. Must not know: how
VMs hold together. Points are judged by their disk images, with nothing of Leeward running for them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from demo.fire import burn
from demo.poller import ask
from demo.ports import free_port

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.model.groups import SharedPoint
from leeward.model.recovery import ItemState
from scenario.checker import read_image
from scenario.common import Findings, Result
from scenario.mutants import MUTANTS, prepare, times_acted
from scenario.rig import Part, Rig, Witness, create_machine, create_place
from scenario.stage import play

LEADER, FOLLOWER = "db-1", "web-1"
PAIR = {FOLLOWER: ("east-2", "10.10.1.20"), LEADER: ("east-1", "10.10.1.10")}
COUNTED = 20
"""So far both have counted when the story begins."""
POINTS = 6
"""Shared points waited for in quiet, and after every disturbance."""
LATE_SECONDS = 20.0
LATE_JUDGED_MAX = 6
JUDGED_MAX = 4
STALL_SECONDS_MAX = 10.0
"""A hang guard; what a guest has seen is in the figures."""
POINTS_SECONDS = 180.0
SEED = 7
PLANTED = "planted"
"""Where in the rig's directory a defect is that was planted, with the marks that it leaves."""


def run() -> Result:
    """Return what the pair's shared points showed."""
    return play(_story, up=lambda rig: rig.up(free_port(), hosts=2))


def hunt(name: str) -> Result:
    """Return whether the shared points show that a defect of that name is planted."""

    def up(rig: Rig) -> None:
        environment = prepare(name, rig.directory / PLANTED, late_host=PAIR[FOLLOWER][0])
        rig.up(free_port(), hosts=2, environment=environment)

    return play(partial(_hunt, name), up=up)


def _hunt(name: str, rig: Rig, findings: Findings) -> None:
    with findings.part(f"two VMs that count in turn, {name} planted"):
        _set_up(rig, findings)
        since_ns = time.time_ns()
    if findings.violations:
        return
    with findings.part("the defect acts, and points come that are said to be shared"):
        _wait_points(rig, findings, since_ns)
        _check_planted(rig, findings, name)
    with findings.part(f"the points are judged: {name} is to be caught"):
        said = Findings()
        _judge(rig, findings, _draw(_points(rig, since_ns), JUDGED_MAX), said)
        caught = said.violations[0] if said.violations else ""
        findings.figures["mutants_caught"] = bool(caught)
        findings.check(f"{name}: {'caught: ' + caught if caught else 'NOT CAUGHT'}", bool(caught))


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("two VMs on two hosts of east, one group, one follows the other"):
        addresses = _set_up(rig, findings)
        witnesses = {name: Witness(address) for name, address in addresses.items()}
        since_ns = time.time_ns()
    if findings.violations:
        return
    with findings.part("in quiet"):
        _wait_points(rig, findings, since_ns)
    late_ns = time.time_ns()
    with findings.part("the follower's host is late: its tap stops for a moment, again and again"):
        _disturb(rig, lambda: _tap_of(rig, FOLLOWER), 0.15, 0.4)
        findings.figures["late_points"] = len(_points(rig, late_ns))
    late_until_ns = time.time_ns()
    with findings.part("agents stopped in the middle of meetings"):
        _disturb(rig, lambda: rig.pids(Part.AGENT, "east"), 0.05, 0.6)
        _wait_points(rig, findings, time.time_ns())
    _note_attempts(rig, findings)
    for part, region in ((Part.AGENT, "east"), (Part.SERVICE, None)):
        with findings.part(f"{part.name.lower()} killed"):
            rig.kill(part, region)
            rig.forget_client()
            _wait_points(rig, findings, time.time_ns())
    with findings.part("every shared point is one moment of both"):
        points = _points(rig, since_ns)
        late = [point for point in points if late_ns < point.time_ns < late_until_ns]
        others = [point for point in points if point not in late]
        findings.figures["shared_points"] = len(points)
        _judge(rig, findings, _draw(late, LATE_JUDGED_MAX) + _draw(others, JUDGED_MAX), findings)
        _check_guests(findings, witnesses)
    with findings.part("east is lost, both fail over to one moment"):
        _lose_and_move(rig, findings, witnesses)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _set_up(rig: Rig, findings: Findings) -> dict[str, str]:
    """Both run, are protected and count in turn; they share a point every second. Returns: where
    each answers."""
    create_place(rig)
    for name, (host, address) in PAIR.items():
        nic = f"front=corp/front,address={address}"
        create_machine(rig, name, nic, "--host", host)
    hosts = {name: rig.machine("east", name).host for name in PAIR}
    findings.check("on two hosts", len(set(hosts.values())) == 2, f"{hosts}")
    addresses = {name: rig.wait_guest("east", name=name) for name in PAIR}
    rig.run("policy", "create", "default", "--shared-interval", "1")
    rig.run("protect", *(f"east/{name}" for name in PAIR), "--to", "west", seconds=300)
    items = [word for name in PAIR for word in ("--item", name)]
    rig.run("consistency-group", "create", "shop", *items)
    _order(rig, addresses[LEADER], "/lead")
    _order(rig, addresses[FOLLOWER], f"/follow?leader={PAIR[LEADER][1]}")
    rig.wait("both to count", lambda: _count(addresses[FOLLOWER]) >= COUNTED, 180)
    return addresses


def _disturb(rig: Rig, victims: Callable[[], list[int]], least: float, most: float) -> None:
    """For a while one of the victims, drawn at random, is stopped for a moment again and again."""
    chance = random.Random(SEED)
    deadline = time.monotonic() + LATE_SECONDS
    while time.monotonic() < deadline:
        with _stopped(victims(), chance):
            time.sleep(chance.uniform(least, most))
        time.sleep(chance.uniform(0.1, 0.5))


def _note_attempts(rig: Rig, findings: Findings) -> None:
    standing = _standing(rig)
    for name in ("attempts", "voided"):
        findings.figures[name] = standing[name]


def _judge(rig: Rig, findings: Findings, points: list[SharedPoint], said: Findings) -> None:
    """The images of a shared point have neither ahead of what the other had told it of: `said` has
    the verdicts. That there was something to judge, and the figures, are in `findings`."""
    scratch = rig.directory / "scratch"
    scratch.mkdir()
    counted, points = [], sorted(points, key=lambda each: each.time_ns)
    for point in points:
        counts = {name: _image(rig, name, point, scratch) for name in PAIR}
        _check_order(said, point.id, counts[LEADER], counts[FOLLOWER])
        counted.append(counts[FOLLOWER])
    gone, seconds = counted[-1] - counted[0], (points[-1].time_ns - points[0].time_ns) / 1e9
    findings.check("they counted from the first to the last", gone > 0)
    findings.figures["judged"] = len(points)
    findings.figures["counts_per_second"] = gone / max(seconds, 1e-9)


def _check_order(findings: Findings, what: str, leader: int, follower: int) -> None:
    """leader, follower: how far each has counted on its disk."""
    said = f"leader {leader}, follower {follower}"
    findings.check(f"{what}: the follower is not ahead", follower <= leader, said)
    findings.check(f"{what}: nor the leader by more than one", leader <= follower + 1, said)


def _check_planted(rig: Rig, findings: Findings, name: str) -> None:
    """The defect was at work on both hosts, and the follower's was late."""
    marks, part = rig.directory / PLANTED, MUTANTS[name].part
    times = {pid: times_acted(marks, pid, part=part) for pid in rig.pids(part, "east")}
    holds = all(each > 0 for each in times.values()) and len(times) == len(PAIR)
    findings.check(f"it has acted in each {part.name.lower()} of east", holds, f"{times}")
    late = max(times_acted(marks, pid) for pid in rig.pids(Part.AGENT, "east"))
    findings.check("the follower's host was late to hold", late > 0, f"{late} times")


def _draw(points: list[SharedPoint], count: int) -> list[SharedPoint]:
    return random.Random(SEED).sample(points, min(count, len(points)))


def _check_guests(findings: Findings, witnesses: dict[str, Witness]) -> None:
    stalls = {}
    for name, witness in witnesses.items():
        saw = witness.saw()
        stalls[name] = saw.max_stall_s
        findings.check(f"{name} has met no error", saw.problem == "", saw.problem)
    findings.figures["max_stall_s"] = max(stalls.values())
    findings.check("no guest was stalled", max(stalls.values()) < STALL_SECONDS_MAX, f"{stalls}")


def _lose_and_move(rig: Rig, findings: Findings, witnesses: dict[str, Witness]) -> None:
    for witness in witnesses.values():
        witness.stop()
    burn(rig.data, "east")
    ended = rig.try_run("consistency-group", "failover", "shop", seconds=300)
    findings.check("the group fails over", ended.code == 0, ended.said)
    chosen = {name: rig.item(name).recovery_point for name in PAIR}
    shared = [p for p in _points(rig, 0) if set(p.points.values()) == set(chosen.values())]
    states = {rig.item(name).state for name in PAIR}
    findings.check("to one shared point", len(shared) == 1, f"{chosen}")
    findings.check("both have failed over", states == {ItemState.FAILED_OVER}, f"{states}")
    counts = {}
    for name in PAIR:
        address = rig.wait_guest("west", name=name)
        report = ask(address, "/check", timeout_seconds=60) or {}
        findings.check(f"{name}: whole and gapless", bool(report.get("ok")), f"{report}")
        counts[name] = _count(address)  # it has been told nothing since
    _check_order(findings, "booted", counts[LEADER], counts[FOLLOWER])


# ── looking and breaking ─────────────────────────────────────────────────────────────────────────


def _points(rig: Rig, since_ns: int) -> list[SharedPoint]:
    found = rig.client.groups.points(DEFAULT_VAULT, "shop")
    return [point for point in found if point.time_ns > since_ns]


def _wait_points(rig: Rig, findings: Findings, since_ns: int) -> None:
    """Shared points come."""

    def enough() -> bool:
        return len(_points(rig, since_ns)) >= POINTS

    try:
        rig.wait(f"{POINTS} shared points", enough, POINTS_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}; {_standing(rig)}") from error
    findings.check("shared points come", True)


def _standing(rig: Rig) -> dict[str, int]:
    """Return how the group does, once the service answers."""
    rig.wait("the service", lambda: rig.client.jobs(limit=1))
    shown = rig.run("consistency-group", "show", "shop", "-o", "json")
    return dict(json.loads(shown))


def _image(rig: Rig, name: str, point: SharedPoint, scratch: Path) -> int:
    """Return how far the item has counted in its part of the point."""
    item = rig.item(name)
    return read_image(rig.store_urls(name), item.id, point.points[item.id], scratch).count


def _order(rig: Rig, address: str, path: str) -> None:
    """The guest has heeded an order; given again, it changes nothing."""
    rig.wait(path, lambda: ask(address, path, timeout_seconds=10))


def _count(address: str) -> int:
    answer = ask(address, "/counter") or {}
    return int(str(answer.get("count", 0)))


def _tap_of(rig: Rig, name: str) -> list[int]:
    """Return the VM's tap: it is started with a file in the item's directory."""
    item_id = rig.item(name).id
    found = []
    for pid in rig.pids(Part.TAP, "east"):
        with suppress(OSError):
            if f"/{item_id}/" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


@contextmanager
def _stopped(pids: list[int], chance: random.Random) -> Iterator[None]:
    """One of the processes, if there is one, is stopped meanwhile."""
    pid = chance.choice(sorted(pids)) if pids else 0
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
