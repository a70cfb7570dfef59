"""Who the nemesis of kill-everywhere strikes, and when nobody."""

from __future__ import annotations

import pytest
from scenario.nemesis import Nemesis
from scenario.rounds import choose_rounds
from scenario.rounds.act import AGENT_EAST, SERVICE, Victim

from leeward.model.recovery import Job, JobState, JobStep

JOB, STEP = "job-1", "plug"


class Recording(Nemesis):
    """Everybody runs; whoever is killed is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[Victim] = []
        ((each, _),) = choose_rounds("machines")
        self.aim(each, each.acts[0], 1)

    def _pids(self, victim: Victim) -> list[int]:
        return [1]

    def _kill(self, victim: Victim) -> None:
        self.killed.append(victim)


@pytest.fixture
def nemesis(monkeypatch: pytest.MonkeyPatch) -> Recording:
    monkeypatch.setattr("scenario.nemesis.DELAY_SECONDS_MAX", 0.0)
    monkeypatch.setattr("scenario.nemesis.threading.Timer", _AtOnce)
    return Recording()


class _AtOnce:
    def __init__(self, _: float, call: object, arguments: list[object]) -> None:
        self._call, self._arguments = call, arguments

    def start(self) -> None:
        self._call(*self._arguments)  # type: ignore[operator]

    def join(self) -> None: ...


def test_nobody_dies_when_the_job_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may be over before the one who is to die in it is dead."""
    monkeypatch.setattr("scenario.nemesis.DELAY_SECONDS_MAX", 0.3)
    nemesis = Recording()
    with nemesis.let_loose() as told:
        told(JOB)
        nemesis.at_step(JOB, STEP, "before")
    assert nemesis.killed == [AGENT_EAST]


def test_each_dies_once_at_a_step_and_what_is_left_is_told(nemesis: Recording) -> None:
    step = JobStep(name=STEP, state=JobState.SUCCEEDED, started_ns=1)
    job = Job(id=JOB, verb="v", target="t", state=JobState.SUCCEEDED, created_ns=1, steps=(step,))
    with nemesis.let_loose() as told:
        told(JOB)
        nemesis.at_step(JOB, STEP, "before")
        assert nemesis.killed == [AGENT_EAST]
        nemesis.saw(job)
        assert len(nemesis.missed()) == 1
        nemesis.at_step(JOB, STEP, "after")
        nemesis.at_step(JOB, STEP, "before")  # carried out again
        nemesis.at_step(JOB, STEP, "after")
    assert nemesis.killed == [AGENT_EAST, SERVICE]
    assert nemesis.missed() == []


def test_nobody_dies_at_another_job_or_in_peace(nemesis: Recording) -> None:
    with nemesis.let_loose() as told:
        told(JOB)
        nemesis.at_step("job-2", STEP, "after")
    nemesis.at_step(JOB, STEP, "after")
    assert nemesis.killed == []
