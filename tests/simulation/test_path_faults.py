"""The path from cut to recovery point, with its processes killed and its stores failing anywhere.

Every single operation of a short story meets every fault once, then seeded stories meet several.
After each death, and at the end: every listed point is byte for byte what the source had written,
and whatever the source was told is applied is in the catalog.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from tests.simulation.faults import Fault, FaultPlan, Killed
from tests.simulation.world import Source, World

from leeward.core.errors import Unavailable
from leeward.mobility.upload import Cut, Uploader
from leeward.processor import apply as apply_module
from leeward.processor import arrivals as arrivals_module
from leeward.processor.item import ItemProcessor

CUTS = 3
TRIES_MAX = 60
Faults = Mapping[int, Fault]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and batches of more than one cut within a short story."""
    monkeypatch.setattr(apply_module, "CHECKPOINT_SEGMENTS", 5)
    monkeypatch.setattr(arrivals_module, "BATCH_CUTS_MAX", 2)


@dataclass
class Story:
    """A source, its uploader and a worker: each dies and comes back as its faults say."""

    seed: int
    upload_faults: Iterator[Faults]
    process_faults: Iterator[Faults]
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.source = Source(self.seed)
        self.upload_plan = FaultPlan()
        self.process_plan = FaultPlan()
        self.deaths = 0
        self._stack = ExitStack()
        self._known = self.world.points()

    def run(self) -> None:
        with self._stack:
            self.uploader = self._new_uploader()
            self.processor = self._new_processor()
            for number in range(CUTS):
                cut = self.source.next_cut()
                self._until_done(lambda cut=cut: self._upload(cut))  # type: ignore[misc]
                if number != 1:  # so that two cuts wait together
                    self._until_done(self._process)
        self._check()
        points = self.world.points()
        assert {point.time_ns for point in points} == set(self.source.contents)
        assert points[-1].time_ns == max(self.source.contents)

    def _new_uploader(self) -> Uploader:
        self.upload_plan = FaultPlan(next(self.upload_faults, {}))
        return self._stack.enter_context(self.world.uploader(self.upload_plan))

    def _new_processor(self) -> ItemProcessor:
        self.process_plan = FaultPlan(next(self.process_faults, {}))
        return self._stack.enter_context(self.world.processor(self.process_plan))

    def _until_done(self, attempt: Callable[[], bool]) -> None:
        for _ in range(TRIES_MAX):
            try:
                if attempt():
                    return
            except Unavailable:
                pass
            except Killed:
                self.deaths += 1
                if self.upload_plan.dead:
                    self.uploader = self._new_uploader()
                else:
                    self.processor = self._new_processor()
            self._check()
        raise AssertionError("the story does not end")

    def _upload(self, cut: Cut) -> bool:
        self.uploader.upload(cut)
        return True

    def _process(self) -> bool:
        return self.processor.step().idle

    def _check(self) -> None:
        self.world.check(self.source, known=self._known)
        self._known = self.world.points()


def count_operations(seed: int) -> tuple[int, int]:
    """Return how many operations uploader and worker make in a story without faults."""
    story = Story(seed, iter(()), iter(()))
    story.run()
    return story.upload_plan.count, story.process_plan.count


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_the_uploader_fails_at_every_operation(fault: Fault) -> None:
    uploads, _ = count_operations(1)
    assert uploads > 10
    for at in range(1, uploads + 1):
        story = Story(1, iter([{at: fault}]), iter(()))
        story.run()
        assert story.deaths == (fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER))


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_the_worker_fails_at_every_operation(fault: Fault) -> None:
    _, steps = count_operations(1)
    assert steps > 50
    for at in range(1, steps + 1):
        story = Story(1, iter(()), iter([{at: fault}]))
        story.run()
        assert story.deaths == (fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER))


def seeded_faults(rnd: random.Random, span: int) -> Iterator[Faults]:
    """Yield the faults of one process after the other; the third lives undisturbed."""
    for _ in range(2):
        yield {
            rnd.randint(1, span): rnd.choice(list(Fault)),
            rnd.randint(1, span): rnd.choice(list(Fault)),
            rnd.randint(1, span): rnd.choice((Fault.LOST_REPLY, Fault.LOST_REQUEST)),
        }


@pytest.mark.parametrize("seed", range(40))
def test_everything_fails_at_random(seed: int) -> None:
    rnd = random.Random(seed)
    Story(seed, seeded_faults(rnd, 25), seeded_faults(rnd, 90)).run()
