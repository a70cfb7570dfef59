"""Service, agents and workers killed, each at each step of every verb, on real QEMU.

Owns: what must be true after each verb and each round. VERBS chooses some. Must not know: what a
verb is for (rounds), which steps it has (the service says so at each: gate), who dies (nemesis).
MUTANT=no-undo plants a defect, which must be noticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from demo.command import say
from demo.fire import processes_of
from demo.ports import free_port

from leeward.model.recovery import Job, JobState
from leeward.replica.host_keys import KEY_FILE, add_new_key
from scenario.common import Findings, Result, seconds_since
from scenario.gate import gate
from scenario.nemesis import Nemesis
from scenario.rig import Rig
from scenario.rounds import choose_rounds
from scenario.rounds.act import ASK_SECONDS, SPARE, Act, Round
from scenario.rounds.moving import THERE_AND_BACK
from scenario.stage import play
from scenario.traces import find_traces, wait_same

SETTLE_SECONDS = 60.0
BACK_SECONDS = 120.0
HEARD_NS = 10**9
"""What a node said just before it was killed may be heard so much later."""
JOB_SECONDS = 300.0
MUTANTS = ("no-undo",)
"""Defects that can be planted, to see whether this scenario notices them: step_gate has them."""
ATTEMPTS = 3
"""The first is under fire; later ones, in peace, must succeed where a kill made it fail."""


def run() -> Result:
    """Return what the rounds showed."""
    try:
        chosen = choose_rounds(os.environ.get("VERBS", ""))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return _play(chosen)


def hunt(name: str) -> Result:
    """Return whether the defect of that name is noticed."""
    nemesis = Nemesis()
    with TemporaryDirectory() as directory:
        mark = Path(directory, name)
        with gate(Path(directory, "gate"), nemesis.at_step, no_undo=mark):
            return play(partial(_hunt, name, mark, nemesis), up=_up)


def _hunt(name: str, mark: Path, nemesis: Nemesis, rig: Rig, findings: Findings) -> None:
    nemesis.rig, drill = rig, "item.drill"
    acts = tuple(act for act in THERE_AND_BACK.acts if act.verb in ("item.protect", drill))
    noticed = Findings()
    play_round(rig, noticed, nemesis, replace(THERE_AND_BACK, acts=acts), frozenset({drill}), 0)
    say(f"\nWhat was violated then is what {name} leaves")
    findings.check(f"{name} was at work", mark.exists())
    findings.check(f"what {name} leaves is noticed", bool(noticed.violations))


def _up(rig: Rig) -> None:
    """Hosts have two keys, for verbs on encryption."""
    key_file = rig.directory / "keys"
    for _ in range(2):
        add_new_key(key_file, "made by a scenario")
    os.environ[KEY_FILE] = str(key_file)
    try:
        rig.up(free_port())
    finally:
        del os.environ[KEY_FILE]


def _play(chosen: Sequence[tuple[Round, frozenset[str]]]) -> Result:
    nemesis = Nemesis()
    with TemporaryDirectory() as directory, gate(Path(directory, "gate"), nemesis.at_step):
        return play(partial(_story, chosen, nemesis), up=_up)


def _story(
    chosen: Sequence[tuple[Round, frozenset[str]]], nemesis: Nemesis, rig: Rig, findings: Findings
) -> None:
    nemesis.rig = rig
    for each, verbs in chosen:
        for turn in range(len(each.victims)):  # in as many everybody has died at every step
            play_round(rig, findings, nemesis, each, verbs, turn)
            if not nemesis.missed(each.name):
                break
    findings.figures |= nemesis.figures()
    for missed in nemesis.missed():
        say(f"  not killed: {missed}")


def play_round(
    rig: Rig, findings: Findings, nemesis: Nemesis, each: Round, verbs: frozenset[str], turn: int
) -> None:
    """The round has been played, and nothing of it is left."""
    began, name = time.monotonic(), f"{each.name} {turn + 1}"
    before: frozenset[str] = frozenset()
    nodes: set[str] = set()
    with findings.part(f"{name}: begins"):
        before = rig.wait("all that is there", lambda: find_traces(rig) | {""}) - {""}
        nodes = rig.wait("nodes", lambda: {node.name for node in rig.client.nodes()} - {SPARE})
        each.begin(rig)
    for act in each.acts:
        with findings.part(f"{name}: {act.verb}"):
            nemesis.aim(each, act, turn)
            carry_through(rig, findings, act, nemesis if act.verb in verbs else None, nodes)
    with findings.part(f"{name}: ends"):
        _wait_back(rig, nodes)
        each.end(rig)
        changed = wait_same(rig, before, SETTLE_SECONDS)
        for change in changed[:20]:
            findings.check("all is as it was before", False, change)
        findings.check(f"all is as before after {seconds_since(began):.0f} s", not changed)


def _wait_back(rig: Rig, nodes: set[str]) -> None:
    """The nodes, each started again by whoever started it, have been heard since: not before they
    were killed. Who died again and again soon after its start is given time before the next."""
    since_ns = time.time_ns() + HEARD_NS

    def are_back() -> bool:
        return nodes <= {node.name for node in rig.client.nodes() if node.last_seen_ns > since_ns}

    rig.wait("everybody's return", are_back, BACK_SECONDS)


def _prepared(act: Act, rig: Rig) -> bool:
    act.before(rig)
    return True


def carry_through(
    rig: Rig, findings: Findings, act: Act, nemesis: Nemesis | None, nodes: set[str]
) -> None:
    """The verb has succeeded, asked again where a kill made it fail and undo itself."""
    killed = nemesis.kills if nemesis else 0
    for attempt in range(ATTEMPTS):
        _wait_back(rig, nodes)
        if attempt == 0:
            rig.wait(f"what {act.verb} needs", partial(_prepared, act, rig), ASK_SECONDS)
        with nemesis.let_loose() if nemesis and attempt == 0 else nullcontext() as told:
            begun = rig.wait("the job to begin", lambda: act.ask(rig), ASK_SECONDS)
            if told:
                told(begun.id)
            job = _ended(rig, begun.id)
        if nemesis:
            nemesis.saw(job)
        if job.state is JobState.SUCCEEDED or act.may_fail:
            break
        say(f"  undone: {job.error}")
    kills = nemesis.kills - killed if nemesis else 0
    what = "ended" if act.may_fail else "succeeded in the end"
    is_well = job.state is JobState.SUCCEEDED or (act.may_fail and job.state is JobState.FAILED)
    findings.check(what, is_well, f"{kills} kills, {attempt + 1} attempts {job.error}".strip())
    wanted = dict(zip(("east", "west"), act.running, strict=True))
    running = _settled(rig, wanted)
    findings.check("every VM once, where it should run", running == wanted, f"{running}")
    _wait_holds(rig, findings, act)


def _ended(rig: Rig, job_id: str) -> Job:
    """Return the job when it has ended."""
    try:
        return rig.wait_job(job_id, JOB_SECONDS)
    except AssertionError as error:
        steps = [f"{step.name} {step.state.value}" for step in rig.client.job(job_id).steps]
        raise AssertionError(f"{error}; its steps: {', '.join(steps)}") from error


def _wait_holds(rig: Rig, findings: Findings, act: Act) -> None:
    """A node that was killed tells how things are only when it is back."""
    try:
        rig.wait("what the verb is for", lambda: act.holds(rig), SETTLE_SECONDS)
    except AssertionError as error:
        findings.check("what it is for is so", False, str(error))


def _settled(rig: Rig, wanted: dict[str, int]) -> dict[str, int]:
    """Return how many VMs run where, once that is as wanted or has had time to be: an agent that
    was killed stops a VM that has failed over only when it is back."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        running = {region: _machines(rig, region) for region in wanted}
        if running == wanted or time.monotonic() > deadline:
            return running
        time.sleep(0.5)


def _machines(rig: Rig, region: str) -> int:
    count = 0
    for pid in processes_of(rig.data, region):
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            count += line.startswith(b"qemu-system-x86_64\0")
    return count
