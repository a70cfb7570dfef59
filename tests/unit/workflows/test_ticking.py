"""What is done every so often goes on after any error, and ends when told to."""

from __future__ import annotations

import threading

import pytest

from leeward.core.errors import Unavailable
from leeward.workflows.ticking import Ticking


@pytest.mark.parametrize("error", [Unavailable("away"), ValueError("a defect")])
def test_an_error_ends_nothing_and_stop_does(error: Exception) -> None:
    ticks, again = [0], threading.Event()

    def tick() -> None:
        ticks[0] += 1
        if ticks[0] == 1:
            raise error
        again.set()

    ticking = Ticking("some-thing", tick, seconds=0.001)
    ticking.start()
    assert again.wait(60)
    ticking.stop()
    assert not ticking._thread.is_alive()
    ticking.stop()
