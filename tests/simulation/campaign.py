"""The path at length: seeded stories of many cuts, with faults drawn at random, and a checker.

Production code over modelled stores, processes and a clock; in real_campaign.py nothing is
modelled, and command.py runs both. Every story is one item's life: cuts are uploaded, applied and
listed while processes die at any store operation, replies are lost, requests arrive twice, objects
are torn, stores are full, the clock steps, the item is sealed for a new epoch, points are dropped,
the log is compacted while cuts come and readers read, old records of the catalog are deleted, and
workers that were replaced or uploaders of an older epoch go on as if nothing had happened, at once
or much later.

Checked after every cut: each listed point is byte for byte what had been written at its time, on
both disks, and what was opened still reads so; what the source was told is applied is in the
catalog; nobody who was replaced changes or deletes anything; whoever has read the catalog long ago
reads on to what it says now; no chain breaks unless the story has damaged it; and in the end
nothing is stored that nobody needs.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import structlog
from tests.simulation.faults import Fault, FaultPlan, FaultyStore, Killed
from tests.simulation.readers import GRACE, Readers
from tests.simulation.world import EPOCH, ITEM, HandClock, Source, World

from leeward.core.errors import ChainBroken, Conflict, Fenced, LeewardError, Unavailable
from leeward.mobility.chain import ChainNote
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.processor import apply as apply_module
from leeward.processor import arrivals as arrivals_module
from leeward.processor import trimming as trimming_module
from leeward.processor.item import ItemProcessor
from leeward.replica import snapshots as snapshots_module
from leeward.replica.catalog import Catalog
from leeward.replica.layout import record_name

T = TypeVar("T")
Mutant = Callable[[], AbstractContextManager[None]]

CUTS = 24
"""Per story."""
TRIES_MAX = 80
FULL_OPERATIONS = 6
RECORDS_BOUND = 50
"""Of a catalog whose floors are some 7 versions apart, and that only some commands thin out."""
SEEDS = 450
"""10 800 cuts."""
MUTANT_SEEDS = 60
"""A mutant that lives through so many stories is not caught."""


class Kind(Enum):
    """What meets a store operation besides faults.Fault."""

    DUPLICATE = "the request arrives twice"
    TORN = "the object is cut off and the process dies"
    FULL = "the store is full for a while"


class Violation(Exception):
    """Something that must never be was."""


class Plan(FaultPlan):
    """One process's operations; at most one fault is armed at a time."""

    def __init__(self, stores: dict[str, MemoryStore], chance: random.Random) -> None:
        super().__init__()
        self._stores = stores
        self._chance = chance
        self._armed: tuple[int, Fault | Kind] | None = None
        self._full = 0
        self._interrupt: tuple[int, Callable[[], bool]] | None = None
        self.fired = 0

    def arm(self, kind: Fault | Kind, *, within: int) -> None:
        """One of the next `within` operations meets the fault."""
        self._armed = (self.count + self._chance.randint(1, within), kind)

    def interrupt(self, interruption: Callable[[], bool], *, within: int) -> None:
        """Before one of the next operations something else happens, once it says so."""
        self._interrupt = (self.count + self._chance.randint(1, within), interruption)

    def disarm(self) -> None:
        """Nothing is to happen any more."""
        self._armed = self._interrupt = None

    def run(self, label: str, operation: Callable[[], T]) -> T:
        if self._interrupt and self.count >= self._interrupt[0]:
            interrupt, self._interrupt = self._interrupt, None
            if not interrupt[1]():
                self._interrupt = interrupt
        if self.dead:
            raise Killed
        self.count += 1
        if self._full and " create " in label:
            self._full -= 1
            raise Unavailable("the store is full")
        if self._armed is None or self.count < self._armed[0]:
            return operation()
        kind, self._armed = self._armed[1], None
        self.fired += 1
        return self._meet(kind, label, operation)

    def _meet(self, kind: Fault | Kind, label: str, operation: Callable[[], T]) -> T:
        if kind is Kind.DUPLICATE:
            operation()
            return operation()
        if kind is Kind.FULL:
            self._full = self._chance.randint(1, FULL_OPERATIONS)
            raise Unavailable("the store is full")
        if kind is Kind.TORN:
            if " create " in label and "/segments/" in label:  # never visible by itself
                operation()
                self._tear(label)
            self.dead = True
            raise Killed
        if kind in (Fault.KILL_BEFORE, Fault.LOST_REQUEST):
            self._fail(kind)
        try:
            return operation()
        finally:
            self._fail(kind)

    def _tear(self, label: str) -> None:
        place, _, name = label.split(" ", 2)
        store = self._stores[f"memory://{place}"]
        whole = store.get(name)
        store.delete(name)
        store.create(name, whole[: self._chance.randrange(len(whole))])


@dataclass
class Tally:
    """What a campaign has seen."""

    stories: int = 0
    cuts: int = 0
    faulted: int = 0
    trimmed: int = 0
    """Records of catalogs deleted."""
    violations: list[str] = field(default_factory=list)


class Story:
    """One item from its first cut to its last."""

    def __init__(self, seed: int, directory: Path, tally: Tally) -> None:
        self._chance = random.Random(seed)
        self._directory = directory
        self._tally = tally
        self._source = Source(seed)
        self._world = World()
        self._epoch = EPOCH
        self._stack = ExitStack()
        self._known = self._world.points()
        self._points_expected: set[int] = set()
        self._is_damaged = False
        """The chain may break: at once, or when a process starts that looks where to go on."""
        self._fired_before = 0
        """Faults met by processes that are dead."""
        self._stale_uploads: list[int] = []
        self._asleep: list[tuple[str, ItemProcessor]] = []
        """Workers that were replaced and do not know it yet."""
        self._read_before: list[Catalog] = []
        """Catalogs as somebody read them some time ago."""
        self._clock = HandClock()
        self._readers = Readers(self._world, self._source, self._clock, self._chance)

    def run(self) -> None:
        """The story is told to its end. Raises: Violation, or what the code under test lets out."""
        with self._stack:
            self._stack.callback(self._readers.close)
            self._uploader = self._new_uploader()
            self._processor = self._new_processor()
            for number in range(CUTS):
                before = self._fired()
                self._turn(number)
                self._tally.cuts += 1
                self._tally.faulted += self._fired() > before
            self._until_done(self._process)
            self._check()
            self._wake(everybody=True)
            self._check_space()
        points = self._world.points()
        newest = list(self._source.contents.values())[-1]
        if not points or self._source.contents[points[-1].time_ns] != newest:
            raise Violation("the newest cut never became a recovery point")

    # --- what happens

    def _turn(self, number: int) -> None:
        draw = self._chance.random()
        if draw < 0.05 and number:
            self._take_over()
        elif draw < 0.07 and number:
            self._seal()
        elif draw < 0.10 and number:
            self._lose_something()
        elif draw < 0.14:
            self._source.step_clock(self._chance.randint(-3600, 3600))
        elif draw < 0.70:
            kind = self._chance.choice([*Fault, *Fault, *Kind])
            if self._chance.random() < 0.4:
                self._upload_plan.arm(kind, within=5)
            else:
                self._process_plan.arm(kind, within=14)
        is_point = self._chance.random() < 0.9 or number == CUTS - 1
        cut = self._source.next_cut(consistency=Consistency.CRASH if is_point else Consistency.NONE)
        self._send(cut, is_point=is_point)
        if self._chance.random() < 0.75:  # else several cuts wait together
            self._until_done(self._process)
        if self._chance.random() < 0.2:
            self._thin_out()
        if self._chance.random() < 0.1:
            self._wake()

    def _send(self, cut: Cut, *, is_point: bool = True) -> None:
        if is_point:
            self._points_expected.add(cut.time_ns)
        self._until_done(lambda: self._upload(cut))

    def _thin_out(self) -> None:
        """Points are dropped and space is reclaimed, while others read and cuts may come."""
        if self._chance.random() < 0.5:
            self._readers.begin(is_pinned=self._chance.random() < 0.5)
        ids = [point.id for point in self._world.points()[:-1]]
        gone = self._chance.sample(ids, self._chance.randint(0, len(ids)))
        if self._chance.random() < 0.5:
            self._process_plan.arm(self._chance.choice([*Fault, *Kind]), within=60)
        self._until_done(lambda: self._drop(gone))
        if self._chance.random() < 0.3:  # a step that gives up half-way, and is not tried again yet
            self._send(self._source.next_cut())
            self._process_plan.arm(Fault.LOST_REQUEST, within=12)
            with suppress(Unavailable, Conflict, ChainBroken):
                self._processor.step()
        if self._chance.random() < 0.3:
            self._process_plan.interrupt(self._interrupted, within=60)
        self._until_done(self._reclaim)
        self._process_plan.disarm()
        self._readers.let_pass(self._chance.choice([1, GRACE / 2, GRACE, 2 * GRACE]))
        self._until_done(self._reclaim)
        self._check_again()

    def _interrupted(self) -> bool:
        """A cut comes and is applied, unless the worker is just writing into its catalog."""
        if not self._processor._lock.acquire(blocking=False):
            return False
        self._processor._lock.release()
        self._send(self._source.next_cut())
        self._until_done(self._process)
        return True

    def _take_over(self) -> None:
        """Another worker takes the item over; the one before goes on, and must get nowhere."""
        if self._processor._catalog is None:
            return  # it has not taken over itself
        stale, self._processor = self._processor, self._new_processor()
        self._until_done(self._claim)
        self._send(self._source.next_cut())
        self._asleep.append(("a worker that was replaced", stale))
        if self._chance.random() < 0.5:
            self._wake(everybody=True)

    def _seal(self) -> None:
        """The item gets a new epoch; a worker and an uploader of the old one go on."""
        if not self._world.points():
            return
        old, stale_uploader = self._epoch, self._uploader
        self._until_done(self._process)
        self._until_done(self._sealed)
        self._epoch = old + 1
        late_cut = self._source.next_cut()
        self._stale_uploads.append(late_cut.time_ns)
        with suppress(LeewardError, Killed):
            stale_uploader.upload(late_cut)
        with self._world.processor(epoch=old, clock=self._clock) as late:
            self._expect_nothing_written("a worker of an older epoch", late)
        self._asleep.append(("a worker that was sealed", self._processor))
        self._uploader, self._processor = self._new_uploader(), self._new_processor()
        self._send(self._source.whole_cut())

    def _lose_something(self) -> None:
        """An object of the cache is gone or damaged, and what was in it is sent anew."""
        names = self._world.cache.list("")
        if not names:
            return
        name = self._chance.choice(names)
        data = self._world.cache.get(name)
        self._world.cache.delete(name)
        if self._chance.random() < 0.5:
            at = self._chance.randrange(len(data))
            damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self._world.cache.create(name, damaged)
        self._is_damaged = True

    def _wake(self, *, everybody: bool = False) -> None:
        """Workers that slept since they were replaced go on, and must get nowhere."""
        while self._asleep:
            self._expect_nothing_written(*self._asleep.pop(0))
            if not everybody:
                break

    def _expect_nothing_written(self, who: str, stale: ItemProcessor) -> None:
        version, objects = self._world.catalog().version, set(self._world.replica_objects())
        for _ in range(3):
            with suppress(LeewardError, Killed):
                stale.step()
            with suppress(LeewardError, Killed):
                if stale.drop_points(lambda points: [point.id for point in points[:-1]]):
                    raise Violation(f"{who} believes that it has dropped points")
            with suppress(LeewardError, Killed):
                stale.reclaim(is_thorough=True)
            self._readers.let_pass(GRACE)
        if self._world.catalog().version != version:
            raise Violation(f"{who} has written into the catalog")
        if not objects <= set(self._world.replica_objects()):
            raise Violation(f"{who} has deleted something")

    # --- processes

    def _fired(self) -> int:
        return self._fired_before + self._upload_plan.fired + self._process_plan.fired

    def _new_uploader(self) -> Uploader:
        self._upload_plan = Plan(self._world.stores, self._chance)
        store = FaultyStore(self._world.cache, self._upload_plan, "cache")
        note = ChainNote(self._directory / f"{self._epoch}.sequence", self._epoch)
        uploader = Uploader(store, ITEM, self._epoch, workers=1, note=note)
        self._stack.callback(uploader.close)
        return uploader

    def _new_processor(self) -> ItemProcessor:
        self._process_plan = Plan(self._world.stores, self._chance)
        return self._stack.enter_context(
            self._world.processor(self._process_plan, epoch=self._epoch, clock=self._clock)
        )

    def _until_done(self, attempt: Callable[[], bool]) -> None:
        for _ in range(TRIES_MAX):
            try:
                if attempt():
                    return
            except (Unavailable, Conflict) as error:
                if isinstance(error, Fenced):
                    raise
            except ChainBroken as error:
                self._mend(error)
            except Killed:
                self._bury()
            self._check()
        raise Violation("what was begun does not end")

    def _bury(self) -> None:
        if self._upload_plan.dead:
            self._fired_before += self._upload_plan.fired
            self._uploader = self._new_uploader()
        if self._process_plan.dead:
            self._fired_before += self._process_plan.fired
            self._processor = self._new_processor()

    def _mend(self, error: ChainBroken) -> None:
        """As a replicator does when the target refuses a cut: everything is sent anew."""
        if not self._is_damaged:
            raise Violation(f"the chain broke with nothing lost or damaged: {error}")
        with suppress(ChainBroken, Unavailable):
            self._uploader.check_refused(self._uploader.applied_sequence())
        if self._uploader.broken_after is None:
            return
        self._until_done(self._restart)
        self._send(self._source.whole_cut())

    def _restart(self) -> bool:
        self._uploader.restart()
        return True

    def _upload(self, cut: Cut) -> bool:
        try:
            self._uploader.upload(cut)
        except Unavailable:
            if self._is_damaged:  # an applied marker, perhaps: the worker writes it anew in time
                self._processor._acknowledgements.doubt()
                self._process()
            raise
        return True

    def _claim(self) -> bool:
        self._processor.take_over()
        return True

    def _sealed(self) -> bool:
        self._processor.seal(self._epoch + 1, 1.0)
        return True

    def _process(self) -> bool:
        return self._processor.step().idle

    def _drop(self, ids: Sequence[str]) -> bool:
        self._processor.drop_points(lambda points: [p.id for p in points if p.id in ids])
        return True

    def _reclaim(self) -> bool:
        self._processor.reclaim(is_thorough=True)
        return True

    def _check_space(self) -> None:
        """Whatever has happened, nothing is stored in the end that nobody needs."""
        self._readers.check()
        self._readers.close()
        for _ in range(2):
            self._until_done(self._reclaim)
            self._readers.let_pass(GRACE)
            self._until_done(self._reclaim)
        self._check_again()
        left = set(self._world.replica_objects()) - self._world.needed_objects()
        if left or self._processor.reclaim(is_thorough=True, dry_run=True).reclaimable_bytes:
            raise Violation("space does not return to its bound")
        self._check_records()

    def _check_records(self) -> None:
        """No more of the catalog is left than two floors are apart, and what is left is whole."""
        floor = self._world.catalog().state.floor
        names = self._world.catalog_store.list(f"items/{ITEM}/catalog/")
        end = self._world.catalog().version + 1
        wanted = [record_name(ITEM, version) for version in range(max(floor.previous, 1), end)]
        if names[-len(wanted) :] != wanted:
            raise Violation("a record of the catalog that still counts is gone")
        if len(names) > len(wanted):
            raise Violation("records of the catalog are left that nobody needs")
        if len(wanted) > RECORDS_BOUND:
            raise Violation(f"{len(wanted)} records of the catalog are left")
        self._tally.trimmed += floor.previous

    def _check_again(self) -> None:
        self._known = ()
        self._check()
        self._check_catalogs()
        try:
            self._readers.check()
        except AssertionError as error:
            raise Violation(str(error)) from error

    def _check_catalogs(self) -> None:
        """Whoever reads on from long ago knows what somebody knows who begins now."""
        now = Catalog.open(self._world.catalog_store, ITEM).state
        for before in self._read_before[:-1]:
            before.refresh()
            if before.state != now:
                raise Violation("a reader from before knows another catalog")
        if self._chance.random() < 0.5:
            self._read_before.append(Catalog.open(self._world.catalog_store, ITEM))
        if self._chance.random() < 0.2:
            self._read_before = self._read_before[-1:]

    def _check(self) -> None:
        for point in self._world.points():
            if point.time_ns in self._stale_uploads:
                raise Violation("a cut of an older epoch was listed after the seal")
            if point.time_ns not in self._points_expected:
                raise Violation("a cut that is no recovery point was listed")
        try:
            self._world.check(self._source, known=self._known)
        except AssertionError as error:
            raise Violation(
                str(error).splitlines()[0] or "a point is not what was written"
            ) from error
        self._known = self._world.points()


@contextmanager
def short_distances() -> Iterator[None]:
    """Checkpoints, batches, looks through the cache, snapshots and floors come often enough for
    short stories."""
    with (
        patch.object(apply_module, "CHECKPOINT_SEGMENTS", 5),
        patch.object(arrivals_module, "BATCH_CUTS_MAX", 2),
        patch.object(arrivals_module, "GAP_SECONDS", 0.0),
        patch.object(snapshots_module, "SNAPSHOT_VERSIONS", 3),
        patch.object(trimming_module, "FLOOR_VERSIONS", 7),
    ):
        yield


def run_stories(
    seeds: range,
    *,
    until_violation: bool = False,
    is_ending: Callable[[], bool] = lambda: False,
) -> Tally:
    """Return what the stories of these seeds have shown, of those that began before the end."""
    tally = Tally()
    with short_distances(), tempfile.TemporaryDirectory(prefix="lwcampaign") as scratch:
        for seed in seeds:
            if is_ending():
                break
            tally.stories += 1
            directory = Path(scratch, str(seed))
            directory.mkdir()
            try:
                Story(seed, directory, tally).run()
            except (Violation, LeewardError, AssertionError, LookupError, ValueError) as error:
                tally.violations.append(f"seed {seed}: {type(error).__name__}: {error}")
                if until_violation:
                    break
    return tally


def be_quiet() -> None:
    """The code under test logs nothing: a campaign prints its findings."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
