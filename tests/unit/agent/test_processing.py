"""A worker's verbs: processed until stopped, sealed for good, points told exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from leeward.agent.processing import ProcessingNode
from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, Fenced, InvalidRequest, NotFound, Unavailable
from leeward.model.recovery import Consistency, RecoveryPoint
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.protocol.messages import Command, ProcessingStatus, ScrubReport, SpaceReport, Verb
from leeward.protocol.rebuild import FoundItems
from leeward.protocol.replicas import ErasureSpec, StoredItems


def point(sequence: int) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-1-{sequence}",
        epoch=1,
        sequence=sequence,
        time_ns=sequence * 1_000_000_000,
        consistency=Consistency.CRASH,
    )


def spec(epoch: int = 1) -> ProcessingSpec:
    replica = ReplicaDisk(disk="d", size_bytes=1 << 20, target_url="memory://t")
    return ProcessingSpec(
        item_id="item-1",
        epoch=epoch,
        cache_url="memory://c",
        catalog_url="memory://t",
        replicas=(replica,),
    )


class FakeLoop:
    """An item's loop whose points the test decides."""

    def __init__(
        self, given: ProcessingSpec, is_resumed: bool, on_change: Callable[[], None]
    ) -> None:
        self.spec = given
        self.is_resumed = is_resumed
        self.has_been_fenced = False
        self.on_change = on_change
        self.points: tuple[RecoveryPoint, ...] = ()
        self.state = "made"
        self.announced = (0, 0)
        self.refuse_hand_over: Unavailable | None = None

    @property
    def is_alive(self) -> bool:
        return self.state == "running" and not self.has_been_fenced

    def start(self) -> None:
        self.state = "running"

    def stop(self) -> None:
        self.state = "stopped"

    def seal(self, new_epoch: int, drain_seconds: float) -> RecoveryPoint:
        self.state = f"sealed for {new_epoch} after {drain_seconds:g} s"
        return self.points[-1]

    def scrub(self, *, dry_run: bool) -> ScrubReport:
        return ScrubReport(item_id=self.spec.item_id, objects=1 + dry_run)

    def reclaim(self, *, dry_run: bool) -> SpaceReport:
        return SpaceReport(item_id=self.spec.item_id, freed_objects=1 + dry_run)

    def announce(self, epoch: int, sequence: int) -> None:
        self.announced = (epoch, sequence)

    def hand_over(self, cache_url: str, seconds: float) -> None:
        if self.refuse_hand_over:
            raise self.refuse_hand_over
        self.state = f"handed over to {cache_url}"

    def status(self) -> ProcessingStatus:
        return ProcessingStatus(
            item_id=self.spec.item_id,
            epoch=self.spec.epoch,
            applied_sequence=len(self.points),
            newest_point_time_ns=0,
            points_added=self.points,
        )


class Worker:
    """A worker that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.loops: list[FakeLoop] = []
        self.erased: list[str] = []
        self.has_erased = threading.Event()
        self.refuse_erase: Unavailable | None = None
        self.are_gone: tuple[str, ...] = ()
        self.refuse_loop: Unavailable | None = None
        self.changes = 0

    def find_items(self, urls: Sequence[str]) -> FoundItems:
        return FoundItems()

    def find_stored_items(self, urls: Sequence[str]) -> StoredItems:
        return StoredItems(problems=dict.fromkeys(urls, "away"))

    def erase_stored_item(self, wanted: ErasureSpec) -> None:
        self.erased.append(wanted.item_id)

    def erase_cache(self, item_id: str, url: str) -> None:
        self.erased.append(f"{item_id} in {url}")

    def start(self) -> ProcessingNode:
        def make(
            given: ProcessingSpec, is_resumed: bool, on_change: Callable[[], None]
        ) -> FakeLoop:
            if self.refuse_loop:
                raise self.refuse_loop
            self.loops.append(FakeLoop(given, is_resumed, on_change))
            return self.loops[-1]

        def note() -> None:
            self.changes += 1

        def erase(given: ProcessingSpec, removed: Sequence[str]) -> None:
            if self.refuse_erase:
                raise self.refuse_erase
            if set(self.are_gone) - set(removed):
                raise Unavailable("a store is gone")
            self.erased.append(given.item_id)
            self.has_erased.set()

        node = ProcessingNode(self._directory, make, erase, self)
        node.on_change(note)
        node.resume()
        return node

    def remembers(self, item_id: str) -> bool:
        return (self._directory / "items" / f"{item_id}.json").exists()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def do(node: ProcessingNode, verb: Verb, arguments: object) -> dict[str, object]:
    return node.carry_out(Command(id="c", verb=verb, arguments=to_plain(arguments)))


def status(node: ProcessingNode) -> ProcessingStatus:
    return node.status().processings[0]


def test_points_are_told_until_the_service_has_them(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].points = (point(1), point(2))
    assert [each.id for each in status(node).points_added] == ["rp-1-1", "rp-1-2"]
    assert [each.id for each in status(node).points_added] == ["rp-1-1", "rp-1-2"]
    node.status_taken(node.status())
    worker.loops[0].points = (point(2), point(3))
    assert [each.id for each in status(node).points_added] == ["rp-1-3"]
    assert status(node).points_removed == ("rp-1-1",)


def test_a_replica_is_erased_unless_it_is_processed_here(worker: Worker) -> None:
    node = worker.start()
    assert do(node, Verb.REPLICAS_READ, {"urls": ["memory://t"]})["problems"]
    do(node, Verb.PROCESSING_START, spec())
    with pytest.raises(Conflict, match="processes item-1"):
        do(node, Verb.REPLICA_ERASE, ErasureSpec(item_id="item-1", url="memory://t"))
    do(node, Verb.REPLICA_ERASE, ErasureSpec(item_id="item-2", url="memory://t"))
    assert worker.erased == ["item-2"]


def test_another_cache_is_taken_once_the_former_is_empty(worker: Worker) -> None:
    node, moved = worker.start(), replace(spec(), cache_url="memory://n")
    with pytest.raises(NotFound):
        do(node, Verb.CACHE_CHANGE, moved)
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].refuse_hand_over = Unavailable("too much")
    with pytest.raises(Unavailable):
        do(node, Verb.CACHE_CHANGE, moved)
    assert (worker.loops[0].state, len(worker.loops)) == ("running", 1)
    worker.loops[0].refuse_hand_over = None
    for _ in range(2):
        do(node, Verb.CACHE_CHANGE, moved)
    assert [(loop.spec.cache_url, loop.state) for loop in worker.loops] == [
        ("memory://c", "stopped"),
        ("memory://n", "running"),
    ]
    with pytest.raises(Fenced):
        do(node, Verb.CACHE_CHANGE, replace(spec(epoch=2), cache_url="memory://z"))


def test_a_cache_is_erased_unless_it_is_the_items(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    with pytest.raises(Conflict, match="is the cache of item-1"):
        do(node, Verb.CACHE_ERASE, {"item_id": "item-1", "url": "memory://c"})
    do(node, Verb.CACHE_ERASE, {"item_id": "item-1", "url": "memory://o"})
    assert worker.erased == ["item-1 in memory://o"]


def test_new_points_are_told_at_once(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].on_change()
    assert worker.changes == 1


def test_restarted_worker_says_which_points_there_are_and_no_others(worker: Worker) -> None:
    """Whatever went while nobody could tell of it must not stay listed, nor what the service lost
    stay unlisted."""
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].points = (point(1), point(2))
    node.status_taken(node.status())
    node.stop()
    again = worker.start()
    assert worker.loops[1].state == "running"
    assert not status(again).points_complete, "the catalog has not been read yet"
    again.status_taken(again.status())
    worker.loops[1].points = (point(2),)
    for _ in range(2):  # until the service has it
        assert status(again).points_complete
        assert [each.id for each in status(again).points_added] == ["rp-1-2"]
    again.status_taken(again.status())
    assert not status(again).points_complete
    assert status(again).points_added == ()


def test_asked_twice_it_starts_once(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    do(node, Verb.PROCESSING_START, spec())
    assert len(worker.loops) == 1


def test_what_was_given_to_another_worker_and_comes_back_starts_anew(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].has_been_fenced = True
    do(node, Verb.PROCESSING_START, spec())
    assert [loop.state for loop in worker.loops] == ["stopped", "running"]


def test_only_what_the_service_has_just_given_is_taken_from_another_worker(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    node.stop()
    again = worker.start()
    do(again, Verb.PROCESSING_START, spec(epoch=2))
    assert [loop.is_resumed for loop in worker.loops] == [False, True, False]


def test_new_epoch_replaces_the_old_one(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec(epoch=1))
    do(node, Verb.PROCESSING_START, spec(epoch=2))
    assert [loop.state for loop in worker.loops] == ["stopped", "running"]
    with pytest.raises(Fenced):
        do(node, Verb.PROCESSING_START, spec(epoch=1))


def test_sealed_item_stays_sealed_after_a_restart(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.loops[0].points = (point(1),)
    order = {"item_id": "item-1", "epoch": 2, "drain_seconds": 1.0}
    assert do(node, Verb.PROCESSING_SEAL, order)["id"] == "rp-1-1"
    assert worker.loops[0].state == "sealed for 2 after 1 s"
    node.stop()
    again = worker.start()
    assert worker.loops[1].state == "made"
    with pytest.raises(Fenced):
        do(again, Verb.PROCESSING_START, spec(epoch=1))


def test_sealing_what_is_not_processed_here_is_refused(worker: Worker) -> None:
    with pytest.raises(NotFound):
        do(worker.start(), Verb.PROCESSING_SEAL, {"item_id": "item-9", "epoch": 2})


def test_stopped_item_is_forgotten_and_erased_only_when_asked(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": False})
    assert (worker.erased, node.status().processings) == ([], ())
    assert worker.loops[0].state == "stopped"
    do(node, Verb.PROCESSING_START, spec())
    do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    assert worker.erased == ["item-1"]
    worker.start()
    assert len(worker.loops) == 2


def test_verb_of_an_agent_is_refused(worker: Worker) -> None:
    with pytest.raises(InvalidRequest):
        do(worker.start(), Verb.VM_START, {"vm_id": "x"})


def test_an_erasure_cut_short_is_finished_by_the_next_worker_and_not_processed(
    worker: Worker,
) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.refuse_erase = Unavailable("the store is slow")
    with pytest.raises(Unavailable):
        do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    worker.refuse_erase = None
    assert worker.start().status().processings == ()
    assert worker.has_erased.wait(60)
    assert len(worker.loops) == 1


def test_whoever_asks_again_for_an_end_that_was_cut_short_is_answered_when_it_is_done(
    worker: Worker,
) -> None:
    """The stores are taken away after the answer; the erasure would fail in them for good."""
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.refuse_erase = Unavailable("the store is slow")
    with pytest.raises(Unavailable):
        do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    again = worker.start()
    with pytest.raises(Unavailable):
        do(again, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    worker.refuse_erase = None
    do(again, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    assert worker.erased == ["item-1"]
    assert not worker.remembers("item-1")


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_item_is_forgotten_when_its_stores_have_been_removed_before_it_was_erased(
    worker: Worker, is_restarted: bool
) -> None:
    """The worker was away when the protection ended, and its storage did not wait for it."""
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.are_gone = ("memory://t",)
    with pytest.raises(Unavailable):
        do(node, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": True})
    if is_restarted:
        node = worker.start()
    assert worker.remembers("item-1")
    removed = {"item_id": "item-1", "delete": True, "removed": ["memory://t"]}
    do(node, Verb.PROCESSING_STOP, removed)
    assert not worker.remembers("item-1")
    assert node.status().processings == ()


def test_which_stores_have_been_removed_is_known_after_a_restart(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    worker.refuse_erase = Unavailable("the other store is slow")
    worker.are_gone = ("memory://t",)
    removed = {"item_id": "item-1", "delete": True, "removed": ["memory://t"]}
    with pytest.raises(Unavailable, match="slow"):
        do(node, Verb.PROCESSING_STOP, removed)
    worker.refuse_erase = None
    worker.start()
    assert worker.has_erased.wait(60)


def test_an_item_that_could_not_be_taken_up_again_is_forgotten_when_it_is_stopped(
    worker: Worker,
) -> None:
    do(worker.start(), Verb.PROCESSING_START, spec())
    worker.refuse_loop = Unavailable("the store is away")
    again = worker.start()
    do(again, Verb.PROCESSING_STOP, {"item_id": "item-1", "delete": False})
    assert not worker.remembers("item-1")


def test_what_takes_long_holds_up_no_other_command_of_its_item(worker: Worker) -> None:
    node = worker.start()
    do(node, Verb.PROCESSING_START, spec())
    asked = {"item_id": spec().item_id, "dry_run": True}
    assert do(node, Verb.PROCESSING_SCRUB, asked)["objects"] == 2
    assert do(node, Verb.PROCESSING_COMPACT, asked)["freed_objects"] == 2
    verbs = [Verb.PROCESSING_SCRUB, Verb.PROCESSING_COMPACT, Verb.PROCESSING_SEAL]
    lanes = {node.lane_of(Command(id="c", verb=verb, arguments=asked)) for verb in verbs}
    assert len(lanes) == 3
    for verb in verbs[:2]:
        with pytest.raises(NotFound):
            do(node, verb, {"item_id": "another"})
