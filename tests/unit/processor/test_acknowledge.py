"""What the source has been told stays readable, also while nothing comes."""

from __future__ import annotations

from leeward.object_store.memory import MemoryStore
from leeward.processor.acknowledge import LEFTOVERS_SECONDS, QUIET_SECONDS, Acknowledgements
from leeward.processor.drain import Cache, ChainHead
from leeward.replica.manifest import applied_name, decode_applied

HEAD = ChainHead(4, "ab" * 32)


class HandClock:
    """A clock that goes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_damaged_marker_is_written_anew_although_nothing_comes() -> None:
    store, clock = MemoryStore(), HandClock()
    told = Acknowledgements(Cache(store, "web-1", 1), clock)
    told.acknowledge(HEAD, [])
    told.clean(HEAD)
    name = applied_name("web-1", 1, 4)
    store.delete(name)
    store.create(name, b"damaged")
    clock.sleep(LEFTOVERS_SECONDS + 1)
    told.clean(HEAD)
    assert store.get(name) == b"damaged", "an idle item costs next to no requests"
    clock.sleep(QUIET_SECONDS)
    told.clean(HEAD)
    assert decode_applied(store.get(name))[1].sequence == 4
