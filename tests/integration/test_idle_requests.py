"""An idle VM costs its stores next to nothing, and wakes up at once when it writes again.

Agent and worker are real, their stores counted; between them stands what the service does: pass on
what the agent says of its cuts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.integration.replication_rig import ITEM, Rig, replication_rig
from tests.integration.storage_daemon import wait_until

from leeward.core.clock import SystemClock
from leeward.core.units import MIB
from leeward.mobility.replicator import Tuning
from leeward.object_store.file import create_file_store
from leeward.object_store.store import Buffer, ObjectStore
from leeward.processor import loop as loop_module
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import IDLE_SECONDS, UNASKED_SECONDS, ItemLoop
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.protocol.messages import NodeStatus
from leeward.workflows.live import LiveState

pytestmark = pytest.mark.integration

REQUESTS_PER_HOUR = 60
WINDOW_SECONDS = 4 * IDLE_SECONDS


class CountingStore:
    """A store that counts what is asked of it, in one counter for all."""

    def __init__(self, store: ObjectStore, counts: Counter[str]) -> None:
        self._store = store
        self._counts = counts

    @property
    def url(self) -> str:
        return self._store.url

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._counts["create"] += 1
        self._store.create(name, data)

    def get(self, name: str) -> bytes:
        self._counts["get"] += 1
        return self._store.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._counts["get"] += 1
        return self._store.get_range(name, offset, length)

    def size(self, name: str) -> int:
        self._counts["size"] += 1
        return self._store.size(name)

    def sizes(self, prefix: str) -> dict[str, int]:
        self._counts["list"] += 1
        return self._store.sizes(prefix)

    def list(self, prefix: str) -> list[str]:
        self._counts["list"] += 1
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        self._counts["delete"] += 1
        self._store.delete(name)


class Site:
    """A replicated storage daemon, its worker's loop, and the service's word between them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.counts: Counter[str] = Counter()
        target = create_file_store(rig.places.data_dir / "target")
        stores = {s.url: CountingStore(s, self.counts) for s in (rig.store._store, target)}
        rig.store._store = stores[rig.store.url]
        spec = ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=rig.store.url,
            catalog_url=target.url,
            replicas=tuple(
                ReplicaDisk(disk=disk, size_bytes=size, target_url=target.url)
                for disk, size in rig.daemon.disks.items()
            ),
        )
        clock = SystemClock()
        processor = ItemProcessor(spec, stores.__getitem__, clock)
        self.loop = ItemLoop(spec, processor, lambda points: (), clock)
        self.live = LiveState(clock)
        self.is_service_away = False
        self._ending = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def start(self) -> None:
        self.rig.start()
        self.loop.start()
        self._teller.start()

    def _tell(self) -> None:
        while not self._ending.wait(0.1):
            if self.rig.replicator is not None and not self.is_service_away:
                status = self.rig.replicator.status()
                self.live.put("agent", NodeStatus(replications=(status,)))
                self.loop.announce(1, self.live.uploaded_sequence(ITEM, 1))

    def stop(self) -> None:
        self._ending.set()
        self.loop.stop()

    def wait_rest(self) -> None:
        """Return when all that was written is a listed point and nobody asks a store any more."""
        assert self.rig.replicator is not None
        replicator = self.rig.replicator
        wait_until(
            lambda: (
                0 < replicator.status().uploaded_sequence == self.loop.status().applied_sequence
                and replicator.status().current_time_ns > 0
            ),
            "all is applied",
        )
        wait_until(lambda: not self.counted(WINDOW_SECONDS / 4), "stores at rest")

    def counted(self, seconds: float) -> int:
        """Return how many requests are made in the next so many seconds."""
        before = self.counts.total()
        time.sleep(seconds)
        return self.counts.total() - before


@contextmanager
def resting(monkeypatch: pytest.MonkeyPatch, *, idle_cut_seconds: float) -> Iterator[Site]:
    monkeypatch.setattr(loop_module, "IDLE_AFTER_SECONDS", 0.5)
    with replication_rig() as rig:
        rig.tuning = replace(rig.tuning, idle_cut_seconds=idle_cut_seconds, applied_seconds=1.0)
        rig.daemon.fill("sys", 8 * MIB, 4 * MIB)
        site = Site(rig)
        try:
            site.start()
            site.wait_rest()
            yield site
        finally:
            site.stop()


def test_an_idle_vm_asks_nothing_of_its_stores_and_is_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with resting(monkeypatch, idle_cut_seconds=Tuning().idle_cut_seconds) as site:
        assert site.counted(WINDOW_SECONDS) == 0
        assert site.rig.replicator is not None
        current_ns = site.rig.replicator.status().current_time_ns
        assert time.time_ns() - current_ns < 30e9
        applied = site.loop.status().applied_sequence
        site.rig.daemon.fill("sys", 0, MIB)
        wait_until(lambda: site.loop.status().applied_sequence > applied, "the write is applied")


def test_a_vm_whose_last_write_is_not_in_the_cache_is_not_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with resting(monkeypatch, idle_cut_seconds=Tuning().idle_cut_seconds) as site:
        replicator = site.rig.replicator
        assert replicator is not None
        site.rig.store.refusal = "the cache is away"
        site.rig.daemon.fill("sys", 0, MIB)
        wait_until(lambda: bool(replicator.status().problem), "the upload fails")
        for _ in range(10):
            assert replicator.status().current_time_ns == 0
            time.sleep(0.1)
        site.rig.store.refusal = ""
        wait_until(lambda: replicator.status().current_time_ns > 0, "current again")


def test_while_the_service_is_away_the_worker_looks_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "ANNOUNCED_SECONDS", 0.5)
    with resting(monkeypatch, idle_cut_seconds=Tuning().idle_cut_seconds) as site:
        site.is_service_away = True
        wait_until(lambda: site.counted(IDLE_SECONDS) > 0, "the worker looks")
        applied = site.loop.status().applied_sequence
        site.rig.daemon.fill("sys", 0, MIB)
        wait_until(lambda: site.loop.status().applied_sequence > applied, "the write is applied")


def test_an_idle_vm_costs_at_most_sixty_requests_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an idle hour is made of: cuts without content, and looks although all is quiet."""
    with resting(monkeypatch, idle_cut_seconds=4.0) as site:
        before = site.loop.status().applied_sequence
        counted = site.counted(0)
        counts = site.counts.total()
        wait_until(lambda: site.loop.status().applied_sequence >= before + 2, "two idle cuts")
        site.wait_rest()
        cuts = site.loop.status().applied_sequence - before
        per_cut = (site.counts.total() - counts - counted) / cuts
        looks_per_hour, requests_per_look = 3600 / UNASKED_SECONDS, 2
        per_hour = 3600 / Tuning().idle_cut_seconds * per_cut + looks_per_hour * requests_per_look
        assert per_hour <= REQUESTS_PER_HOUR, f"{per_cut:g} requests for each idle cut"
