"""Old records of catalogs deleted while owners and readers sleep and requests arrive late."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.core.errors import Conflict, Fenced, Unavailable
from leeward.model.recovery import Consistency
from leeward.object_store.memory import MemoryStore
from leeward.object_store.store import Buffer, ObjectStore
from leeward.processor import trimming
from leeward.processor.apply import Numbers
from leeward.processor.garbage import Stand
from leeward.processor.trimming import CatalogTrimmer
from leeward.replica import snapshots
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut

ITEM = "web"
WORKERS = 3
ACTIONS = ["cut", "cut", "work", "work", "take", "trim", "read", "lose", "arrive", "power"]


class LateStore(MemoryStore):
    """A store to which requests may come long after who made them has given up."""

    def __init__(self) -> None:
        super().__init__()
        self.is_losing = False
        self.late: list[tuple[str, bytes | None]] = []
        """(name, what is to be created there, None: it is to be deleted)."""
        self._unsynced: set[str] = set()
        """Floors that are there and of which nobody has been told so."""

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.is_losing:
            assert isinstance(data, bytes)
            self.late.append((name, data))
            raise Unavailable("no reply")
        self._unsynced.discard(name)
        super().create(name, data)

    def delete(self, name: str) -> None:
        if self.is_losing:
            self.late.append((name, None))
            raise Unavailable("no reply")
        super().delete(name)

    def arrive(self, index: int) -> None:
        """One of the late requests is carried out."""
        if self.late:
            name, data = self.late.pop(index % len(self.late))
            if data is None:
                super().delete(name)
            else:
                with suppress(Conflict):
                    super().create(name, data)
                    self._unsynced |= {name} if "/floors/" in name else set()

    def lose_power(self) -> None:
        """What nobody has been told to be there is gone."""
        for name in self._unsynced:
            super().delete(name)
        self._unsynced.clear()


class Worker:
    """A catalog and who deletes its records, as one process has them."""

    def __init__(self, store: ObjectStore, item_id: str = ITEM) -> None:
        self.catalog = Catalog.open(store, item_id)
        self.trimmer = CatalogTrimmer(self, item_id, store)

    def stand(self) -> Stand:
        self.catalog.check_owner()
        numbers = Numbers(self.catalog.claim)
        return Stand(state=self.catalog.state, numbers=numbers, settled=0, copied=frozenset())

    def raise_floor(self, version: int, sha256: str) -> bool:
        return self.catalog.raise_floor(version, sha256)

    def append(self, digest: str) -> int:
        newest = self.catalog.newest_cut
        sequence = newest.sequence + 1 if newest else 1
        cut = AppliedCut(
            epoch=1,
            sequence=sequence,
            manifest_sha256=digest,
            time_ns=sequence,
            consistency=Consistency.CRASH,
            disks=(),
        )
        self.catalog.append_cuts([cut])
        return sequence


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, WORKERS - 1), st.sampled_from(ACTIONS), st.integers(0, 99)),
        min_size=5,
        max_size=40,
    )
)
def test_whoever_is_told_that_its_cut_is_in_the_log_finds_it_there(
    steps: list[tuple[int, str, int]],
) -> None:
    """Three workers append, take over and delete old records in any order, whatever they have read
    last; requests for records, floors and deletions arrive at any later time."""
    store = LateStore()
    acknowledged: dict[int, str] = {}
    with (
        patch.object(snapshots, "SNAPSHOT_VERSIONS", 1),
        patch.object(trimming, "FLOOR_VERSIONS", 2),
    ):
        workers = [Worker(store) for _ in range(WORKERS)]
        workers[0].catalog.take_over(1)
        owner, losing = 0, False
        for step, (who, action, number) in enumerate(steps):
            worker = workers[who]
            try:
                if action == "cut":
                    store.is_losing, losing = losing, False
                    digest = f"{step << 8 | 255:064x}"
                    sequence = worker.append(digest)
                    assert who == owner, "an owner that was replaced could write"
                    acknowledged[sequence] = digest
                elif action == "take":
                    worker.catalog.take_over(1)
                    owner = who
                elif action == "work":
                    for turn in range(number % 6 + 1):
                        digest = f"{step << 8 | turn:064x}"
                        acknowledged[workers[owner].append(digest)] = digest
                    workers[owner].trimmer.trim(is_thorough=True)
                elif action == "trim":
                    store.is_losing, losing = losing, False
                    worker.trimmer.trim(is_thorough=number % 2 == 0)
                elif action == "read":
                    worker.catalog.refresh()
                    assert worker.catalog.state == Catalog.open(store, ITEM).state
                elif action == "lose":
                    losing = True
                elif action == "power":
                    store.lose_power()
                else:
                    store.arrive(number)
            except Fenced:
                assert who != owner
                assert action != "work"
            except (Conflict, Unavailable):
                pass
            finally:
                store.is_losing = False
            _check(store, acknowledged)


def _check(store: LateStore, acknowledged: dict[int, str]) -> None:
    """Whoever begins to read now finds every cut that was acknowledged, in order."""
    log = {cut.sequence: cut.manifest_sha256 for cut in Catalog.open(store, ITEM).state.cuts}
    assert sorted(log) == list(range(1, len(log) + 1))
    assert acknowledged.items() <= log.items()
