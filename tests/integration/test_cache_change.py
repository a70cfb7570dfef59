"""A running item goes over to another cache while its guests write: nothing is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.replication_rig import ITEM, FaultyStore, Rig, replication_rig
from tests.integration.storage_daemon import LoggedWriters, wait_until

from leeward.agent.processing import ProcessingNode
from leeward.core.clock import SystemClock
from leeward.core.codec import to_plain
from leeward.core.errors import Unavailable
from leeward.mobility.upload import Uploader
from leeward.object_store.file import create_file_store
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import ObjectStore
from leeward.processor import arrivals as arrivals_module
from leeward.processor import loop as loop_module
from leeward.processor.drain import erase_cache
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import ItemLoop
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.protocol.messages import Command, Verb
from leeward.protocol.rebuild import FoundItems
from leeward.protocol.replicas import ErasureSpec, StoredItems
from leeward.replica.disk import open_point
from leeward.replica.manifest import applied_name, cut_name

pytestmark = pytest.mark.integration


@pytest.fixture
def rig() -> Iterator[Rig]:
    with replication_rig() as made:
        made.tuning = replace(made.tuning, buffer_count=96)
        yield made


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every restart of a broken chain; gaps are looked for often."""
    monkeypatch.setattr(arrivals_module, "GAP_SECONDS", 0.2)
    monkeypatch.setattr(loop_module, "INTEGRITY_SECONDS", 0.2)
    seen: list[int] = []
    restart = Uploader.restart

    def noting(uploader: Uploader) -> None:
        end = uploader.broken_after
        seen.append(end.sequence if end else -1)
        restart(uploader)

    monkeypatch.setattr(Uploader, "restart", noting)
    return seen


class Site:
    """The rig's item, a worker that processes it into memory, and a second cache."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        self.rig = rig
        self.target = MemoryStore("target")
        self.old: ObjectStore = rig.store._store
        self.new: ObjectStore = create_file_store(directory / "new")
        self._stores = {store.url: store for store in (self.target, self.old, self.new)}
        self.disks = dict(rig.daemon.disks)
        self.spec = ProcessingSpec(
            item_id=ITEM,
            epoch=1,
            cache_url=self.old.url,
            catalog_url=self.target.url,
            replicas=tuple(
                ReplicaDisk(disk=disk, size_bytes=size, target_url=self.target.url)
                for disk, size in self.disks.items()
            ),
        )
        self.moved = replace(self.spec, cache_url=self.new.url)
        self.node = ProcessingNode(directory / "worker", self._loop, lambda *_: None, self)

    def _loop(self, spec: ProcessingSpec, _: bool, on_change: Callable[[], None]) -> ItemLoop:
        processor = ItemProcessor(spec, self._stores.__getitem__, SystemClock())
        return ItemLoop(spec, processor, lambda _points: (), SystemClock(), on_change=on_change)

    def find_items(self, urls: Sequence[str]) -> FoundItems:
        raise NotImplementedError

    def find_stored_items(self, urls: Sequence[str]) -> StoredItems:
        raise NotImplementedError

    def erase_stored_item(self, wanted: ErasureSpec) -> None:
        raise NotImplementedError

    def erase_cache(self, item_id: str, url: str) -> None:
        erase_cache(self._stores[url], item_id)

    def do(self, verb: Verb, arguments: object) -> None:
        self.node.carry_out(Command(id="c", verb=verb, arguments=to_plain(arguments)))

    def hold(self) -> None:
        """The source sends nothing from now on."""
        self.rig.drop_agent()
        self.rig.spec = replace(self.rig.spec, is_held=True)
        self.rig.start()

    def go_on(self) -> None:
        """The source sends into the new cache."""
        self.rig.drop_agent()
        self.rig.spec = replace(self.rig.spec, is_held=False, cache_url=self.new.url)
        self.rig.store = FaultyStore(self.new)
        self.rig.start()

    @property
    def loop(self) -> ItemLoop:
        loop = self.node._items[ITEM].loop
        assert isinstance(loop, ItemLoop)
        return loop

    def newest_ns(self) -> int:
        points = self.loop.status().points_added
        return points[-1].time_ns if points else 0

    def content(self) -> dict[str, bytearray]:
        disks = open_point(self.target, dict.fromkeys(self.disks, self.target), ITEM, "latest")
        try:
            return {disk: bytearray(one.read(0, one.size_bytes)) for disk, one in disks.items()}
        finally:
            for one in disks.values():
                one.close()


@pytest.fixture
def site(rig: Rig, tmp_path: Path) -> Iterator[Site]:
    """Give a site where guests write and points arrive."""
    made = Site(rig, tmp_path)
    made.do(Verb.PROCESSING_START, made.spec)
    try:
        writers = LoggedWriters(rig.daemon, count=3)
        rig.writers.append(writers)
        writers.start()
        rig.start()
        wait_until(lambda: made.newest_ns() > 0, "a first point")
        yield made
    finally:
        made.node.stop()


def assert_arrives(site: Site) -> None:
    """With the writers at rest, the next recovery point holds exactly what the disks hold."""
    (writers,) = site.rig.writers
    writers.stop()
    stopped_ns = time.time_ns()
    wait_until(lambda: site.newest_ns() > stopped_ns, "a point after the last write")
    assert site.content() == site.rig.daemon.content()
    assert writers.errors == []


def test_it_goes_on_in_the_new_cache_where_the_old_one_ended(
    site: Site, restarts: list[int]
) -> None:
    loop = site.loop
    loop._stopping.set()  # it is slow: cuts wait
    loop._thread.join()
    wait_until(lambda: len(site.old.list(f"items/{ITEM}/cuts/")) > 2, "cuts that wait")
    site.new.create(cut_name(ITEM, 1, 1_000_000), b"of a time before")
    site.hold()
    loop.hand_over(site.new.url, 60.0)
    assert site.old.list(f"items/{ITEM}/cuts/") == []
    head = applied_name(ITEM, 1, loop.status().applied_sequence)
    assert site.new.list(f"items/{ITEM}/") == [head]
    for _ in range(2):  # asked again, nothing is different
        site.do(Verb.CACHE_CHANGE, site.moved)
    site.go_on()
    site.do(Verb.CACHE_ERASE, {"item_id": ITEM, "url": site.old.url})
    assert_arrives(site)
    assert restarts == []
    assert site.old.list(f"items/{ITEM}/") == []


def test_a_held_source_sends_nothing_and_loses_nothing(site: Site, restarts: list[int]) -> None:
    site.hold()
    before = site.rig.last_sequence()
    replicator = site.rig.replicator
    assert replicator is not None
    wait_until(lambda: "another cache" in replicator.status().problem, "a cut that waits")
    assert site.rig.last_sequence() <= before
    site.rig.drop_agent()
    site.rig.spec = replace(site.rig.spec, is_held=False)  # the change was undone
    site.rig.start()
    assert_arrives(site)
    assert restarts == []


def test_a_source_that_goes_on_too_early_costs_a_sweep_and_no_more(
    site: Site, restarts: list[int]
) -> None:
    """It finds nothing in the new cache of what it has sent: what the target lacks is sent anew."""
    site.hold()
    site.go_on()
    wait_until(lambda: bool(restarts), "a new chain")
    site.do(Verb.CACHE_CHANGE, site.moved)
    assert_arrives(site)


def test_a_new_cache_that_cannot_be_written_leaves_all_as_it_was(
    site: Site, restarts: list[int]
) -> None:
    broken = FaultyStore(site.new)
    broken.refusal = "No space left on device"
    site._stores[site.new.url] = broken
    site.hold()
    with pytest.raises(Unavailable, match="No space"):
        site.do(Verb.CACHE_CHANGE, site.moved)
    site.rig.drop_agent()
    site.rig.spec = replace(site.rig.spec, is_held=False)
    site.rig.start()
    assert_arrives(site)
    assert restarts == []
