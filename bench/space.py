"""What the recovery points of a disk take in the target, and what keeping that bounded costs.

Owns: for three mixes of writes (`hot`, `warm`, `cool`) the metrics `amp_*` (bytes stored in the
target, segments, maps and catalog ÷ bytes of data that some kept point needs), `rewrite_*` (bytes
written by compaction ÷ bytes of the cuts), `amp_busy_*` (as `amp_*`, but while the writes go on,
with what waits out its grace; the mean of the last hour) and `points` (of the mix with the fewest).

A mix x/y is read as: x % of the writes go to y % of the disk, the others to all of it. Writes are
4 KiB of noise, so that nothing is gained by compression. The disk is full, and that first copy does
not count as bytes of cuts. What is needed is counted from the writes alone, by block and cut; what
is stored is read back at some points. The default tiers apply. The worker's steps, retention and
rounds of space are called as its loop calls them, by a clock that is set by hand: three hours pass.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from bench.common import Invalid, Result
from leeward.core.clock import SystemClock
from leeward.core.units import BLOCK, MIB
from leeward.mobility.cut import CutDisk, SweepRead, build_cut
from leeward.mobility.journal import KIND_WRITE, RECORD_DTYPE
from leeward.mobility.upload import Cut, Uploader
from leeward.model.recovery import DEFAULT_TIERS, Consistency
from leeward.object_store.memory import MemoryStore
from leeward.processor.garbage import GRACE_SECONDS
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import RETENTION_SECONDS, SPACE_SECONDS
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.recovery_points.retention import plan_retention
from leeward.replica.disk import open_point

MIXES = {"hot": (95, 0.05), "warm": (60, 0.5), "cool": (80, 2.0)}
"""Percent of the writes, percent of the disk they go to."""
ITEM, DISK = "item-1", "d"
POINTS_MIN = 300
CUT_SECONDS = 3
WRITES_PER_CUT = 32
READ_BACK = 8
"""So many of the kept points, the newest among them, are read from end to end."""
SETTLE_ROUNDS = 30
PROCESSES = 2
"""Mixes at once: no figure is a time."""

Ints = npt.NDArray[np.int64]


def run(runs: float = 1, disk_mib: float = 256, hours: float = 3) -> Result:
    """Let each mix write for so many hours of the hand clock, with another seed in every run."""
    metrics: dict[str, list[float]] = defaultdict(list)
    jobs = [(mix, seed) for seed in range(int(runs)) for mix in MIXES]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        measured = list(pool.map(_measure, jobs, repeat(int(disk_mib * MIB)), repeat(hours)))
    for (mix, _), figures in zip(jobs, measured, strict=True):
        for metric, figure in figures.items():
            metrics[f"{metric}_{mix}"].append(figure)
    counts = zip(*(metrics.pop(f"points_{mix}") for mix in MIXES), strict=True)
    metrics["points"] = [min(each) for each in counts]
    targets = {f"amp_{mix}": "≤ 1.15" for mix in MIXES}
    targets |= {f"rewrite_{mix}": "≤ 0.5" if mix == "hot" else "≤ 0.3" for mix in MIXES}
    return Result(dict(sorted(metrics.items())), {**targets, "points": f"≥ {POINTS_MIN}"})


def _measure(job: tuple[str, int], size_bytes: int, hours: float) -> dict[str, float]:
    """Return the figures of one mix with one seed. Raises: Invalid."""
    item = _Item(*job, size_bytes)
    try:
        item.live_through(int(hours * 3600))
        item.settle()
        return {**item.figures(), "points": item.check()}
    finally:
        item.close()


class _HandClock(SystemClock):
    """Goes on by being set, or by somebody sleeping."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class _Item:
    """One disk, what writes to it, and the worker that keeps its recovery points.

    written: blocks of each cut, by the cut's sequence, from 1.
    """

    mix: str
    seed: int
    size_bytes: int
    clock: _HandClock = field(default_factory=_HandClock)
    written: list[Ints] = field(default_factory=list)
    cut_bytes: int = 0
    rewritten_bytes: int = 0
    busy: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._source = np.random.default_rng((self.seed, *self.mix.encode()))
        self._block_count = self.size_bytes // BLOCK
        hot_count = max(1, round(self._block_count * MIXES[self.mix][1] / 100))
        self._hot = self._source.permutation(self._block_count)[:hot_count]
        cache, self._target = MemoryStore("cache"), MemoryStore("target")
        replica = ReplicaDisk(disk=DISK, size_bytes=self.size_bytes, target_url=self._target.url)
        spec = ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=cache.url,
            catalog_url=self._target.url,
            replicas=(replica,),
        )
        self._uploader = Uploader(cache, ITEM, 1)
        self._processor = ItemProcessor(
            spec, {cache.url: cache, self._target.url: self._target}.__getitem__, self.clock
        )

    def close(self) -> None:
        self._uploader.close()
        self._processor.close()

    # -------------------------------------------------------------------------- what happens

    def live_through(self, seconds: int) -> None:
        """Send the full disk, then cut by cut what is written, and keep house as the worker."""
        self._upload(np.arange(self._block_count, dtype=np.int64), is_first=True)
        self._processor.step()
        began = retention_at = space_at = self.clock.now
        while self.clock.now < began + seconds:
            self.clock.now += CUT_SECONDS
            self._upload(self._next_blocks())
            self.cut_bytes += self._processor.step().bytes
            if self.clock.now >= retention_at:
                retention_at = self.clock.now + RETENTION_SECONDS
                self._processor.drop_points(lambda points: plan_retention(points, DEFAULT_TIERS))
            if self.clock.now >= space_at:
                space_at = self.clock.now + SPACE_SECONDS
                self._reclaim()
                if self.clock.now >= began + seconds - 3600:
                    self.busy.append(self._stored_bytes() / self._needed_bytes())

    def settle(self) -> None:
        """No writes any more: the worker's ordinary rounds, until they find nothing to do."""
        for _ in range(SETTLE_ROUNDS):
            self.clock.now += max(SPACE_SECONDS, GRACE_SECONDS / 4)
            if not self._processor.is_space_due:
                break
            self._reclaim()

    def _reclaim(self) -> None:
        if self._processor.is_space_due:
            self.rewritten_bytes += self._processor.reclaim().rewritten_bytes

    def _next_blocks(self) -> Ints:
        share, _ = MIXES[self.mix]
        anywhere = self._source.integers(0, self._block_count, WRITES_PER_CUT)
        hot = self._hot[self._source.integers(0, len(self._hot), WRITES_PER_CUT)]
        is_hot = self._source.random(WRITES_PER_CUT) * 100 < share
        return np.unique(np.where(is_hot, hot, anywhere))

    def _upload(self, blocks: Ints, *, is_first: bool = False) -> None:
        """Have these blocks written, each with its number, the cut's and noise."""
        self.written.append(blocks)
        data = np.frombuffer(self._source.bytes(len(blocks) * BLOCK), "<i8").copy()
        data = data.reshape(len(blocks), BLOCK // 8)
        data[:, 0], data[:, 1] = blocks, len(self.written)
        records = np.zeros(0 if is_first else len(blocks), RECORD_DTYPE)
        records["kind"], records["length"] = KIND_WRITE, BLOCK
        if not is_first:
            records["offset"] = blocks * BLOCK
            records["position"] = np.arange(len(blocks)) * BLOCK
        sweep = [SweepRead(0, 0, self.size_bytes, 0, data.tobytes())] if is_first else []
        changes = build_cut(
            records,
            first_position=0,
            buffer_of=lambda _: data.tobytes(),
            sweep=sweep,
            disks=[CutDisk(DISK, self.size_bytes)],
        )
        cut = Cut(
            disks=changes,
            time_ns=int(self.clock.now * 1e9),
            consistency=Consistency.CRASH,
            vm_config={},
        )
        self._uploader.upload(cut)

    # -------------------------------------------------------------------------- what is found

    def figures(self) -> dict[str, float]:
        return {
            "amp": self._stored_bytes() / self._needed_bytes(),
            "amp_busy": float(np.mean(self.busy)),
            "rewrite": self.rewritten_bytes / self.cut_bytes,
        }

    def check(self) -> int:
        """Return how many points there are. Raises: Invalid if they are too few or one of them is
        not what was written."""
        points = self._processor.points
        if len(points) < POINTS_MIN:
            raise Invalid(f"only {len(points)} recovery points")
        picked = {points[at] for at in np.linspace(0, len(points) - 1, READ_BACK, dtype=int)}
        for point in picked:
            expected = self._writers(point.sequence)
            disks = open_point(self._target, {DISK: self._target}, ITEM, point.id)
            with disks[DISK] as disk:
                found = np.frombuffer(disk.read(0, self.size_bytes), "<i8")
            found = found.reshape(self._block_count, BLOCK // 8)
            whole = np.array_equal(found[:, 0], np.arange(self._block_count))
            if not (whole and np.array_equal(found[:, 1], expected)):
                raise Invalid(f"recovery point {point.id} is not what was written")
        return len(points)

    def _writers(self, sequence: int) -> Ints:
        """Return for each block the cut that wrote it last, up to that one."""
        writers = np.zeros(self._block_count, np.int64)
        for number, blocks in enumerate(self.written[:sequence], 1):
            writers[blocks] = number
        return writers

    def _stored_bytes(self) -> int:
        return sum(self._target.sizes("").values())

    def _needed_bytes(self) -> int:
        """Return the bytes of the different versions of blocks that the kept points show."""
        kept = {point.sequence for point in self._processor.points}
        is_new = np.zeros(self._block_count, np.bool_)
        count = 0
        for number, blocks in enumerate(self.written, 1):
            is_new[blocks] = True
            if number in kept:
                count += int(is_new.sum())
                is_new[:] = False
        return count * BLOCK
