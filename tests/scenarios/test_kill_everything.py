"""Every process of Leeward killed or stopped, at every stage, under a real guest's workload.

Whatever dies: the guest sees no error and no stall, replication comes back by itself, the failover
runs to its end, and every recovery point that is listed can be read and is consistent. One VM goes
through all of it, so the tests build on each other in the order they stand here.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

import pytest
from demo.poller import ask, bounds_at
from scenario.checker import read_image
from scenario.rig import PROGRAM, Part, Rig, Witness

from leeward.client.config import load_config
from leeward.core.errors import Conflict, LeewardError, NotFound
from leeward.model.recovery import ItemState, Job, JobState, ReplicationState
from leeward.model.resources import PowerState
from leeward.workflows.worker_verbs import GONE_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STALL_SECONDS = 10.0
DEAD_SECONDS = 3.0
PARTITION_SECONDS = 15.0
SAMPLE = 15
REGION = {
    Part.TAP: "east",
    Part.WATCHDOG: "east",
    Part.AGENT: "east",
    Part.WORKER: "west",
    Part.SERVICE: None,
}
CONSOLE_ERRORS = ("I/O error", "EXT4-fs error", "cannot write", "Remounting filesystem read-only")


@pytest.fixture
def unharmed(
    rig: Rig, witness: Witness, measured: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Witness]:
    """Return the witness of web-1; afterwards nothing of what happened since has harmed it."""
    began = time.time()
    yield witness
    check_unharmed(rig, witness, since=began)
    measured[f"max_stall_s in {request.node.name}"] = f"{witness.saw(began).max_stall_s:.2f}"


@pytest.fixture
def protected(rig: Rig, unharmed: Witness) -> Witness:
    """Return the witness of web-1, which is protected and will be found unharmed."""
    began = time.time()
    if not is_protected(rig):
        protect(rig)
    rig.wait_protected(since=began - 2)
    return unharmed


def is_protected(rig: Rig) -> bool:
    """Say whether web-1 is a replicated item."""
    try:
        rig.item()
    except NotFound:
        return False
    return True


def protect(rig: Rig) -> None:
    """web-1 is being protected, through the small cache."""
    job = begin_protection(rig)
    ended = rig.wait_job(job)
    assert ended.state is JobState.SUCCEEDED, ended


def begin_protection(rig: Rig) -> str:
    """Return the job that protects web-1."""
    return rig.job("protect", "east/web-1", "--to", "west", "--cache-account", "cache")


def check_unharmed(rig: Rig, witness: Witness, *, since: float) -> None:
    """The guest in east saw no error, and nobody saw it stall."""
    saw = witness.saw(since)
    assert saw.problem == ""
    assert saw.last > saw.first, "the counter stands still"
    assert saw.max_stall_s < STALL_SECONDS
    status = rig.wait("the status of east/web-1", lambda: rig.machine("east").status)
    assert status.power is PowerState.RUNNING
    check_console(Path(status.console_log))


def check_console(log: Path) -> None:
    """The guest's kernel and its workload have complained of nothing."""
    text = log.read_text(errors="replace")
    complaints = [line for line in text.splitlines() if any(e in line for e in CONSOLE_ERRORS)]
    assert not complaints


def kill_in_turn(
    rig: Rig, victims: Sequence[Part], chance: random.Random, *, region: str | None = None
) -> float:
    """Each of `victims` is killed, at random moments within a second. Returns: the last moment."""
    moment = time.time()
    for victim in victims:
        time.sleep(chance.uniform(0, 1 / len(victims)))
        moment = rig.kill(victim, region or REGION[victim])
    return moment


# -- initial replication ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victims",
    [
        *(pytest.param((part,), marks=pytest.mark.slow, id=part.name.lower()) for part in REGION),
        pytest.param((Part.WATCHDOG, Part.SERVICE), id="watchdog-service"),
        pytest.param((Part.AGENT, Part.TAP, Part.WORKER), id="agent-tap-worker"),
    ],
)
def test_killed_during_initial_replication(
    rig: Rig, unharmed: Witness, chance: random.Random, victims: Sequence[Part]
) -> None:
    if is_protected(rig):
        rig.run("unprotect", "web-1")
    job = begin_protection(rig)
    rig.wait_pid(Part.TAP, "east")
    killed = kill_in_turn(rig, victims, chance)
    ended = rig.wait_job(job)
    assert ended.state is JobState.SUCCEEDED, ended
    rig.wait_protected(since=killed)


# -- steady state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", list(REGION), ids=lambda part: part.name.lower())
def test_killed_in_steady_state(
    rig: Rig, protected: Witness, victim: Part, measured: dict[str, str]
) -> None:
    killed = rig.kill(victim, REGION[victim])
    rig.wait_protected(since=killed)
    measured[f"protected again after kill -9 of {victim.name.lower()}"] = (
        f"{time.time() - killed:.1f} s"
    )


@contextmanager
def agent_dead(rig: Rig) -> Iterator[None]:
    """East's agent is dead meanwhile: who would start it again is stopped."""
    with rig.stopped(Part.UP):
        rig.kill(Part.AGENT, "east")
        yield


@pytest.mark.parametrize("victim", [Part.TAP, Part.WATCHDOG], ids=["tap", "watchdog"])
def test_killed_while_the_agent_is_dead(rig: Rig, protected: Witness, victim: Part) -> None:
    with agent_dead(rig):
        killed = rig.kill(victim, "east")
        time.sleep(DEAD_SECONDS)
        check_unharmed(rig, protected, since=killed)
    rig.wait_protected(since=killed + DEAD_SECONDS)


@pytest.mark.parametrize("is_agent_dead", [False, True], ids=["agent-lives", "agent-dead"])
def test_tap_stopped(rig: Rig, protected: Witness, is_agent_dead: bool) -> None:
    with ExitStack() as stack:
        if is_agent_dead:
            stack.enter_context(agent_dead(rig))
        stopped = time.time()
        stack.enter_context(rig.stopped(Part.TAP, "east"))
        time.sleep(DEAD_SECONDS)
        saw = protected.saw(stopped - 1)
        assert saw.max_stall_s < DEAD_SECONDS, "the guest was not let go"
        check_unharmed(rig, protected, since=stopped)
        if not is_agent_dead:
            rig.wait_protected(since=stopped + DEAD_SECONDS)
    rig.wait_protected(since=stopped + DEAD_SECONDS)


def test_replication_goes_on_without_the_service(rig: Rig, protected: Witness) -> None:
    with rig.stopped(Part.SERVICE):
        began = time.time()
        time.sleep(PARTITION_SECONDS)
        ended = time.time()
    rig.wait_protected(since=ended)
    made = [point for point in rig.points() if began + 1 < point.time_ns / 1e9 < ended - 1]
    assert len(made) > PARTITION_SECONDS / 2, "points made meanwhile are missing from the list"


@contextmanager
def another_worker(rig: Rig, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """West has a second worker meanwhile, with a data directory of its own."""
    token = directory / "token"
    token.write_text(rig.run("region", "token", "west"))
    process = subprocess.Popen(
        [
            *(*PROGRAM, "worker", "--region", "west", "--name", "spare"),
            *("--service", load_config(rig.data).url, "--token-file", str(token)),
        ],
        env={**os.environ, "LEEWARD_DATA": str(directory / "data")},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_worker_takes_over_and_the_first_one_lets_go(
    rig: Rig, protected: Witness, tmp_path: Path
) -> None:
    with another_worker(rig, tmp_path) as spare:
        with rig.stopped(Part.UP):
            killed = rig.kill(Part.WORKER, "west")
            rig.wait_protected(since=killed + GONE_SECONDS, seconds=3 * GONE_SECONDS)
        rig.wait_pid(Part.WORKER, "west")
        time.sleep(PARTITION_SECONDS)
        returned = time.time()
        rig.wait_protected(since=returned)
        assert "processed by worker spare in west" in rig.run("event", "list")
        spare.kill()
        rig.wait_protected(since=returned + GONE_SECONDS, seconds=3 * GONE_SECONDS)


# -- the cache -------------------------------------------------------------------------------------


@contextmanager
def full(place: Path) -> Iterator[None]:
    """The file system has no space left meanwhile, whatever Leeward deletes in it."""
    filler = place / "filler"
    done = threading.Event()

    def fill(file: FileIO) -> None:
        while not done.wait(0.01):
            with suppress(OSError):
                while not done.is_set():
                    file.write(bytes(1 << 16))

    with ExitStack() as stack:
        file = stack.enter_context(filler.open("xb", buffering=0))
        stack.callback(filler.unlink)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(done.set)
        pool.submit(fill, file)
        yield


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """The file system refuses writes meanwhile."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)


@pytest.mark.parametrize(
    ("broken", "victim"),
    [(full, None), (read_only, Part.AGENT)],
    ids=["full", "read-only-and-agent-killed"],
)
def test_cache_takes_nothing(
    rig: Rig,
    protected: Witness,
    cache: Path,
    broken: Callable[[Path], AbstractContextManager[None]],
    victim: Part | None,
) -> None:
    with broken(cache):
        item = rig.wait(
            "an item that says what is wrong",
            lambda: item if (item := rig.item()).state is ItemState.DEGRADED else None,
        )
        assert "cuts cannot be uploaded" in item.problem
        assert "\n" not in item.problem
        for shown in (rig.run("item", "show", "web-1"), rig.run("status")):
            assert item.problem in " ".join(shown.split())
        if victim is not None:
            killed = rig.kill(victim, REGION[victim])  # what no manifest names is in its journal
            rig.wait("another one", lambda: rig.pids(victim, REGION[victim]))
            time.sleep(DEAD_SECONDS)
            check_unharmed(rig, protected, since=killed)
        mended = time.time()
        check_unharmed(rig, protected, since=mended - 2)
    rig.wait_protected(since=mended)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cache_full_for_so_long_that_the_buffers_are(
    rig: Rig, protected: Witness, cache: Path
) -> None:
    def is_tracking() -> bool:
        said = rig.item().health.replication
        if said is not None and said.state is ReplicationState.TRACKING:
            return True
        ask(protected.address, "/write?mb=24", timeout_seconds=120)
        return False

    with full(cache):
        rig.wait("buffers that are full", is_tracking, 600)
        assert "cuts cannot be uploaded" in rig.item().problem
        mended = time.time()
    rig.wait_protected(since=mended, seconds=120)


# -- failover --------------------------------------------------------------------------------------


def test_killed_during_failover(
    rig: Rig, witness: Witness, chance: random.Random, measured: dict[str, str]
) -> None:
    rig.wait_protected(since=time.time() - 5)
    check_unharmed(rig, witness, since=0)
    measured["max_stall_s over everything, seen from outside"] = f"{witness.saw().max_stall_s:.2f}"
    witness.stop()
    called = time.time()
    job = fail_over_twice(rig)
    kill_in_turn(rig, (Part.SERVICE, Part.WORKER), chance)
    ended = rig.wait_job(job.id)
    assert ended.state is JobState.SUCCEEDED, ended
    check_failed_over(rig)
    measured["failover under kill -9 of service and worker, call to HTTP answer"] = (
        f"{time.time() - called:.1f} s"
    )
    stopped = rig.wait("what east says", lambda: rig.machine("east").status)
    assert stopped.power is PowerState.STOPPED, "the source runs on"


def fail_over_twice(rig: Rig) -> Job:
    """Return the one failover that two calls at once have begun; the other was refused."""
    item = rig.item()

    def call(_: int) -> Job | Conflict:
        try:
            job = rig.client.failover(item, "latest")
        except Conflict as error:
            return error
        assert job is not None
        return job

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(call, range(2)))
    begun = [answer for answer in answers if isinstance(answer, Job)]
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(begun), len(refused)) == (1, 1), answers
    assert refused[0].message == "web-1 is failing over already"
    return begun[0]


def check_failed_over(rig: Rig) -> None:
    """The guest runs in west, having found everything whole, and writes."""
    address = rig.wait_guest("west")
    item = rig.wait(
        "failed over",
        lambda: item if (item := rig.item()).state is ItemState.FAILED_OVER else None,
    )
    assert item.problem == ""
    report = ask(address, "/check", timeout_seconds=60)
    assert report is not None
    assert report["ok"], report
    before = ask(address, "/counter")
    assert before is not None

    def advanced() -> bool:
        now = ask(address, "/counter")
        return now is not None and int(str(now["acknowledged"])) > int(str(before["acknowledged"]))

    rig.wait("a guest that goes on writing", advanced, STALL_SECONDS)
    assert before["problem"] == ""
    status = rig.machine("west").status
    assert status is not None
    check_console(Path(status.console_log))


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param((Part.AGENT,), id="agent"),
        pytest.param((Part.EXPORT_SERVER, Part.EXPORT_SUPERVISOR), id="export-server-supervisor"),
        *(
            pytest.param((part,), marks=pytest.mark.slow, id=f"{part.name.lower()}-{again}")
            for part in (
                *(Part.AGENT, Part.SERVICE, Part.WORKER),
                *(Part.EXPORT_SERVER, Part.EXPORT_SUPERVISOR),
            )
            for again in range(3)
        ),
    ],
)
def test_killed_during_change_of_recovery_point(
    rig: Rig, chance: random.Random, victims: Sequence[Part]
) -> None:
    item = rig.item()
    assert item.state is ItemState.FAILED_OVER
    others = [point.id for point in rig.points() if point.id != item.recovery_point]
    known = rig.pids(Part.EXPORT_SUPERVISOR, "west")
    job = rig.job("change-recovery-point", "web-1", chance.choice(others))
    if {Part.EXPORT_SERVER, Part.EXPORT_SUPERVISOR} & set(victims):
        rig.wait("the new export", lambda: set(rig.pids(Part.EXPORT_SUPERVISOR)) - set(known))
    kill_in_turn(rig, victims, chance, region=None if Part.SERVICE in victims else "west")
    ended = rig.wait_job(job)
    assert ended.state is JobState.SUCCEEDED, ended
    check_failed_over(rig)


# -- what is left ----------------------------------------------------------------------------------


def test_every_listed_point_is_whole_and_on_time(
    rig: Rig, witness: Witness, chance: random.Random, measured: dict[str, str], tmp_path: Path
) -> None:
    item, points = rig.item(), rig.points()
    chosen = {points[0], points[-1]}
    chosen |= set(chance.sample(points, min(SAMPLE, len(points)) - len(chosen)))
    urls, proven = rig.store_urls(), 0
    for point in sorted(chosen, key=lambda point: point.time_ns):
        image = read_image(urls, item.id, point.id, tmp_path)
        bounds = bounds_at(witness.poller.readings, point.time_ns / 1e9)
        if bounds is not None:
            proven += 1
            assert bounds.at_least <= image.data <= bounds.at_most, point
    assert proven, "the witness can speak for none of them"
    stall = image.max_stall_s(since_ms=0)
    measured["max_stall_s over everything, by the guest's clock"] = f"{stall:.2f}"
    measured["recovery points read and checked"] = (
        f"{len(chosen)} of {len(points)}, {proven} against the witness"
    )
    assert stall < STALL_SECONDS


def test_hydration_ends_all_the_same(rig: Rig) -> None:
    rig.wait_hydrated()
    rig.wait("the export's end", lambda: not rig.pids(Part.EXPORT_SUPERVISOR, "west"))
    with pytest.raises(LeewardError):
        rig.client.failover(rig.item(), "latest")
